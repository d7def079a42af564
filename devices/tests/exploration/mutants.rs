//! Broken models, each broken at the seam, which the exploration finds.

use std::time::Duration;

use vm_watchdog_devices::diag288::{Diag288, Diag288StateV1, ProgramInterruption};
use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbStateV1};
use vm_watchdog_devices::sbsa::{Sbsa, SbsaStateV1};
use vm_watchdog_devices::wdat::Wdat;
use vm_watchdog_devices::{Access, Expired, LastReset, Model, VmInstant};

use crate::device::{Seam, at};
use crate::diag288::{Call, Diag288World, Hypercall};
use crate::i6300esb::{Bus, I6300esbWorld, Write};
use crate::sbsa::{self, Frames, SbsaWorld};
use crate::search::{World, explore};
use crate::wdat::{self, Registers, WdatWorld};

/// Asserts that the exploration of a broken model ends in a shortest sequence of so many steps, and in `violation`.
#[track_caller]
fn is_found<W: World>(world: &W, steps: usize, violation: &str) {
    let found = explore(world).expect_err("the exploration finds the fault");
    println!("after {} transitions:\n{found}", found.transitions);
    assert!(found.violation.contains(violation), "another violation:\n{found}");
    assert_eq!(found.steps.len(), steps, "not the shortest:\n{found}");
}

/// Changes the saved state of a device.
fn edit(model: &mut I6300esb, now: u64, change: impl FnOnce(&mut I6300esbStateV1)) {
    let mut state = model.save(at(now));
    change(&mut state);
    *model = model.restored(&state, at(now)).expect("a possible state");
}

/// Derives what a seam needs, and the parts of it that the fault does not touch.
macro_rules! fault {
    ($(#[$doc:meta])* $fault:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        struct $fault;
    };
    ($(#[$doc:meta])* $fault:ident on the bus) => {
        fault!($(#[$doc])* $fault);
        impl Seam<I6300esb> for $fault {}
    };
    ($(#[$doc:meta])* $fault:ident in registers) => {
        fault!($(#[$doc])* $fault);
        impl Seam<Wdat> for $fault {}
    };
    ($(#[$doc:meta])* $fault:ident in frames) => {
        fault!($(#[$doc])* $fault);
        impl Seam<Sbsa> for $fault {}
    };
    ($(#[$doc:meta])* $fault:ident in calls) => {
        fault!($(#[$doc])* $fault);
        impl Seam<Diag288> for $fault {}
    };
}

fault!(
    /// A stage that a write begins is one unit of the prescaler too short.
    OneUnitEarly on the bus
);

impl Bus for OneUnitEarly {
    fn write(&self, model: &mut I6300esb, write: Write, now: u64) -> Access {
        let before = model.save(at(now)).counter;
        let access = self.write_on_the_bus(model, write, now);
        edit(model, now, |state| {
            if let Some(counter) = state.counter.as_mut().filter(|counter| before != Some(**counter)) {
                let unit = if counter.megahertz { 960 } else { 983_040 };
                counter.remaining_ns = counter.remaining_ns.saturating_sub(unit).max(1);
            }
        });
        access
    }
}

#[test]
fn a_deadline_that_is_one_unit_early() {
    is_found(&I6300esbWorld::<OneUnitEarly>::two_stages(), 1, "the timeout is in");
}

fault!(
    /// A locked 68h takes writes.
    LockNotSticky on the bus
);

impl Bus for LockNotSticky {
    fn write(&self, model: &mut I6300esb, write: Write, now: u64) -> Access {
        if let Write::Lock(_) = write {
            edit(model, now, |state| state.wdt_lock &= !1);
        }
        self.write_on_the_bus(model, write, now)
    }
}

#[test]
fn a_lock_that_is_not_sticky() {
    is_found(
        &I6300esbWorld::<LockNotSticky>::two_stages(),
        2,
        "returns Access(Accepted), and should return Access(Ignored)",
    );
}

fault!(
    /// A reload at the instant at which stage 2 begins has no effect.
    ReloadIgnoredAtTheBoundary on the bus
);

impl Bus for ReloadIgnoredAtTheBoundary {
    fn write(&self, model: &mut I6300esb, write: Write, now: u64) -> Access {
        let state = model.save(at(now));
        let is_boundary = state.counter.is_some_and(|counter| {
            let unit = if counter.megahertz { 960 } else { 983_040 };
            counter.stage == 2 && counter.remaining_ns == u64::from(state.preload2) * unit
        });
        match write {
            Write::Reload(0x0100) if is_boundary && state.unlock_keys == 2 => {
                self.write_on_the_bus(model, Write::Reload(0), now);
                Access::Heartbeat
            }
            write => self.write_on_the_bus(model, write, now),
        }
    }
}

#[test]
fn a_reload_that_is_ignored_at_the_boundary_of_the_stages() {
    is_found(&I6300esbWorld::<ReloadIgnoredAtTheBoundary>::two_stages(), 4, "the timeout is in");
}

/// An expiry is reported by two polls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct ReportedTwice {
    last: [Option<VmInstant>; 2],
}

impl<M: Model> Seam<M> for ReportedTwice {
    fn poll(&mut self, model: &mut M, now: VmInstant) -> Expired {
        let expired = model.poll(now);
        let [pretimeout, timeout] = std::mem::replace(&mut self.last, [expired.pretimeout, expired.timeout]);
        if expired.is_empty() { Expired::new(pretimeout, timeout) } else { expired }
    }
}

impl Bus for ReportedTwice {}
impl Hypercall for ReportedTwice {}

#[test]
fn an_expiry_that_is_reported_twice() {
    let violation = "an expiry is reported twice";
    is_found(&I6300esbWorld::<ReportedTwice>::two_stages(), 2, violation);
    is_found(&Diag288World::<ReportedTwice>::lpar(), 2, violation);
}

fault!(
    /// The host is told to poll a nanosecond after the deadline.
    PollAtIsLate
);

impl<M: Model> Seam<M> for PollAtIsLate {
    fn poll_at(&self, model: &M) -> Option<VmInstant> {
        model.poll_at().map(|instant| instant + Duration::from_nanos(1))
    }
}

impl Bus for PollAtIsLate {}
impl Hypercall for PollAtIsLate {}

#[test]
fn a_poll_at_that_is_late() {
    is_found(&I6300esbWorld::<PollAtIsLate>::two_stages(), 1, "the next poll is in");
    is_found(&Diag288World::<PollAtIsLate>::lpar(), 1, "the next poll is in");
}

fault!(
    /// The device expires a nanosecond before the deadline that it announces.
    ExpiresEarly
);

impl<M: Model + Clone> Seam<M> for ExpiresEarly {
    fn poll(&mut self, model: &mut M, now: VmInstant) -> Expired {
        let early = now + Duration::from_nanos(1);
        let expires_early = !model.clone().poll(early).is_empty();
        model.poll(if expires_early { early } else { now })
    }
}

impl Bus for ExpiresEarly {}
impl Hypercall for ExpiresEarly {}

#[test]
fn a_device_that_expires_a_nanosecond_early() {
    let before = "a poll 1 ns before the next effect reports a timeout";
    is_found(&I6300esbWorld::<ExpiresEarly>::two_stages(), 1, before);
    is_found(&Diag288World::<ExpiresEarly>::lpar(), 1, before);
}

fault!(
    /// A restored device has forgotten the keys of the unlock sequence.
    UnlockIsNotSaved
);

impl Seam<I6300esb> for UnlockIsNotSaved {
    fn save(&self, model: &mut I6300esb, now: VmInstant) -> I6300esbStateV1 {
        I6300esbStateV1 { unlock_keys: 0, ..model.save(now) }
    }
}

impl Bus for UnlockIsNotSaved {}

fault!(
    /// A restored device has forgotten that an expiry is not polled.
    ExpiryIsNotSaved
);

impl Seam<I6300esb> for ExpiryIsNotSaved {
    fn save(&self, model: &mut I6300esb, now: VmInstant) -> I6300esbStateV1 {
        I6300esbStateV1 { timeout_age_ns: None, ..model.save(now) }
    }
}

impl Bus for ExpiryIsNotSaved {}

fault!(
    /// A restored device has forgotten that it has timed out.
    TimeoutIsNotSaved
);

impl Seam<Diag288> for TimeoutIsNotSaved {
    fn save(&self, model: &mut Diag288, now: VmInstant) -> Diag288StateV1 {
        Diag288StateV1 { has_timed_out: false, ..model.save(now) }
    }
}

impl Hypercall for TimeoutIsNotSaved {}

#[test]
fn a_field_that_is_not_saved() {
    is_found(&I6300esbWorld::<UnlockIsNotSaved>::two_stages(), 1, "unlock FirstKey becomes Locked");
    is_found(&I6300esbWorld::<ExpiryIsNotSaved>::two_stages(), 3, "a device that is saved here, and restored");
    is_found(&Diag288World::<TimeoutIsNotSaved>::lpar(), 1, "has_timed_out true becomes false");
}

fault!(
    /// A read of GINTSR clears it.
    ReadClears on the bus
);

impl Bus for ReadClears {
    fn read_bar(&self, model: &mut I6300esb, offset: u64, data: &mut [u8], now: u64) -> Access {
        let access = model.read_bar(offset, data, at(now));
        if offset == 0 && data.len() > 0x08 && data[0x08] != 0 {
            edit(model, now, |state| state.wdt_int_act = false);
        }
        access
    }
}

#[test]
fn a_read_that_changes_something() {
    is_found(&I6300esbWorld::<ReadClears>::two_stages(), 2, "interrupt_active true becomes false");
}

fault!(
    /// The registers repeat after 16 bytes of BAR0.
    RegistersRepeat on the bus
);

impl Bus for RegistersRepeat {
    fn write_bar(&self, model: &mut I6300esb, offset: u64, data: &[u8], now: u64) -> Access {
        model.write_bar(offset & 0x0F, data, at(now))
    }
}

#[test]
fn a_write_outside_the_registers_that_changes_something() {
    is_found(&I6300esbWorld::<RegistersRepeat>::two_stages(), 2, "a write of ones to 0x10 of BAR0");
}

fault!(
    /// A reset clears WDT_TIMEOUT.
    ResetForgetsTheTimeout
);

impl Seam<I6300esb> for ResetForgetsTheTimeout {
    fn reset(&self, model: &mut I6300esb) {
        model.reset();
        model.set_last_reset(LastReset::new(false));
    }
}

impl Bus for ResetForgetsTheTimeout {}

#[test]
fn a_reset_that_forgets_the_timeout() {
    is_found(&I6300esbWorld::<ResetForgetsTheTimeout>::resets(), 2, "RELOAD is 0x0, and should be 0x1200");
}

fault!(
    /// In free running mode a cycle begins when the host polls, and not at the timeout.
    FreeRunningDrifts
);

impl Seam<I6300esb> for FreeRunningDrifts {
    fn poll(&mut self, model: &mut I6300esb, now: VmInstant) -> Expired {
        let expired = model.poll(now);
        if expired.timeout.is_some() {
            edit(model, now.as_nanos(), |state| {
                let unit = if state.wdt_configuration & 0x04 == 0 { 983_040 } else { 960 };
                if let Some(counter) = state.counter.as_mut().filter(|counter| counter.stage == 1) {
                    counter.remaining_ns = u64::from(state.preload1.max(1)) * unit;
                }
            });
        }
        expired
    }
}

impl Bus for FreeRunningDrifts {}

#[test]
fn a_free_running_cycle_that_begins_at_a_late_poll() {
    is_found(&I6300esbWorld::<FreeRunningDrifts>::free_running(), 3, "the timeout is in");
}

fault!(
    /// A timeout is one second too long.
    OneSecondLate in calls
);

impl Hypercall for OneSecondLate {
    fn call(&self, model: &mut Diag288, mut call: Call, now: u64) -> Result<Access, ProgramInterruption> {
        call.timeout = call.timeout.saturating_add(1);
        self.execute(model, call, now)
    }
}

#[test]
fn a_timeout_that_is_one_second_late() {
    is_found(&Diag288World::<OneSecondLate>::lpar(), 1, "the timeout is in 16s, and should be in 15s");
}

fault!(
    /// CHANGE in the last nanosecond has no effect.
    ChangeIgnoredAtTheBoundary in calls
);

impl Hypercall for ChangeIgnoredAtTheBoundary {
    fn call(&self, model: &mut Diag288, call: Call, now: u64) -> Result<Access, ProgramInterruption> {
        let is_boundary = model.save(at(now)).remaining_ns == Some(1);
        let outcome = self.execute(&mut model.clone(), call, now);
        if !is_boundary || outcome != Ok(Access::Heartbeat) { self.execute(model, call, now) } else { outcome }
    }
}

#[test]
fn a_change_that_is_ignored_at_the_boundary() {
    is_found(&Diag288World::<ChangeIgnoredAtTheBoundary>::lpar(), 2, "the timeout is in");
}

fault!(
    /// A heartbeat after the timeout does not start a new countdown.
    DisarmedByTimeout in registers
);

impl Registers for DisarmedByTimeout {
    fn write(&self, model: &mut Wdat, write: wdat::Write, now: u64) -> Access {
        let has_expired = model.save(at(now)).remaining_ns.is_none() && model.is_armed();
        if write.register == 0x4 && has_expired { Access::Heartbeat } else { self.write_through(model, write, now) }
    }
}

#[test]
fn a_heartbeat_after_the_timeout_that_is_ignored() {
    is_found(&WdatWorld::<DisarmedByTimeout>::milliseconds(), 2, "COUNT is 0");
}

fault!(
    /// A reset clears the status.
    StatusNotSticky
);

impl Seam<Wdat> for StatusNotSticky {
    fn reset(&self, model: &mut Wdat) {
        model.reset();
        model.set_last_reset(LastReset::default());
    }
}

impl Registers for StatusNotSticky {}

#[test]
fn a_status_that_a_reset_clears() {
    is_found(&WdatWorld::<StatusNotSticky>::milliseconds(), 2, "STATUS is 0");
}

fault!(
    /// WRR is ignored in the second period.
    RefreshIgnoredAfterWs0 in frames
);

impl Frames for RefreshIgnoredAfterWs0 {
    fn write(&self, model: &mut Sbsa, write: sbsa::Write, now: u64) -> Access {
        let is_ignored = write == sbsa::Write::Refresh && model.save(at(now)).ws0;
        if is_ignored { Access::Heartbeat } else { self.write_through(model, write, now) }
    }
}

#[test]
fn a_refresh_after_ws0_that_is_ignored() {
    is_found(&SbsaWorld::<RefreshIgnoredAfterWs0>::gigahertz(), 2, "WCS is 0b011, and should be 0b001");
}

fault!(
    /// A restored device begins a tick of the counter anew.
    FractionIsNotSaved
);

impl Seam<Sbsa> for FractionIsNotSaved {
    fn save(&self, model: &mut Sbsa, now: VmInstant) -> SbsaStateV1 {
        SbsaStateV1 { counter_fraction: 0, ..model.save(now) }
    }
}

impl Frames for FractionIsNotSaved {}

#[test]
fn a_fraction_of_a_tick_that_is_not_saved() {
    is_found(&SbsaWorld::<FractionIsNotSaved>::fractions(), 1, "counter.fraction");
}

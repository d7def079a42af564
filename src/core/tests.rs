//! The rules of delivery, escalation, pause, line and steal time, on the core alone and in virtual time.

mod in_flight;
mod invariants;
mod late;
mod line;
mod messages;
mod pretimeouts;
mod rate;
mod reports;
mod requests;
mod saved;
mod wakes;

use std::time::Duration;

use vm_watchdog_devices::diag288::{Diag288, Diagnose};
use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Model, MsiMessage, VmInstant};

use super::{Call, Connections, Core, Delivery};
use crate::action::Action;
use crate::event::Stage;
use crate::policy::Policy;
use crate::run_delay::VcpuDelay;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What a preload unit lasts with the 1 kHz prescaler, 30 ns << 15.
const UNIT: Duration = Duration::from_nanos(983_040);
/// Two stages of 512 units each.
const TIMEOUT: Duration = Duration::from_nanos(1024 * 983_040);

/// A core with a host that answers at once, and a guest.
struct Bench<M> {
    core: Core<M>,
    now: VmInstant,
    /// Whether the next calls of the handler succeed.
    performs: bool,
    /// What the host says of the run delay.
    delays: Vec<VcpuDelay>,
    /// Every call of the handler: when, and with what.
    told: Vec<(VmInstant, Delivery)>,
    /// Every action that the rate withholds: when, which, and until when.
    withheld: Vec<(VmInstant, Delivery, Option<VmInstant>)>,
    /// Every level that the line was set to.
    levels: Vec<bool>,
    /// Every interrupt message that was sent, or that failed.
    messages: Vec<MsiMessage>,
    /// Whether the next messages are sent.
    sends: bool,
}

impl Bench<I6300esb> {
    fn new(policy: Policy) -> Self {
        Self::with_steal_limit(policy, None)
    }

    fn with_steal_limit(policy: Policy, steal_limit: Option<u32>) -> Self {
        let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
        Self::of(device, policy, Connections { has_line: true, sends_messages: true, steal_limit, rearms: false })
    }

    /// As `Watchdog::write_bar` does it.
    fn bar(&mut self, offset: u64, value: u32) {
        let data = value.to_le_bytes();
        match I6300esb::unlock_key(offset, &data) {
            Some(key) => {
                self.core.access_without_time(|device| device.write_unlock_key(key));
            }
            None => self.access(|device, now| device.write_bar(offset, &data, now)),
        }
    }

    fn unlocked(&mut self, offset: u64, value: u32) {
        self.bar(0x0C, 0x80);
        self.bar(0x0C, 0x86);
        self.bar(offset, value);
    }

    fn lock_register(&mut self, value: u8) {
        self.access(|device, now| device.write_config(0x68, &[value], now));
    }

    fn ping(&mut self) {
        self.unlocked(0x0C, 0x100);
    }

    fn start(&mut self, units: u32) {
        self.unlocked(0x00, units);
        self.unlocked(0x04, units);
        self.lock_register(2);
    }
}

impl<M: Model> Bench<M> {
    fn of(model: M, policy: Policy, connections: Connections) -> Self {
        let core = Core::new(model, policy, connections);
        Self {
            core,
            now: VmInstant::ZERO,
            performs: true,
            delays: Vec::new(),
            told: Vec::new(),
            withheld: Vec::new(),
            levels: Vec::new(),
            messages: Vec::new(),
            sends: true,
        }
    }

    /// An access of the guest, with the calls that go with it.
    fn access(&mut self, access: impl FnOnce(&mut M, VmInstant) -> Access) {
        self.read();
        self.core.access(self.now, |device, now| (access(device, now), ()));
        self.read();
        while let Some(interrupt) = self.core.interrupt() {
            self.make(interrupt);
        }
    }

    fn read(&mut self) {
        if let Some(reading) = self.core.reading(self.now) {
            self.make(reading);
        }
    }

    /// The timer goes off, and the host makes every call that is due.
    fn serve(&mut self) {
        self.core.wake(self.now);
        while let Some(call) = self.core.next_call(self.now) {
            self.make(call);
        }
    }

    fn make(&mut self, call: Call) {
        match call {
            Call::ReadRunDelay => self.core.run_delay(Some(self.delays.clone()), self.now),
            Call::SetLine(level) => {
                self.levels.push(level);
                self.core.line_set(true);
            }
            Call::SendMessage(message) => {
                self.messages.push(message);
                self.core.message_sent(self.sends);
            }
            Call::Perform(delivery) => {
                self.told.push((self.now, delivery));
                self.core.performed(self.performs, self.now);
            }
            Call::Withhold(delivery, until) => {
                self.withheld.push((self.now, delivery, until));
                self.core.told(self.now);
            }
        }
    }

    /// Time passes, and the host serves the timer whenever it goes off.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake) = self.core.next_wake().filter(|wake| *wake <= end) {
            assert!(wake >= self.now || wake == VmInstant::ZERO || !self.told.is_empty());
            self.now = self.now.max(wake);
            self.serve();
        }
        self.now = end;
    }

    /// What the handler was told since the last question: stage, action and attempt.
    fn told(&mut self) -> Vec<(Stage, Action, u32)> {
        let told = std::mem::take(&mut self.told);
        told.into_iter().map(|(_, delivery)| (delivery.stage, delivery.action, delivery.attempt)).collect()
    }
}

fn nmi_then_poweroff() -> Policy {
    Policy::new(Action::InjectNmi).with_escalation(SECOND * 30, Action::Poweroff)
}

#[test]
fn a_guest_that_feeds_after_a_failed_nmi_is_not_powered_off() {
    let mut bench = Bench::new(nmi_then_poweroff());
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1)]);
    for _ in 0..6000 {
        bench.ping();
        bench.run(MILLISECOND * 10);
    }
    assert_eq!(bench.told(), []);
}

#[test]
fn a_second_timeout_is_told_at_once_with_its_own_deadline() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT + SECOND * 60);
    bench.ping();
    let fed = bench.now;
    bench.told.clear();
    bench.run(TIMEOUT);
    let (at, second) = bench.told[0];
    assert_eq!((at, second.deadline, second.attempt), (fed + TIMEOUT, fed + TIMEOUT, 1));
}

#[test]
fn a_failed_reset_is_not_tried_again_on_a_guest_that_feeds() {
    for action in [Action::Reset, Action::Poweroff, Action::Shutdown] {
        let mut bench = Bench::new(Policy::new(action));
        bench.performs = false;
        bench.start(512);
        bench.run(TIMEOUT + SECOND * 60);
        assert!(bench.told().len() > 5);
        for _ in 0..3600 {
            bench.ping();
            bench.run(TIMEOUT / 2);
        }
        assert_eq!(bench.told(), [], "{action}");
    }
}

#[test]
fn a_shutdown_that_was_performed_is_escalated_although_the_guest_feeds() {
    let mut bench = Bench::new(Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Poweroff));
    bench.start(512);
    bench.run(TIMEOUT);
    for _ in 0..60 {
        bench.ping();
        bench.run(TIMEOUT / 2);
    }
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Shutdown, 1), (Stage::Escalation, Action::Poweroff, 1)]);
    // The escalation fails: it is tried again, whatever the guest does.
    let mut bench = Bench::new(Policy::new(Action::Shutdown).with_escalation(SECOND, Action::Poweroff));
    bench.start(512);
    bench.run(TIMEOUT);
    bench.performs = false;
    for _ in 0..8 {
        bench.ping();
        bench.run(TIMEOUT / 2);
    }
    assert!(bench.told().contains(&(Stage::Escalation, Action::Poweroff, 4)));
}

#[test]
fn an_escalation_that_only_failures_have_caused_ends_with_a_heartbeat() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_escalation(SECOND * 30, Action::Poweroff));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT + SECOND * 2);
    assert!(bench.told().contains(&(Stage::Escalation, Action::Poweroff, 1)));
    bench.ping();
    bench.run(TIMEOUT / 2);
    assert_eq!(bench.told(), []);
}

#[test]
fn starting_the_watchdog_anew_shows_recovery_in_every_model() {
    // A kdump kernel disables the i6300esb when it finds it, and enables it when its watchdog daemon starts.
    let mut bench = Bench::new(nmi_then_poweroff());
    bench.start(512);
    bench.run(TIMEOUT);
    bench.lock_register(0);
    bench.run(SECOND);
    bench.lock_register(2);
    for _ in 0..100 {
        bench.ping();
        bench.run(TIMEOUT / 2);
    }
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1)]);

    // DIAGNOSE X'288' with the function INIT, and a timeout of 15 s.
    let mut gprs = [0; 16];
    gprs[3] = 15;
    let init = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("it is DIAGNOSE X'288'");
    let mut bench = Bench::of(Diag288::new(), nmi_then_poweroff(), Connections::default());
    let arm = |bench: &mut Bench<Diag288>| {
        bench.access(|device, now| device.diagnose(&init, now).unwrap_or(Access::Ignored));
    };
    arm(&mut bench);
    bench.run(SECOND * 15);
    for _ in 0..10 {
        arm(&mut bench);
        bench.run(SECOND * 10);
    }
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1)]);
}

#[test]
fn a_watchdog_that_runs_freely_is_escalated_however_often_it_times_out() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_escalation(SECOND * 30, Action::Poweroff));
    bench.performs = false;
    bench.unlocked(0x00, 10);
    bench.unlocked(0x04, 10);
    bench.lock_register(6);
    bench.run(SECOND);
    assert!(bench.told().contains(&(Stage::Escalation, Action::Poweroff, 1)));
}

#[test]
fn a_new_policy_counts_for_what_is_pending() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
    bench.performs = true;
    let shutdown = Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Poweroff);
    bench.core.set_policy(shutdown, bench.now);
    bench.run(SECOND);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Shutdown, 2)]);
    bench.core.set_policy(shutdown.with_escalation(SECOND * 5, Action::Reset), bench.now);
    bench.run(SECOND * 5);
    assert_eq!(bench.told(), [(Stage::Escalation, Action::Reset, 1)], "the grace lasts no longer than the new one");
    bench.ping();
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Shutdown, 1)]);
    bench.core.set_policy(Policy::new(Action::Shutdown), bench.now);
    bench.run(SECOND * 60);
    assert_eq!(bench.told(), [], "without an escalation there is none");
}

#[test]
fn a_guest_that_only_looks_at_its_watchdog_gains_no_time() {
    let mut bench = Bench::with_steal_limit(Policy::new(Action::Reset), Some(4));
    bench.delays = vec![VcpuDelay::new(0, Duration::ZERO)];
    bench.start(512);
    let step = Duration::from_micros(10);
    while bench.told.is_empty() {
        bench.now = bench.now + step;
        // Every tenth of a second it is starved by 42 us.
        if bench.now.as_nanos() % 100_000_000 < step.as_nanos() as u64 {
            bench.delays[0].delay += Duration::from_micros(42);
        }
        bench.access(|device, now| device.read_config(0x64, &mut [0; 4], now));
        if bench.core.next_wake().is_some_and(|wake| wake <= bench.now) {
            bench.serve();
        }
        assert!(bench.now <= VmInstant::ZERO + TIMEOUT + MILLISECOND * 200, "it has not timed out");
    }
    let stats = bench.core.stats(bench.now);
    assert!(stats.starved <= bench.delays[0].delay, "{stats:?}");
}

#[test]
fn a_halted_vcpu_does_not_speak_for_one_that_is_starved() {
    let mut bench = Bench::with_steal_limit(Policy::new(Action::Reset), Some(4));
    bench.delays = vec![VcpuDelay::new(0, Duration::ZERO), VcpuDelay::new(1, Duration::ZERO)];
    bench.start(512);
    bench.run(MILLISECOND * 10);
    bench.delays[1].delay += TIMEOUT;
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), []);
    bench.run(TIMEOUT);
    let (_, timeout) = bench.told[0];
    let starved = bench.core.stats(bench.now).starved;
    assert!(starved > TIMEOUT / 4, "{starved:?}");
    assert_eq!(timeout.deadline, VmInstant::ZERO + TIMEOUT + starved);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
}

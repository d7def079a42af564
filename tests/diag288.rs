//! The s390x watchdog in the runtime, as a VMM's vCPU thread, event loop and handler use it.

mod common;

use std::time::Duration;

use common::{arrived, recorder};
use vm_watchdog::diag288::{Diag288, Intercept, ProgramInterruption};
use vm_watchdog::{Action, Policy, Stage, VmClock, VmInstant, Watchdog};

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;

const SECOND: Duration = Duration::from_secs(1);
const REFUSED: Intercept = Intercept::Inject(ProgramInterruption::Specification);

/// The instruction that Linux executes, as KVM reports it to a VMM.
fn diag(watchdog: &Watchdog<Diag288>, function: u64, timeout: u64) -> Intercept {
    let mut gprs = [0; 16];
    (gprs[2], gprs[3]) = (function, timeout);
    watchdog.intercept(4, 0x8324, 0x0288_0000, &gprs)
}

#[test]
fn a_guest_that_stops_feeding_times_out_and_the_handler_receives_the_deadline() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::new()).clock(clock).build(handler).unwrap();
    assert_eq!(diag(&watchdog, INIT, 30), Intercept::Done);
    time.advance(SECOND);
    assert_eq!(diag(&watchdog, CHANGE, 15), Intercept::Done);
    time.advance(SECOND * 15 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [], "not one nanosecond early");
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    let event = events.try_recv().expect("a timeout");
    assert_eq!((event.stage, event.action), (Stage::Timeout, Action::Reset));
    assert_eq!(event.deadline, VmInstant::ZERO + SECOND * 16);
    let stats = watchdog.stats();
    assert_eq!((stats.heartbeats, stats.expiries, stats.pretimeouts), (1, 1, 0));
    assert_eq!(stats.last_heartbeat, Some(VmInstant::ZERO + SECOND));
}

#[test]
fn other_intercepts_are_left_to_the_vmm_and_not_counted() {
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::new()).build(handler).unwrap();
    assert_eq!(watchdog.intercept(4, 0x8324, 0x0500_0000, &[0; 16]), Intercept::NotOurs);
    assert_eq!(watchdog.intercept(0x08, 0x8324, 0x0288_0000, &[0; 16]), Intercept::NotOurs);
    assert_eq!(watchdog.stats().ignored_accesses, 0);
    assert_eq!(diag(&watchdog, CHANGE, 15), REFUSED);
    assert_eq!(watchdog.stats().ignored_accesses, 1);
}

/// The contract: "disarms before the action for reset, shutdown, poweroff, inject-nmi; for none, pause and dump it stays
/// armed-and-expired". The model applies the policy of the runtime.
#[test]
fn the_state_after_a_timeout_follows_from_the_policy() {
    for (action, still_armed) in [
        (Action::Reset, false),
        (Action::Shutdown, false),
        (Action::Poweroff, false),
        (Action::InjectNmi, false),
        (Action::None, true),
        (Action::Pause, true),
        (Action::Dump, true),
        (Action::Debug, true),
    ] {
        for timer_is_late in [false, true] {
            let (clock, time) = VmClock::manual();
            let (handler, events) = recorder();
            let policy = Policy::new(action);
            let watchdog = Watchdog::builder("wd", Diag288::new()).clock(clock).policy(policy).build(handler).unwrap();
            assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done);
            time.advance(SECOND * 15);
            if !timer_is_late {
                watchdog.on_readable();
                assert_eq!(watchdog.stats().armed, still_armed, "{action}");
            }
            let change = diag(&watchdog, CHANGE, 15);
            assert_eq!(change, if still_armed { Intercept::Done } else { REFUSED }, "{action}, late {timer_is_late}");
            watchdog.on_readable();
            assert_eq!(arrived(&events), [(Stage::Timeout, action)]);

            assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done, "a guest that recovers is protected again");
            time.advance(SECOND * 15);
            watchdog.on_readable();
            assert_eq!(arrived(&events), [(Stage::Timeout, action)]);
        }
    }
}

#[test]
fn cancel_reset_and_pause_prevent_the_timeout() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::new()).clock(clock.clone()).build(handler).unwrap();
    for end in [|watchdog: &Watchdog<Diag288>| assert_eq!(diag(watchdog, CANCEL, 0), Intercept::Done), Watchdog::reset]
    {
        assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done);
        end(&watchdog);
        time.advance(SECOND * 3600);
        watchdog.on_readable();
        assert_eq!(arrived(&events), []);
        assert_eq!(diag(&watchdog, CHANGE, 15), REFUSED);
    }
    assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done);
    time.advance(SECOND * 14);
    clock.pause();
    time.advance(SECOND * 3600);
    clock.resume();
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(SECOND);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

#[test]
fn a_restored_vm_keeps_its_deadline_and_its_policy() {
    let (clock, time) = VmClock::manual();
    let (handler, _events) = recorder();
    let old = Watchdog::builder("wd", Diag288::new()).clock(clock.clone()).build(handler).unwrap();
    assert_eq!(diag(&old, INIT, 30), Intercept::Done);
    time.advance(SECOND * 20);
    clock.pause();
    let state = old.save();

    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let policy = Policy::new(Action::None);
    let new = Watchdog::builder("wd", Diag288::new()).clock(clock).policy(policy).build(handler).unwrap();
    new.restore_with_policy(&state).unwrap();
    time.advance(SECOND * 10 - Duration::from_nanos(1));
    new.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    new.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
    assert_eq!(diag(&new, CHANGE, 15), REFUSED, "disarmed, because the action of the restored policy is reset");
}

#[test]
fn an_init_after_an_nmi_cancels_the_escalation() {
    for (recovers, heard) in [(true, &[] as &[_]), (false, &[(Stage::Escalation, Action::Reset)])] {
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let policy = Policy::new(Action::InjectNmi).with_escalation(SECOND * 5, Action::Reset);
        let watchdog = Watchdog::builder("wd", Diag288::new()).clock(clock).policy(policy).build(handler).unwrap();
        assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done);
        time.advance(SECOND * 15);
        watchdog.on_readable();
        assert_eq!(arrived(&events), [(Stage::Timeout, Action::InjectNmi)]);
        if recovers {
            assert_eq!(diag(&watchdog, INIT, 15), Intercept::Done);
        }
        time.advance(SECOND * 5);
        watchdog.on_readable();
        assert_eq!(arrived(&events), heard);
    }
}

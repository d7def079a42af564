//! An episode runs from one heartbeat to the next: the deliveries of one have no effect in another.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::{Driver, device, sending};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Action, ActionHandler, Event, HandlerError, ManualClock, Policy, Stage, VmClock, Watchdog};

const SECOND: Duration = Duration::from_secs(1);
/// Two stages of 512 units each.
const TIMEOUT: Duration = Duration::from_nanos(1024 * 983_040);

/// A watchdog whose handler fails while the test says so.
struct Vm {
    watchdog: Watchdog<I6300esb>,
    time: ManualClock,
    events: Receiver<Event>,
    fails: Arc<AtomicBool>,
}

impl Vm {
    fn new(policy: Policy) -> Self {
        let (clock, time) = VmClock::manual();
        let fails = Arc::new(AtomicBool::new(false));
        let (sender, events) = channel();
        let (record, failing) = (sending(sender), fails.clone());
        let handler = move |event: &Event| -> Result<(), HandlerError> {
            record.perform(event)?;
            if failing.load(Ordering::SeqCst) { Err("the management socket is down".into()) } else { Ok(()) }
        };
        let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy);
        let watchdog = builder.build(handler).unwrap();
        watchdog.start(512);
        Self { watchdog, time, events, fails }
    }

    fn failing(policy: Policy) -> Self {
        let vm = Self::new(policy);
        vm.fails.store(true, Ordering::SeqCst);
        vm
    }

    /// Advances the time in steps of a millisecond, and serves the timer after each.
    fn run(&self, time: Duration) {
        let millisecond = Duration::from_millis(1);
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(millisecond);
            self.time.advance(step);
            self.watchdog.on_readable();
            left -= step;
        }
    }

    fn feed_for(&self, time: Duration, interval: Duration) {
        let mut passed = Duration::ZERO;
        while passed < time {
            self.watchdog.ping();
            self.run(interval);
            passed += interval;
        }
    }

    /// The events that the handler received, except for those whose action is `none`.
    fn told(&self) -> Vec<Event> {
        self.events.try_iter().filter(|event| event.action != Action::None).collect()
    }

    fn actions(&self) -> Vec<(Stage, Action)> {
        self.told().iter().map(|event| (event.stage, event.action)).collect()
    }
}

#[test]
fn a_healthy_guest_is_not_powered_off_because_an_nmi_failed() {
    let vm = Vm::failing(Policy::new(Action::InjectNmi).with_escalation(SECOND * 30, Action::Poweroff));
    vm.run(TIMEOUT);
    vm.feed_for(SECOND * 3, Duration::from_millis(10));
    vm.fails.store(false, Ordering::SeqCst);
    vm.feed_for(SECOND * 40, TIMEOUT / 2);
    assert!(vm.actions().iter().all(|(stage, _)| *stage != Stage::Escalation));
}

#[test]
fn a_second_timeout_is_delivered_at_its_own_deadline_as_a_first_attempt() {
    let vm = Vm::failing(Policy::new(Action::Reset));
    vm.run(TIMEOUT + SECOND * 40);
    vm.watchdog.ping();
    let fed = vm.watchdog.clock().now();
    vm.told();
    vm.run(TIMEOUT + Duration::from_millis(1));
    let told = vm.told();
    let first = told.first().expect("the second timeout");
    assert_eq!((first.deadline, first.attempt), (fed + TIMEOUT, 1));
    assert!(first.lateness() <= Duration::from_millis(2), "{:?} late", first.lateness());
}

#[test]
fn the_pretimeout_of_a_second_episode_is_not_lost_in_a_retry_of_the_first() {
    let vm = Vm::failing(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    vm.run(TIMEOUT * 4 / 5);
    assert!(vm.actions().contains(&(Stage::Pretimeout, Action::InjectNmi)));
    vm.watchdog.ping();
    let fed = vm.watchdog.clock().now();
    vm.run(TIMEOUT / 3);
    assert_eq!(vm.actions(), [], "a failed NMI is not tried again on a guest that has fed since");
    vm.run(TIMEOUT / 2);
    let told = vm.told();
    let pretimeout = told.first().expect("the pretimeout of the second episode");
    assert_eq!((pretimeout.stage, pretimeout.attempt), (Stage::Pretimeout, 1));
    assert!(pretimeout.deadline >= fed + TIMEOUT / 2);
}

#[test]
fn a_guest_that_has_fed_for_an_hour_is_not_reset_by_a_retry() {
    let vm = Vm::failing(Policy::new(Action::Reset));
    vm.run(TIMEOUT + SECOND);
    vm.feed_for(SECOND * 60, TIMEOUT / 2);
    vm.told();
    vm.fails.store(false, Ordering::SeqCst);
    vm.feed_for(SECOND * 60, TIMEOUT / 2);
    assert_eq!(vm.actions(), []);
}

#[test]
fn starting_the_watchdog_anew_shows_recovery() {
    let vm = Vm::new(Policy::new(Action::InjectNmi).with_escalation(SECOND * 10, Action::Poweroff));
    vm.run(TIMEOUT);
    assert_eq!(vm.actions(), [(Stage::Timeout, Action::InjectNmi)]);
    // A kdump kernel disables the device when its driver starts, and enables it when its watchdog daemon starts.
    vm.watchdog.disable();
    vm.run(SECOND);
    vm.watchdog.set_preload(0x00, 0xF_FFFF);
    vm.watchdog.enable();
    vm.run(SECOND * 20);
    assert_eq!(vm.actions(), []);
}

#[test]
fn a_guest_that_feeds_a_little_after_half_of_its_timeout_does_not_see_the_pretimeout_action() {
    let vm = Vm::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    vm.feed_for(SECOND * 20, TIMEOUT * 55 / 100);
    assert_eq!(vm.actions(), []);
    assert!(vm.watchdog.stats().pretimeouts > 0, "stage 1 has ended each time");
    vm.run(TIMEOUT);
    assert_eq!(vm.actions(), [(Stage::Pretimeout, Action::InjectNmi), (Stage::Timeout, Action::Reset)]);
}

//! Guests that do not know of a reset of their device: they are found, and get their watchdog back if the host wants it.

mod common;

use std::sync::mpsc::Receiver;
use std::time::Duration;

use common::{Driver, UNIT, arrived, device, recorder};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Action, Event, ManualClock, Stage, Stats, VmClock, VmInstant, Watchdog};

const SECOND: Duration = Duration::from_secs(1);
/// A timeout of 4 s, as Linux sets it.
const UNITS: u32 = 2048;

struct Vm {
    watchdog: Watchdog<I6300esb>,
    clock: VmClock,
    time: ManualClock,
    events: Receiver<Event>,
}

impl Vm {
    fn new(rearms: bool) -> Self {
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone());
        let builder = if rearms { builder.rearm_after_reset() } else { builder };
        Self { watchdog: builder.build(handler).unwrap(), clock, time, events }
    }

    /// A VM whose guest feeds an armed watchdog, and whose VMM has then loaded a snapshot.
    fn reset_while_armed(rearms: bool) -> Self {
        let vm = Self::new(rearms);
        vm.boot_linux();
        vm.watchdog.enable();
        vm.feed(5, SECOND);
        vm.watchdog.reset();
        vm
    }

    /// Linux' driver attaches.
    fn boot_linux(&self) {
        self.watchdog.write_config(0x60, &[3, 0]);
        self.watchdog.write_config(0x68, &[0]);
        self.watchdog.unlock();
        self.watchdog.write_bar(0x0C, &[0x00, 0x03]);
        self.watchdog.set_preloads(UNITS);
        self.watchdog.ping();
    }

    fn feed(&self, times: u32, interval: Duration) {
        for _ in 0..times {
            self.wait(interval);
            self.watchdog.ping();
        }
    }

    fn wait(&self, time: Duration) {
        self.time.advance(time);
        self.watchdog.on_readable();
    }

    fn stats(&self) -> Stats {
        self.watchdog.stats()
    }

    /// Whether a timeout was acted on since the last call.
    fn has_timed_out(&self) -> bool {
        arrived(&self.events).contains(&(Stage::Timeout, Action::Reset))
    }
}

#[test]
fn a_guest_that_feeds_on_after_a_reset_has_its_watchdog_back_at_the_third_heartbeat() {
    let vm = Vm::reset_while_armed(true);
    vm.feed(2, SECOND);
    assert!(!vm.stats().armed);
    vm.feed(1, SECOND);
    let stats = vm.stats();
    assert!(stats.armed && !stats.unprotected);
    assert_eq!((stats.heartbeats, stats.heartbeats_while_disarmed), (5 + 1, 2 + 3), "the driver sent two, too");
    assert_eq!((stats.rearmed, stats.found_unprotected), (1, 0));
    assert_eq!(stats.time_left, Some(UNIT * 2 * UNITS), "a full period");

    // It is fed for as long as it likes, and then dies.
    vm.feed(20, SECOND);
    assert!(!vm.has_timed_out());
    let last = vm.clock.now();
    vm.wait(UNIT * 2 * UNITS - Duration::from_nanos(1));
    assert!(!vm.has_timed_out());
    vm.wait(Duration::from_nanos(1));
    let event = vm.events.try_iter().find(|event| event.stage == Stage::Timeout).expect("a timeout");
    assert_eq!(event.deadline, last + UNIT * 2 * UNITS);
    assert_eq!(event.last_heartbeat, Some(last));
}

#[test]
fn a_guest_that_dies_right_after_it_has_its_watchdog_back_times_out_a_whole_period_later() {
    let vm = Vm::reset_while_armed(true);
    vm.feed(3, SECOND);
    let armed = vm.clock.now();
    vm.wait(Duration::from_secs(60));
    let event = vm.events.try_iter().find(|event| event.stage == Stage::Timeout).expect("a timeout");
    assert_eq!(event.deadline, armed + UNIT * 2 * UNITS);
}

#[test]
fn without_the_option_the_guest_is_found_unprotected_once() {
    let vm = Vm::reset_while_armed(false);
    vm.feed(2, SECOND);
    assert!(!vm.stats().unprotected);
    vm.feed(100, SECOND);
    let stats = vm.stats();
    assert!(stats.unprotected && !stats.armed);
    assert_eq!((stats.found_unprotected, stats.rearmed), (1, 0));
    assert_eq!((stats.heartbeats, stats.heartbeats_while_disarmed), (5, 2 + 102));
    vm.wait(Duration::from_secs(3600));
    assert!(!vm.has_timed_out());

    // A reset, or a guest that arms or disarms it, ends that.
    for end in [Watchdog::reset, Driver::enable, Driver::disable] {
        let vm = Vm::reset_while_armed(false);
        vm.feed(3, SECOND);
        assert!(vm.stats().unprotected);
        end(&vm.watchdog);
        assert!(!vm.stats().unprotected);
    }
    // The next reset may be one of another snapshot.
    vm.watchdog.reset();
    vm.feed(3, SECOND);
    assert_eq!((vm.stats().unprotected, vm.stats().found_unprotected), (true, 2));
}

#[test]
fn a_new_device_finds_a_guest_that_believes_in_its_protection() {
    // The VMM has restored its guest and has forgotten the watchdog: nothing is known of the guest's registers.
    let vm = Vm::new(true);
    vm.feed(3, SECOND);
    let stats = vm.stats();
    assert!(stats.unprotected && !stats.armed);
    assert_eq!((stats.found_unprotected, stats.rearmed), (1, 0));
}

#[test]
fn a_guest_that_boots_gets_only_what_it_sets() {
    let vm = Vm::reset_while_armed(true);
    vm.boot_linux();
    // The user changes the timeout many times before the watchdog is opened.
    vm.feed(100, SECOND);
    assert!(!vm.stats().armed && !vm.stats().unprotected);
    vm.watchdog.set_preloads(60 << 9);
    vm.watchdog.enable();
    assert_eq!(vm.stats().time_left, Some(UNIT * 2 * (60 << 9)));
    vm.watchdog.disable();
    vm.watchdog.reset();
    vm.feed(100, SECOND);
    assert!(!vm.stats().armed, "it was disarmed before the reset");
    assert_eq!(vm.stats().rearmed, 0);
}

#[test]
fn a_guest_that_boots_without_its_driver_is_left_alone() {
    let vm = Vm::reset_while_armed(true);
    vm.wait(Duration::from_secs(100_000));
    assert!(!vm.stats().armed && !vm.stats().unprotected && !vm.has_timed_out());
}

#[test]
fn a_guest_that_feeds_more_slowly_than_the_last_timeout_has_set_another_one() {
    // The snapshot is from before the guest has shortened its timeout to 4 s. Armed with 4 s it would be reset.
    for (interval, is_rearmed) in [(UNIT * 2 * UNITS - Duration::from_nanos(1), true), (UNIT * 2 * UNITS, false)] {
        let vm = Vm::reset_while_armed(true);
        vm.feed(1, SECOND);
        vm.feed(1, interval);
        vm.feed(2, SECOND);
        assert_eq!((vm.stats().armed, vm.stats().unprotected), (is_rearmed, !is_rearmed));
    }
}

#[test]
fn a_pause_is_no_time_between_heartbeats() {
    let vm = Vm::reset_while_armed(true);
    vm.feed(2, SECOND / 4);
    vm.clock.pause();
    vm.time.advance(Duration::from_secs(3600));
    vm.clock.resume();
    vm.feed(1, SECOND / 4);
    assert!(!vm.stats().armed, "half a second of the VM's time");
    vm.feed(1, SECOND);
    assert!(vm.stats().armed, "no heartbeat was late");
}

#[test]
fn what_was_before_the_reset_is_restored_in_another_process() {
    let old = Vm::reset_while_armed(true);
    let new = Vm::new(true);
    new.time.advance(Duration::from_secs(77));
    new.watchdog.restore(&old.watchdog.save()).unwrap();
    // The connection of the next VMM.
    new.watchdog.reset();
    new.feed(3, SECOND);
    assert_eq!((new.stats().rearmed, new.stats().time_left), (1, Some(UNIT * 2 * UNITS)));
}

#[test]
fn heartbeats_before_a_restore_do_not_count_after_it() {
    let vm = Vm::reset_while_armed(true);
    vm.feed(2, SECOND);
    let state = vm.watchdog.save();
    vm.watchdog.restore(&state).unwrap();
    vm.feed(2, SECOND);
    assert!(!vm.stats().armed);
    vm.feed(1, SECOND);
    assert!(vm.stats().armed);
    assert!(vm.clock.now() > VmInstant::ZERO);
}

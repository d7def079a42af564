//! The watchdog behind the ACPI watchdog table in the runtime, as a VMM's bus, event loop and handler use it.

mod common;

use std::time::Duration;

use common::{arrived, recorder};
use vm_watchdog::wdat::Wdat;
use vm_watchdog::{Action, ManualClock, Policy, Stage, VmClock, VmInstant, Watchdog};

const RELOAD: u64 = 0x0;
const COUNT: u64 = 0x4;
const CONTROL: u64 = 0x8;
const STATUS: u64 = 0xC;

const SECOND: Duration = Duration::from_secs(1);

fn write(watchdog: &Watchdog<Wdat>, register: u64, value: u32) {
    watchdog.write(register, &value.to_le_bytes());
}

fn read(watchdog: &Watchdog<Wdat>, register: u64) -> u32 {
    let mut data = [0; 4];
    watchdog.read(register, &mut data);
    u32::from_le_bytes(data)
}

/// Linux opens the device file and sets a timeout.
fn open(watchdog: &Watchdog<Wdat>, seconds: u32) {
    write(watchdog, CONTROL, 1);
    write(watchdog, RELOAD, seconds * 1_000);
    write(watchdog, COUNT, 1);
}

#[test]
fn a_guest_that_stops_feeding_times_out_and_reads_the_cause_after_the_reset() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", Wdat::default()).clock(clock).build(handler).unwrap();
    open(&watchdog, 10);
    time.advance(SECOND * 9);
    write(&watchdog, COUNT, 1);
    time.advance(SECOND * 10 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [], "not one nanosecond early");
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    let event = events.try_recv().expect("a timeout");
    assert_eq!((event.stage, event.action), (Stage::Timeout, Action::Reset));
    assert_eq!(event.deadline, VmInstant::ZERO + SECOND * 19);
    let stats = watchdog.stats();
    assert_eq!((stats.heartbeats, stats.expiries, stats.pretimeouts, stats.ignored_accesses), (2, 1, 0, 0));

    watchdog.reset();
    assert_eq!(read(&watchdog, STATUS), 1);
    assert!(watchdog.timed_out() && watchdog.last_reset().by_watchdog);
    write(&watchdog, STATUS, 1);
    assert!(!watchdog.last_reset().by_watchdog);
}

#[test]
fn a_paused_guest_keeps_its_countdown() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", Wdat::default()).clock(clock.clone()).build(handler).unwrap();
    open(&watchdog, 10);
    time.advance(SECOND * 4);
    clock.pause();
    time.advance(SECOND * 100);
    watchdog.on_readable();
    clock.resume();
    assert_eq!(read(&watchdog, COUNT), 6_000);
    time.advance(SECOND * 6 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

/// A guest 4 s after a heartbeat of a timeout of 10 s, in its second boot: the watchdog was the cause of the first reset.
fn second_boot() -> (Watchdog<Wdat>, ManualClock) {
    let (clock, time) = VmClock::manual();
    let policy = Policy::new(Action::Poweroff);
    let watchdog = Watchdog::builder("wd", Wdat::default()).clock(clock).policy(policy).build(recorder().0).unwrap();
    open(&watchdog, 10);
    time.advance(SECOND * 10);
    watchdog.on_readable();
    watchdog.reset();
    open(&watchdog, 10);
    time.advance(SECOND * 4);
    (watchdog, time)
}

#[test]
fn a_restored_guest_times_out_after_its_remaining_time() {
    let state = second_boot().0.save();
    let (clock, time) = VmClock::manual();
    time.advance(SECOND * 1_000);
    let (handler, events) = recorder();
    let restored = Watchdog::builder("wd", Wdat::default()).clock(clock).build(handler).unwrap();
    restored.restore(&state).unwrap();
    assert_eq!([RELOAD, COUNT, CONTROL, STATUS].map(|register| read(&restored, register)), [10_000, 6_000, 1, 1]);
    time.advance(SECOND * 6 - Duration::from_nanos(1));
    restored.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    restored.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)], "the policy is the operator's");
}

#[cfg(feature = "serde")]
#[test]
fn version_1_is_saved_as_the_golden_file_says_and_restored_from_it() {
    use vm_watchdog::{AnyWatchdog, AnyWatchdogState};

    let golden = include_str!("golden/wdat-v1.json");
    let watchdog = AnyWatchdog::from(second_boot().0);
    let written = serde_json::to_string_pretty(&watchdog.save()).unwrap();
    assert_eq!(written, golden.trim_end(), "{written}");
    let state: AnyWatchdogState = serde_json::from_str(golden).unwrap();
    let restored = AnyWatchdog::from(Watchdog::builder("wd", Wdat::default()).build(recorder().0).unwrap());
    restored.restore(&state).unwrap();
    let typed = restored.downcast::<Wdat>().unwrap();
    assert_eq!((read(&typed, RELOAD), read(&typed, STATUS)), (10_000, 1));
}

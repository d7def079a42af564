//! The timer and the clock in real time: never early, never lost, and no work for heartbeats.

mod common;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use common::{Driver, UNIT, arrived, device, recorder};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Action, Event, HandlerError, MIN_WAKE_INTERVAL, Policy, Stage, VmClock, Watchdog};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The limit of a wait, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_timeout_is_never_early_and_comes_from_the_thread() {
    let (handler, events) = recorder();
    let policy = Policy::default().with_pretimeout(Action::InjectNmi);
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).policy(policy).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let started = Instant::now();
    watchdog.start(50);
    let pretimeout = events.recv_timeout(LIMIT).expect("a pretimeout");
    assert!(started.elapsed() >= UNIT * 75);
    let timeout = events.recv_timeout(LIMIT).expect("a timeout");
    assert!(started.elapsed() >= UNIT * 100);
    assert_eq!((pretimeout.stage, timeout.stage), (Stage::Pretimeout, Stage::Timeout));
    assert!(timeout.observed >= timeout.deadline);
    assert_eq!(timeout.deadline.saturating_duration_since(pretimeout.deadline), UNIT * 25);
}

/// Reads from Linux when the timer goes off: never before the deadline, and later by at most the duration of the call
/// that armed it.
#[test]
fn the_timer_is_armed_for_the_deadline_itself() {
    let clock = VmClock::monotonic();
    let failing = |_: &Event| -> Result<(), HandlerError> { Err("not now".into()) };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(failing).unwrap();
    let armed_after = |what: &str, delay: Duration, call: &dyn Fn()| {
        let called = clock.now();
        call();
        // The call has made the descriptor readable, and the loop serves it.
        watchdog.on_readable();
        let returned = clock.now();
        let left = watchdog.keep_fds().into_iter().find_map(time_left_on).expect("a timerfd");
        let (at_least, at_most) = (returned + left, clock.now() + left);
        assert!(at_most >= called + delay, "{what}: armed for {at_most} or before, called at {called}");
        assert!(at_least <= returned + delay, "{what}: armed for {at_least} or later, returned at {returned}");
    };

    watchdog.set_preloads(0xF_FFFF);
    // Within this time a second change of the deadline would make the watchdog wake before the deadline.
    let between = || thread::sleep(MIN_WAKE_INTERVAL);
    armed_after("the start", UNIT * 0xF_FFFF * 2, &|| watchdog.enable());
    watchdog.set_preloads(60_000);
    between();
    armed_after("a shorter deadline", UNIT * 60_000 * 2, &|| watchdog.ping());
    between();
    clock.pause();
    let left = watchdog.stats().time_left.expect("the watchdog runs");
    thread::sleep(Duration::from_millis(5));
    armed_after("the end of a pause", left, &|| clock.resume());

    between();
    watchdog.disable();
    watchdog.start(1);
    thread::sleep(UNIT * 2);
    armed_after("the first retry", Duration::from_millis(100), &|| ());
}

/// The time until this descriptor goes off, if it is a timerfd.
fn time_left_on(descriptor: RawFd) -> Option<Duration> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
    let value = info.lines().find_map(|line| line.strip_prefix("it_value: ("))?;
    let (seconds, nanos) = value.trim_end_matches(')').split_once(", ").unwrap_or_else(|| panic!("{info}"));
    Some(Duration::new(seconds.parse().unwrap(), nanos.parse().unwrap()))
}

#[test]
fn ten_thousand_heartbeats_wake_no_thread() {
    let (clock, time) = VmClock::manual();
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    watchdog.start(512);
    for _ in 0..10_000 {
        watchdog.ping();
    }
    assert_eq!((watchdog.stats().heartbeats, watchdog.stats().wakes), (10_000, 0));
    // When the timer goes off at the old deadline, the watchdog arms it for the new one and reports nothing.
    time.advance(UNIT * 511);
    watchdog.ping();
    time.advance(UNIT);
    watchdog.on_readable();
    assert_eq!(watchdog.stats().pretimeouts, 0);
    time.advance(UNIT * 511);
    watchdog.on_readable();
    assert_eq!(watchdog.stats().pretimeouts, 1);
}

#[test]
fn a_shorter_deadline_takes_effect_at_once() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(0xF_FFFF);
    assert_eq!(events.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
    watchdog.set_preloads(10);
    watchdog.ping();
    events.recv_timeout(LIMIT).expect("the shorter deadline counts, not the 17 minutes that were armed");
}

#[test]
fn a_free_running_timer_of_one_microsecond_wakes_the_host_a_thousand_times_a_second_at_most() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let started = Instant::now();
    watchdog.write_config(0x60, &[0x07, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    thread::sleep(Duration::from_millis(500));
    watchdog.disable();
    let wakes = u128::from(watchdog.stats().wakes);
    let most = started.elapsed().as_nanos() / MIN_WAKE_INTERVAL.as_nanos() + 1;
    assert!(wakes <= most, "{wakes} wakes, at most {most} are allowed");
    assert!(!arrived(&events).is_empty(), "it times out");
}

#[test]
fn a_guest_that_keeps_moving_its_deadline_nearer_wakes_the_host_no_more_often() {
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let started = Instant::now();
    watchdog.start(0xF_FFFF);
    let mut moves = 0;
    while started.elapsed() < Duration::from_millis(500) {
        moves += 1;
        watchdog.set_preloads(0xF_FFFF - moves % 0xF_FFFF);
        watchdog.ping();
        if moves % 1000 == 0 {
            watchdog.disable();
            watchdog.enable();
        }
    }
    let wakes = u128::from(watchdog.stats().wakes);
    let most = started.elapsed().as_nanos() / MIN_WAKE_INTERVAL.as_nanos() + 2;
    assert!(wakes <= most, "{wakes} wakes for {moves} moves, at most {most} are allowed");
}

#[test]
fn the_descriptor_wakes_any_event_loop_and_is_quiet_afterwards() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let epoll = Epoll::new().unwrap();
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, watchdog.as_raw_fd(), interest).unwrap();
    let mut ready = [EpollEvent::default()];
    let mut wait = |millis| epoll.wait(millis, &mut ready).unwrap();
    assert_eq!(wait(0), 0, "an idle watchdog does not wake its VMM");
    watchdog.start(2);
    while arrived(&events).last().map(|event| event.0) != Some(Stage::Timeout) {
        assert_eq!(wait(LIMIT.as_millis() as i32), 1);
        watchdog.on_readable();
    }
    assert_eq!(wait(50), 0, "an expired watchdog does not wake its VMM again");
}

#[test]
fn a_manual_clock_wakes_the_watchdogs_thread() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(0xF_FFFF);
    time.advance(Duration::from_secs(3600));
    assert_eq!(events.recv_timeout(LIMIT).expect("a timeout").stage, Stage::Timeout);
}

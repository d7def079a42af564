//! The thread of a watchdog: what runs first in it, and how it ends.

mod common;

use std::io;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::{Driver, arrived, device, recorder};
use vm_watchdog::diag288::Diag288;
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Action, AnyWatchdog, Event, LastReset, Stage, VmClock, VmInstant, Watchdog};

/// Long enough for any thread to run, on any machine.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn init_runs_first_in_the_new_thread() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let (sender, receiver) = channel();
    let thread = watchdog.spawn_with(move || sender.send(thread::current().id()).map_err(io::Error::other));
    let thread = thread.unwrap();
    let first = receiver.try_recv().expect("it has run when spawn_with returns");
    assert_ne!(first, thread::current().id());
    watchdog.start(1);
    events.recv_timeout(LIMIT).expect("a timeout");
    drop(thread);
}

#[test]
fn an_init_that_fails_or_panics_is_the_error_and_leaves_no_thread() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let refused = watchdog.spawn_with(|| Err(io::Error::other("no such filter"))).unwrap_err();
    assert_eq!(refused.to_string(), r#"the thread of watchdog "wd" did not start"#);
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(source, "no such filter");
    let panicked = AnyWatchdog::from(watchdog.clone()).spawn_with(|| panic!("a bug")).unwrap_err();
    assert_eq!(std::error::Error::source(&panicked).unwrap().to_string(), "panic: a bug");

    watchdog.start(0);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(arrived(&events), [], "nothing serves the watchdog");
    let _thread = watchdog.spawn().unwrap();
    events.recv_timeout(LIMIT).expect("a timeout");
}

#[test]
fn the_handle_and_the_thread_are_dropped_in_either_order() {
    for thread_first in [true, false] {
        let (handler, events) = recorder();
        let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
        let thread = watchdog.spawn().unwrap();
        watchdog.start(20);
        if thread_first {
            drop(thread);
            drop(watchdog);
        } else {
            drop(watchdog);
            // The thread keeps the watchdog alive and serves it.
            events.recv_timeout(LIMIT).expect("a timeout");
            drop(thread);
        }
        // Both are gone, and with them the handler.
        while events.recv_timeout(LIMIT).is_ok() {}
    }
}

#[test]
fn a_clock_that_is_born_paused_starts_at_its_instant() {
    let start = VmInstant::from_nanos(7_000_000_000);
    let clock = VmClock::monotonic_paused_at(start);
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!((clock.now(), clock.is_paused(), arrived(&events)), (start, true, vec![]));
    assert!(clock.quiesce(LIMIT));
    let state = watchdog.save();
    assert_eq!(state.vm_time(), start);

    clock.resume();
    let event = events.recv_timeout(LIMIT).expect("a timeout");
    assert!(event.deadline > start);
}

#[test]
fn a_paused_vm_is_saved_and_restored_without_a_thread() {
    let saved = Watchdog::builder("wd", device(InterruptPin::None)).build(|_: &Event| Ok(())).unwrap();
    saved.start(512);
    saved.clock().pause();
    let state = saved.save();

    let (handler, events) = recorder();
    let clock = VmClock::monotonic_paused_at(state.vm_time());
    let new = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    new.restore(&state).unwrap();
    assert_eq!(new.save(), state);
    assert_eq!(new.stats().time_left, saved.stats().time_left);
    // The thread comes when the VM runs.
    let _thread = new.spawn().unwrap();
    clock.resume();
    assert_eq!(events.recv_timeout(LIMIT).expect("a timeout").stage, Stage::Timeout);
}

#[test]
fn the_cause_of_a_reset_passes_to_a_device_that_is_made_anew() {
    let (clock, time) = VmClock::manual();
    let make = |last: LastReset| {
        let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).last_reset(last);
        builder.build(|_: &Event| Ok(())).unwrap()
    };
    let watchdog = make(LastReset::default());
    assert_eq!(watchdog.last_reset(), LastReset::new(false));
    watchdog.start(1);
    time.advance(Duration::from_secs(1));
    watchdog.on_readable();
    let last = AnyWatchdog::from(watchdog.clone()).last_reset();
    assert!(last.by_watchdog);

    drop(watchdog);
    let watchdog = make(last);
    let mut reload = [0; 2];
    watchdog.read_bar(0x0C, &mut reload);
    assert_eq!(u16::from_le_bytes(reload) & 0x0200, 0x0200, "the guest reads WDT_TIMEOUT");
    watchdog.clear_timeout();
    assert_eq!(watchdog.last_reset(), LastReset::default());
}

#[test]
fn the_cause_of_a_reset_passes_on_with_diag288_too() {
    let (clock, time) = VmClock::manual();
    let make = |last: LastReset| {
        let builder = Watchdog::builder("wd", Diag288::new()).clock(clock.clone()).last_reset(last);
        builder.build(|_: &Event| Ok(())).unwrap()
    };
    let arm = |watchdog: &Watchdog<Diag288>| {
        let mut gprs = [0; 16];
        gprs[3] = 15;
        assert_eq!(watchdog.intercept(4, 0x8324, 0x0288_0000, &gprs), vm_watchdog::diag288::Intercept::Done);
    };
    let watchdog = make(LastReset::default());
    arm(&watchdog);
    assert_eq!(watchdog.last_reset(), LastReset::default());
    time.advance(Duration::from_secs(15));
    watchdog.on_readable();
    watchdog.reset();
    assert!(watchdog.last_reset().by_watchdog, "a reset keeps it");

    let watchdog = make(watchdog.last_reset());
    assert!(watchdog.last_reset().by_watchdog);
    let state = watchdog.save();
    arm(&watchdog);
    assert_eq!(watchdog.last_reset(), LastReset::default(), "the guest of the next boot has armed it");
    watchdog.restore(&state).unwrap();
    assert!(watchdog.last_reset().by_watchdog, "it is saved");
    assert_eq!(watchdog.policy().timeout, Action::Reset);
}

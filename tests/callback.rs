//! The callback contract: no lock held, re-entrant, a failure is retried, a slow handler delays its own watchdog only.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::{Driver, UNIT, arrived, device, recorder, sending};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{
    Action, ActionHandler, Event, HandlerError, ManualClock, Policy, Stage, VmClock, VmInstant, Watchdog,
    WatchdogThread, WeakWatchdog,
};

const RESET: (Stage, Action) = (Stage::Timeout, Action::Reset);
const DUMP: (Stage, Action) = (Stage::Pretimeout, Action::Dump);
/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_handler_receives_both_stages_with_their_exact_deadlines() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let policy = Policy::new(Action::Reset).with_pretimeout(Action::Dump);
    let builder = Watchdog::builder("wd0", device(InterruptPin::None)).clock(clock).policy(policy);
    let watchdog = builder.build(handler).unwrap();
    watchdog.start(512);

    time.advance(UNIT * 1024 - Duration::from_nanos(1));
    watchdog.on_readable();
    let pretimeout = events.try_recv().expect("a pretimeout");
    assert_eq!((pretimeout.stage, pretimeout.action), DUMP);
    assert_eq!(pretimeout.deadline, VmInstant::ZERO + UNIT * 768, "a quarter of the period before the timeout");
    assert_eq!(arrived(&events), [], "not one nanosecond early");

    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    let timeout = events.try_recv().expect("a timeout");
    assert_eq!((timeout.stage, timeout.action, timeout.attempt), (Stage::Timeout, Action::Reset, 1));
    assert_eq!(timeout.deadline.as_nanos(), 1_006_632_960);
    assert_eq!((&*timeout.id, timeout.lateness()), ("wd0", Duration::ZERO));
}

#[test]
fn one_expiry_fires_once_however_often_and_late_the_timer_is_served() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    watchdog.start(512);
    time.advance(Duration::from_secs(3600));
    for _ in 0..10 {
        watchdog.on_readable();
    }
    assert_eq!(arrived(&events), [RESET]);
    assert_eq!((watchdog.stats().pretimeouts, watchdog.stats().expiries), (1, 1));
}

#[test]
fn a_heartbeat_before_a_late_timer_does_not_lose_the_timeout() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 1024);
    watchdog.ping();
    watchdog.disable();
    watchdog.on_readable();
    assert_eq!(arrived(&events), [RESET]);
}

#[test]
fn a_guest_that_recovers_is_protected_again() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let policy = Policy::new(Action::InjectNmi);
    let watchdog =
        Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy).build(handler).unwrap();
    watchdog.start(512);
    let mut last_heartbeat = None;
    for _ in 0..3 {
        time.advance(Duration::from_secs(60));
        watchdog.on_readable();
        let fired: Vec<_> = events.try_iter().map(|event| (event.action, event.last_heartbeat)).collect();
        assert_eq!(fired, [(Action::InjectNmi, last_heartbeat)]);
        watchdog.ping();
        last_heartbeat = Some(watchdog.clock().now());
    }
    assert_eq!(watchdog.stats().heartbeats, 3);
}

/// A watchdog whose handler calls back into it and resets it, when `stage` ends.
fn resetting_itself_at(stage: Stage, clock: VmClock) -> (Watchdog<I6300esb>, Receiver<Event>) {
    let (sender, events) = channel();
    let policy = Policy::new(Action::Reset).with_pretimeout(Action::Dump).with_escalation(SECOND, Action::Poweroff);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy);
    let watchdog = builder.build_cyclic(|itself: &WeakWatchdog<I6300esb>| {
        let (itself, record) = (itself.clone(), sending(sender));
        move |event: &Event| -> Result<(), HandlerError> {
            let watchdog = itself.upgrade().ok_or("the watchdog is gone")?;
            if event.stage == stage {
                watchdog.clock().pause();
                assert!(watchdog.clock().quiesce(LIMIT), "quiesce does not wait for the handler that calls it");
                watchdog.reset();
                watchdog.on_readable();
                watchdog.clock().resume();
                watchdog.on_readable();
            }
            record.perform(event)
        }
    });
    (watchdog.unwrap(), events)
}

#[test]
fn the_handler_may_reset_the_device_from_inside_itself() {
    for (stage, told) in [(Stage::Pretimeout, &[DUMP] as &[_]), (Stage::Timeout, &[DUMP, RESET])] {
        let (clock, time) = VmClock::manual();
        let (watchdog, events) = resetting_itself_at(stage, clock);
        watchdog.start(512);
        time.advance(UNIT * 1024);
        watchdog.on_readable();
        time.advance(Duration::from_secs(3600));
        watchdog.on_readable();
        assert_eq!(arrived(&events), told, "a reset cancels what is pending, the escalation too");
        assert!(!watchdog.stats().armed);
        assert!(watchdog.timed_out(), "the guest that boots next reads the cause");

        watchdog.start(512);
        time.advance(UNIT * 768);
        watchdog.on_readable();
        assert_eq!(arrived(&events), [DUMP], "the guest that boots next is protected");
    }
}

#[test]
fn a_handler_that_fails_twice_is_called_a_third_time() {
    let (clock, time) = VmClock::manual();
    let failures_left = AtomicU32::new(2);
    let (sender, events) = channel();
    let record = Mutex::new(sender);
    let handler = move |event: &Event| -> Result<(), HandlerError> {
        if event.stage == Stage::Pretimeout {
            return Ok(());
        }
        record.lock().unwrap().send(event.clone())?;
        let failed = failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if failed.is_ok() { Err("the management socket is down".into()) } else { Ok(()) }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    watchdog.start(512);
    let timed_out = UNIT * 1024;
    time.advance(timed_out);
    for pause in [0, 99, 1, 199, 1, 3_600_000] {
        time.advance(Duration::from_millis(pause));
        watchdog.on_readable();
    }
    let tries: Vec<_> = events.try_iter().map(|event| (event.attempt, event.lateness().as_millis())).collect();
    assert_eq!(tries, [(1, 0), (2, 100), (3, 300)]);
    assert_eq!((watchdog.stats().action_failures, watchdog.stats().expiries), (2, 1));
}

#[test]
fn a_handler_that_keeps_failing_is_called_after_pauses_that_double_up_to_ten_seconds() {
    let (clock, time) = VmClock::manual();
    let (sender, events) = channel();
    let record = sending(sender);
    let handler = move |event: &Event| -> Result<(), HandlerError> {
        record.perform(event)?;
        if event.stage == Stage::Timeout { Err("the management socket is down".into()) } else { Ok(()) }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).build(handler).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 1024);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [RESET]);
    for (pause, attempt) in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000].into_iter().zip(2..) {
        time.advance(Duration::from_millis(pause) - Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(arrived(&events), [], "{pause} ms are not over");
        time.advance(Duration::from_nanos(1));
        watchdog.on_readable();
        let attempts: Vec<_> = events.try_iter().map(|event| event.attempt).collect();
        assert_eq!(attempts, [attempt], "after {pause} ms");
    }
}

#[test]
fn a_handler_that_panics_has_failed() {
    let (clock, time) = VmClock::manual();
    let handler = |event: &Event| -> Result<(), HandlerError> {
        if event.attempt == 1 { panic!("the first call of each stage panics") } else { Ok(()) }
    };
    let policy = Policy::default().with_pretimeout(Action::Dump);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy);
    let watchdog = builder.build(handler).unwrap();
    watchdog.start(512);
    for step in [512, 512, 1000] {
        time.advance(UNIT * step);
        watchdog.on_readable();
    }
    // The pretimeout fails, and the timeout comes before its retry. The timeout succeeds at its second attempt.
    assert_eq!((watchdog.stats().action_failures, watchdog.stats().actions), (2, 1));
}

#[test]
fn a_handler_that_blocks_delays_neither_vcpus_nor_another_watchdog() {
    let clock = VmClock::monotonic();
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    let blocking = {
        let (entered, released) = (Mutex::new(entered), Mutex::new(released));
        move |_: &Event| -> Result<(), HandlerError> {
            entered.lock().unwrap().send(())?;
            let _ = released.lock().unwrap().recv();
            Ok(())
        }
    };
    let slow = Watchdog::builder("slow", device(InterruptPin::None)).clock(clock.clone()).build(blocking).unwrap();
    let (sender, events) = channel();
    let quick = Watchdog::builder("quick", device(InterruptPin::None)).clock(clock).build(sending(sender)).unwrap();
    let threads = (slow.spawn().unwrap(), quick.spawn().unwrap());

    slow.start(0);
    has_entered.recv_timeout(LIMIT).expect("the slow handler is called");
    slow.ping();
    slow.reset();
    assert_eq!(slow.stats().heartbeats, 1, "an access returns while the handler blocks");

    quick.start(1);
    assert_eq!(events.recv_timeout(LIMIT).expect("an event").stage, Stage::Timeout);
    drop(release);
    drop(threads);
}

#[test]
fn an_escalation_follows_unless_the_vmm_acknowledges_or_resets() {
    for (case, escalates) in [("left alone", true), ("acknowledged", false), ("reset", false)] {
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let policy = Policy::new(Action::Shutdown).with_escalation(Duration::from_secs(30), Action::Poweroff);
        let watchdog =
            Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy).build(handler).unwrap();
        watchdog.start(0);
        watchdog.on_readable();
        assert_eq!(arrived(&events), [(Stage::Timeout, Action::Shutdown)]);
        match case {
            "acknowledged" => watchdog.acknowledge(),
            "reset" => watchdog.reset(),
            _ => {}
        }
        time.advance(Duration::from_secs(30) - Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(arrived(&events), [], "{case}");
        time.advance(Duration::from_nanos(1));
        watchdog.on_readable();
        let expected: &[_] = if escalates { &[(Stage::Escalation, Action::Poweroff)] } else { &[] };
        assert_eq!(arrived(&events), expected, "{case}");
    }
}

/// A watchdog of 4 s whose handler fails at the first attempt of one stage.
fn interrupting(failing: Stage) -> (Watchdog<I6300esb>, ManualClock, Receiver<Event>) {
    let (clock, time) = VmClock::manual();
    let (sender, events) = channel();
    let record = sending(sender);
    let handler = move |event: &Event| -> Result<(), HandlerError> {
        record.perform(event)?;
        if (event.stage, event.attempt) == (failing, 1) { Err("not now".into()) } else { Ok(()) }
    };
    let policy = Policy::new(Action::InjectNmi).with_escalation(SECOND, Action::Poweroff);
    let policy = policy.with_pretimeout(Action::Dump);
    let watchdog =
        Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy).build(handler).unwrap();
    watchdog.start(2048);
    (watchdog, time, events)
}

#[test]
fn a_pretimeout_that_failed_is_not_tried_again_after_the_timeout() {
    let (watchdog, time, events) = interrupting(Stage::Pretimeout);
    time.advance(UNIT * 4096);
    watchdog.on_readable();
    watchdog.ping();
    time.advance(SECOND);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Pretimeout, Action::Dump), (Stage::Timeout, Action::InjectNmi)]);
}

#[test]
fn a_guest_that_recovers_is_not_escalated_even_if_the_escalation_failed_once() {
    let (watchdog, time, events) = interrupting(Stage::Escalation);
    time.advance(UNIT * 4096);
    watchdog.on_readable();
    time.advance(SECOND);
    watchdog.on_readable();
    assert_eq!(arrived(&events).last(), Some(&(Stage::Escalation, Action::Poweroff)));
    watchdog.ping();
    time.advance(SECOND);
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
}

#[test]
fn a_heartbeat_while_the_action_is_performed_shows_recovery_too() {
    let (clock, time) = VmClock::manual();
    let itself: Arc<OnceLock<Watchdog<I6300esb>>> = Arc::default();
    let (sender, events) = channel();
    let record = sending(sender);
    let handler = {
        let itself = itself.clone();
        move |event: &Event| -> Result<(), HandlerError> {
            // The guest has the NMI, and a vCPU's thread feeds before the handler returns.
            if event.stage == Stage::Timeout {
                itself.get().ok_or("not built yet")?.ping();
            }
            record.perform(event)
        }
    };
    let policy = Policy::new(Action::InjectNmi).with_escalation(SECOND, Action::Poweroff);
    let watchdog =
        Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy).build(handler).unwrap();
    assert!(itself.set(watchdog.clone()).is_ok());
    watchdog.start(2048);
    time.advance(UNIT * 4096);
    watchdog.on_readable();
    time.advance(SECOND);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::InjectNmi)]);
}

#[test]
fn an_escalation_that_was_not_delivered_yet_is_acknowledged_too() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let policy = Policy::new(Action::Shutdown).with_escalation(SECOND, Action::Poweroff);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy);
    let watchdog = builder.build(handler).unwrap();
    watchdog.start(0);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Shutdown)]);
    time.advance(SECOND);
    watchdog.acknowledge();
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
}

#[test]
fn a_handler_may_drop_the_thread_that_calls_it() {
    let thread: Arc<Mutex<Option<WatchdogThread>>> = Arc::default();
    let (alive, is_dropped) = channel::<()>();
    let handler = {
        let thread = thread.clone();
        move |_: &Event| -> Result<(), HandlerError> {
            let _alive = &alive;
            drop(thread.lock().unwrap().take());
            Ok(())
        }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    *thread.lock().unwrap() = Some(watchdog.spawn().unwrap());
    watchdog.start(0);
    drop(watchdog);
    assert_eq!(is_dropped.recv_timeout(LIMIT), Err(RecvTimeoutError::Disconnected), "the thread has ended");
}

#[test]
fn a_handler_may_wait_for_the_thread_that_pauses_the_vm() {
    let clock = VmClock::monotonic();
    let (entered, has_entered) = channel();
    let (paused, has_paused) = channel::<()>();
    let waiting = {
        let (entered, has_paused) = (Mutex::new(entered), Mutex::new(has_paused));
        move |_: &Event| -> Result<(), HandlerError> {
            entered.lock().unwrap().send(())?;
            Ok(has_paused.lock().unwrap().recv_timeout(LIMIT)?)
        }
    };
    let policy = Policy::default().with_pretimeout(Action::InjectNmi);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).policy(policy);
    let watchdog = builder.build(waiting).unwrap();
    let thread = watchdog.spawn().unwrap();
    watchdog.start(0);
    has_entered.recv_timeout(LIMIT).expect("the handler is called");

    clock.pause();
    assert!(!clock.quiesce(Duration::from_millis(1)), "the handler is still being called");
    paused.send(()).expect("the handler still waits");
    assert!(clock.quiesce(LIMIT));
    clock.resume();
    has_entered.recv_timeout(LIMIT).expect("the next event comes after the resume");
    paused.send(()).unwrap();
    drop(thread);
    assert_eq!(watchdog.stats().action_failures, 0);
}

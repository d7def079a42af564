//! Pause and resume: in between, the VM's time stops and nothing fires.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use common::{Driver, UNIT, arrived, device, recorder};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Action, Event, HandlerError, Policy, Stage, VmClock, VmInstant, Watchdog};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_paused_guest_keeps_its_remaining_time_to_the_nanosecond() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 1024 - Duration::from_nanos(7));
    clock.pause();
    clock.pause();
    time.advance(Duration::from_secs(3600));
    watchdog.on_readable();
    clock.resume();
    clock.resume();
    watchdog.on_readable();
    time.advance(Duration::from_nanos(6));
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

#[test]
fn an_expiry_that_was_not_delivered_before_the_pause_is_reported_after_it() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 1024);
    clock.pause();
    for _ in 0..3 {
        watchdog.on_readable();
        assert_eq!(arrived(&events), [], "never while the VM is paused");
    }
    clock.resume();
    watchdog.on_readable();
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

#[test]
fn the_grace_period_does_not_pass_while_the_vm_is_paused() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let policy = Policy::new(Action::Shutdown).with_escalation(Duration::from_secs(30), Action::Poweroff);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).policy(policy);
    let watchdog = builder.build(handler).unwrap();
    watchdog.start(0);
    watchdog.on_readable();
    events.try_iter().count();
    clock.pause();
    time.advance(Duration::from_secs(3600));
    clock.resume();
    time.advance(Duration::from_secs(30) - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Escalation, Action::Poweroff)]);
}

#[test]
fn in_real_time_a_guest_paused_longer_than_its_timeout_times_out_after_its_remaining_time() {
    let clock = VmClock::monotonic();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let timeout = UNIT * 400;
    watchdog.start(200);
    let started = clock.now();
    thread::sleep(UNIT * 100);
    clock.pause();
    let paused_at = clock.now();
    assert_eq!(events.recv_timeout(timeout * 2), Err(RecvTimeoutError::Timeout), "not while paused");
    assert_eq!(clock.now(), paused_at);

    let left = timeout - paused_at.saturating_duration_since(started);
    let resumed = Instant::now();
    clock.resume();
    let expiry = loop {
        let event = events.recv_timeout(LIMIT).expect("an event");
        if event.stage == Stage::Timeout {
            break event;
        }
    };
    assert!(resumed.elapsed() >= left, "the timeout came before the remaining {left:?} had passed");
    let ran = expiry.deadline.saturating_duration_since(started);
    assert!(ran <= timeout && ran + Duration::from_millis(1) > timeout, "{ran:?} of {timeout:?}");
}

#[test]
fn no_handler_starts_or_runs_between_pause_and_resume() {
    let clock = VmClock::monotonic();
    let stopped = Arc::new(AtomicBool::new(false));
    let (fires, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let handler = {
        let (stopped, fires, wrong) = (stopped.clone(), fires.clone(), wrong.clone());
        move |_: &Event| -> Result<(), HandlerError> {
            fires.fetch_add(1, Ordering::SeqCst);
            let before = stopped.load(Ordering::SeqCst);
            thread::sleep(Duration::from_micros(50));
            if before || stopped.load(Ordering::SeqCst) {
                wrong.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    // Free running at one microsecond: an expiry is always due.
    watchdog.write_config(0x60, &[0x07, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    let started = Instant::now();
    while (fires.load(Ordering::SeqCst) < 200 || started.elapsed() < Duration::from_secs(1))
        && started.elapsed() < LIMIT
    {
        clock.pause();
        assert!(clock.quiesce(LIMIT));
        stopped.store(true, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(300));
        stopped.store(false, Ordering::SeqCst);
        clock.resume();
        thread::sleep(Duration::from_micros(700));
    }
    assert!(fires.load(Ordering::SeqCst) >= 200, "only {} fires", fires.load(Ordering::SeqCst));
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
}

/// Serves the timer continuously, so that many pauses begin after the library has found the clock running and before
/// it calls the handler. The library then has no permission to call.
#[test]
fn a_pause_between_an_expiry_and_the_call_of_the_handler_delays_the_call() {
    const PAUSES: u32 = 20_000;
    /// Ends the test early on a busy machine.
    const LONGEST: Duration = Duration::from_secs(5);
    let clock = VmClock::monotonic();
    let calls = Arc::new(AtomicU64::new(0));
    let handler = {
        let calls = calls.clone();
        move |_: &Event| -> Result<(), HandlerError> {
            calls.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    watchdog.write_config(0x60, &[0x07, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    let is_over = AtomicBool::new(false);
    let mut called_while_paused = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                watchdog.on_readable();
            }
        });
        let started = Instant::now();
        for _ in 0..PAUSES {
            clock.pause();
            assert!(clock.quiesce(LIMIT));
            let before = calls.load(Ordering::SeqCst);
            // Time for a call to arrive that begins in spite of the pause.
            (0..50).for_each(|_| std::hint::spin_loop());
            thread::yield_now();
            let seen = calls.load(Ordering::SeqCst);
            called_while_paused += seen - before;
            clock.resume();
            while calls.load(Ordering::SeqCst) == seen {
                thread::yield_now();
            }
            if started.elapsed() > LONGEST {
                break;
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert_eq!(called_while_paused, 0, "calls while the VM was paused");
}

#[test]
fn handlers_that_pause_their_vm_at_the_same_time_do_not_wait_for_each_other() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let handler = Arc::new(handler);
    let watchdogs: Vec<_> = (0..4)
        .map(|index| {
            let (clock, handler) = (clock.clone(), handler.clone());
            let pausing = {
                let clock = clock.clone();
                move |event: &Event| -> Result<(), HandlerError> {
                    clock.pause();
                    vm_watchdog::ActionHandler::perform(&*handler, event)
                }
            };
            Watchdog::builder(format!("wd{index}"), device(InterruptPin::None)).clock(clock).build(pausing).unwrap()
        })
        .collect();
    let _threads: Vec<_> = watchdogs.iter().map(|watchdog| watchdog.spawn().unwrap()).collect();
    watchdogs.iter().for_each(|watchdog| watchdog.start(1));
    time.advance(Duration::from_secs(1));
    let mut timeouts = 0;
    while timeouts < watchdogs.len() {
        match events.recv_timeout(Duration::from_millis(20)) {
            Ok(event) if event.stage == Stage::Timeout => timeouts += 1,
            Ok(_) => {}
            Err(_) => clock.resume(),
        }
    }
}

#[test]
fn several_watchdogs_of_one_vm_have_their_own_policy_and_one_clock() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let handler = Arc::new(handler);
    let watchdogs = [("first", Action::Reset, 512), ("second", Action::Poweroff, 1024)].map(|(id, action, units)| {
        let handler = handler.clone();
        let watchdog = Watchdog::builder(id, device(InterruptPin::None))
            .clock(clock.clone())
            .policy(Policy::new(action))
            .build(move |event: &Event| vm_watchdog::ActionHandler::perform(&*handler, event))
            .unwrap();
        watchdog.start(units);
        watchdog
    });
    let mut timeouts = Vec::new();
    for _ in 0..4 {
        time.advance(UNIT * 512);
        clock.pause();
        time.advance(UNIT * 5000);
        clock.resume();
        watchdogs.iter().for_each(Watchdog::on_readable);
        let fired = events.try_iter().filter(|event| event.stage == Stage::Timeout);
        timeouts.extend(fired.map(|event| (event.id.to_string(), event.action, event.deadline)));
    }
    let at = |units| VmInstant::ZERO + UNIT * units;
    assert_eq!(timeouts, [("first".into(), Action::Reset, at(1024)), ("second".into(), Action::Poweroff, at(2048))]);
}

//! A logger that blocks: the action is performed before the call of the logger, and no other thread waits for it.
//!
//! A file with one test, because a process has one logger.

mod common;

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use common::{Driver, UNIT, device, sending};
use log::{Log, Metadata, Record};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Action, Policy, Stage, VmClock, Watchdog};

/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A logger that blocks while it is shut, and counts the threads that wait.
struct Gate {
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

static LOG: Gate = Gate { state: Mutex::new((true, 0)), changed: Condvar::new() };

impl Gate {
    fn wait_until_waiting(&self, threads: u32) {
        let few = |state: &mut (bool, u32)| state.1 < threads;
        let (state, _) = self.changed.wait_timeout_while(self.state.lock().unwrap(), LIMIT, few).unwrap();
        let held = state.1;
        drop(state);
        assert_eq!(held, threads, "threads that the logger holds");
    }

    fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = false;
        self.changed.notify_all();
    }
}

impl Log for Gate {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, _: &Record) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |(is_shut, _)| *is_shut).unwrap();
        state.1 -= 1;
    }
    fn flush(&self) {}
}

/// Opens the gate when it is dropped, also in a test that fails.
struct OpensOnDrop;

impl Drop for OpensOnDrop {
    fn drop(&mut self) {
        LOG.open();
    }
}

#[test]
fn a_logger_that_blocks_delays_no_action_no_other_thread_and_no_pause() {
    let (done, is_done) = channel();
    // Abandoned if it hangs.
    thread::spawn(move || {
        a_logger_blocks();
        done.send(())
    });
    is_done.recv_timeout(LIMIT * 2).expect("no thread waits for the logger");
}

fn a_logger_blocks() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let (clock, time) = VmClock::manual();
    let (sender, events) = channel();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA))
        .clock(clock.clone())
        .policy(Policy::new(Action::Pause).with_pretimeout(Action::InjectNmi))
        .interrupt_line(|_: bool| Err(io::Error::other("the irqfd is gone")))
        .build(sending(sender))
        .unwrap();
    watchdog.start(512);
    time.advance(UNIT * 512);

    thread::scope(|scope| {
        let gate = OpensOnDrop;
        let vcpu = scope.spawn(|| {
            watchdog.read_bar(0x08, &mut [0]);
        });
        LOG.wait_until_waiting(1);
        assert_eq!(watchdog.stats().interrupt_failures, 1, "the access has had its effect");

        time.advance(UNIT * 512);
        let server = scope.spawn(|| watchdog.on_readable());
        let event = |stage| assert_eq!(events.recv_timeout(LIMIT).expect("an event").stage, stage);
        event(Stage::Pretimeout);
        event(Stage::Timeout);
        LOG.wait_until_waiting(2);

        // Another vCPU, the VMM's main thread, and another thread that serves the timer.
        watchdog.ping();
        assert_eq!(watchdog.stats().heartbeats, 1);
        time.advance(UNIT * 1024);
        clock.pause();
        assert!(clock.quiesce(LIMIT), "quiesce does not wait for a logger");
        clock.resume();
        let another = scope.spawn(|| watchdog.on_readable());
        event(Stage::Pretimeout);
        event(Stage::Timeout);

        drop(gate);
        [vcpu, server, another].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

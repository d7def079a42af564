//! The interleavings of the threads of a VMM, tried by a model checker: `.ci/interleavings`.
//!
//! Each scenario is a few threads that use one watchdog at the same time. For each schedule of these threads [`Vm`]
//! checks that
//!
//! - an expiry of the device is delivered, once, at its own deadline, not early, by the timer alone;
//! - there is no deadlock, also where a handler or an interrupt line calls back;
//! - nothing of the VMM is called between `quiesce` and `resume`, and a call that had begun has ended before;
//! - the interrupt line has the device's level in the end, and an interrupt by message has one message;
//! - the guest that boots next is protected.
#![cfg(shuttle)]

#[path = "../common/mod.rs"]
mod common;
mod messages;
mod rate;
mod vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::sync::mpsc::channel;
use vm_watchdog::simulated::advance;
use vm_watchdog::{Action, Event, HandlerError, Policy, Stage, VmClock, VmInstant};

use common::Driver;
use vm::{LIMIT, PERIOD, STAGE, Setup, Vm};

/// How many schedules of each kind are tried for a scenario, unless the environment has `SCHEDULES`.
const SCHEDULES: usize = 10_000;
/// At how many points of a schedule the priorities of the threads change.
const CHANGES: usize = 3;

/// Tries schedules at random, and with random priorities of the threads.
fn explore(scenario: fn()) {
    let random = run(RandomScheduler::new(schedules()), scenario);
    let by_priority = run(PctScheduler::new(CHANGES, schedules()), scenario);
    report(&format!("{random} at random, {by_priority} by priority"));
}

/// The same for a scenario of two threads, and the first schedules of a depth-first search.
fn explore_two_threads(scenario: fn()) {
    explore(scenario);
    let in_order = run(DfsScheduler::new(Some(schedules()), false), scenario);
    report(&format!("{in_order} depth first"));
}

fn schedules() -> usize {
    std::env::var("SCHEDULES").map_or(SCHEDULES, |schedules| schedules.parse().unwrap())
}

fn run(scheduler: impl Scheduler + 'static, scenario: fn()) -> usize {
    let mut config = shuttle::Config::new();
    // For the messages of a failure.
    config.stack_size = 1 << 18;
    // A schedule takes some hundred steps; one without an end is a failure.
    config.max_steps = shuttle::MaxSteps::FailAfter(10_000);
    shuttle::Runner::new(scheduler, config).run(scenario)
}

fn report(schedules: &str) {
    println!("{}: {schedules}", std::thread::current().name().unwrap_or_default());
}

fn plain() -> Setup {
    Setup::new(Policy::default())
}

fn all(delivered: &[Event], expiries: u64) -> bool {
    delivered.len() as u64 == expiries
}

fn exactly_one(delivered: &[Event], _: u64) -> bool {
    delivered.len() == 1
}

/// A handler that pauses its VM.
fn pause(vm: &Vm, _: &Event) -> Result<(), HandlerError> {
    vm.clock.pause();
    Ok(())
}

/// How many of the events have this deadline.
fn count_at(deadline: Duration, delivered: &[Event]) -> usize {
    delivered.iter().filter(|event| event.deadline == VmInstant::ZERO + deadline).count()
}

#[test]
fn a_heartbeat_and_an_expiry() {
    explore(|| {
        let vm = plain().start();
        vm.side_by_side(&[
            Vm::ping,
            |vm| {
                for pause in [STAGE / 2, STAGE / 2, STAGE] {
                    advance(pause);
                    vm.seen.switch();
                }
            },
            |vm| vm.serve(3),
        ]);
        vm.finish(all);
    });
}

#[test]
fn a_guest_that_starts_its_watchdog_while_time_passes() {
    explore_two_threads(|| {
        let vm = plain().build();
        vm.watchdog.set_preloads(512);
        vm.side_by_side(&[Vm::enable, |_| advance(STAGE / 2)]);
        vm.finish(exactly_one);
    });
}

#[test]
fn two_threads_that_serve_one_timer() {
    explore_two_threads(|| {
        let vm = Setup::new(Policy::new(Action::Reset).with_pretimeout(Action::Dump)).start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.watchdog.on_readable(), |vm| vm.watchdog.on_readable()]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_snapshot_beside_an_expiry() {
    explore(|| {
        let vm = plain().start();
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.stop_for(|| advance(STAGE)), |_| advance(PERIOD)]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_snapshot_beside_a_guest_that_changes_its_interrupt() {
    explore(|| {
        let vm = plain().start();
        advance(STAGE);
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| vm.stop_for(|| ()),
            |vm| {
                vm.clear_interrupt();
                vm.ping();
            },
        ]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_snapshot_beside_readings_of_the_run_delay() {
    explore(|| {
        let vm = plain().run_delay().start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(2), |vm| vm.stop_for(|| advance(STAGE)), Vm::ping]);
        vm.finish(all);
    });
}

#[test]
fn two_threads_that_pause_and_resume() {
    explore(|| {
        let vm = plain().start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.stop_for(|| ()), |vm| vm.stop_for(|| advance(STAGE))]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_handler_that_pauses_its_vm() {
    explore(|| {
        let setup = Setup::new(Policy::new(Action::Pause));
        let vm = setup.handler(pause).start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(2), Vm::resume, Vm::ping]);
        vm.finish(all);
    });
}

#[test]
fn a_handler_that_quiesces_its_vm() {
    explore(|| {
        let setup = plain().handler(|vm, _| {
            vm.clock.pause();
            vm.clock.quiesce(LIMIT);
            vm.resume();
            Ok(())
        });
        let vm = setup.start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(2), |vm| vm.stop_for(|| ()), Vm::clear_interrupt]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_handler_that_waits_until_the_main_thread_has_paused() {
    explore(|| {
        let (ask, asked) = channel();
        let (answer, answered) = channel();
        let ends = Mutex::new((ask, answered));
        let setup = plain().handler(move |_, event| {
            if event.deadline == VmInstant::ZERO + PERIOD {
                let (ask, answered) = &*ends.lock().unwrap();
                ask.send(()).map_err(|_| "no main thread")?;
                answered.recv().map_err(|_| "no main thread")?;
            }
            Ok(())
        });
        let vm = setup.start();
        advance(PERIOD);
        let threads = [vm.thread(|vm| vm.watchdog.on_readable()), vm.thread(Vm::ping)];
        asked.recv().unwrap();
        vm.clock.pause();
        answer.send(()).unwrap();
        vm.stop_for(|| advance(STAGE));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        vm.finish(|delivered, _| count_at(PERIOD, delivered) == 1);
    });
}

#[test]
fn a_handler_that_resumes_a_vm_while_the_main_thread_waits_for_quiet() {
    explore_two_threads(|| {
        let (to_handler, from_main) = channel();
        let from_main = Mutex::new(Some(from_main));
        let setup = plain().handler(move |vm, _| {
            if let Some(from_main) = from_main.lock().unwrap().take() {
                let () = from_main.recv()?;
                vm.resume();
                let () = from_main.recv()?;
            }
            Ok(())
        });
        let vm = setup.start();
        advance(PERIOD);
        let serving = vm.thread(|vm| vm.watchdog.on_readable());
        vm.clock.pause();
        to_handler.send(()).unwrap();
        // It ends when the handler resumes the VM, although the call of the handler goes on.
        vm.clock.quiesce(LIMIT);
        to_handler.send(()).unwrap();
        vm.resume();
        serving.join().unwrap();
        vm.finish(exactly_one);
    });
}

#[test]
fn two_watchdogs_of_one_vm_whose_handlers_pause_it() {
    explore(|| {
        let pausing = || Setup::new(Policy::new(Action::Reset)).handler(pause);
        let first = pausing().start();
        let second = pausing().clock(first.clock.clone()).start();
        advance(PERIOD);
        let serving = second.thread(|vm| vm.serve(2));
        first.side_by_side(&[|vm| vm.serve(2), Vm::resume]);
        serving.join().unwrap();
        second.finish(exactly_one);
        first.finish(exactly_one);
    });
}

#[test]
fn a_reset_beside_an_expiry() {
    explore(|| {
        let policy = Policy::new(Action::InjectNmi).with_escalation(STAGE, Action::Poweroff);
        let vm = Setup::new(policy).start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.watchdog.reset(), |_| advance(STAGE)]);
        vm.finish(|delivered, _| delivered.len() <= 1);
    });
}

#[test]
fn a_reset_beside_a_retry_and_the_guest_that_boots_next() {
    explore_two_threads(|| {
        let vm = plain().handler(|_, _| Err("not now".into())).start();
        advance(PERIOD);
        vm.side_by_side(&[
            |vm| vm.serve(3),
            |vm| {
                vm.watchdog.reset();
                vm.start();
                advance(PERIOD);
                vm.serve(2);
            },
        ]);
        vm.finish(|delivered, _| count_at(PERIOD, delivered) <= 1 && count_at(PERIOD * 2, delivered) == 1);
    });
}

#[test]
fn a_restore_beside_an_expiry() {
    explore_two_threads(|| {
        let vm = plain().start();
        advance(STAGE / 2);
        let state = vm.watchdog.save();
        advance(STAGE + STAGE / 2);
        let threads = [vm.thread(|vm| vm.serve(3)), vm.thread(move |vm| vm.restore(&state, false))];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let restored = PERIOD * 2 - STAGE / 2;
        vm.finish(move |delivered, _| count_at(PERIOD, delivered) <= 1 && count_at(restored, delivered) == 1);
    });
}

#[test]
fn a_restore_beside_a_call_of_the_line() {
    explore(|| {
        let vm = plain().start();
        advance(STAGE / 2);
        let state = vm.watchdog.save();
        advance(STAGE / 2);
        let restore = move |vm: &Vm| {
            vm.restore(&state, false);
            advance(STAGE / 2);
        };
        let threads = [vm.thread(|vm| vm.serve(2)), vm.thread(|vm| vm.serve(2)), vm.thread(restore)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        vm.finish(exactly_one);
    });
}

#[test]
fn a_vm_that_moves_in_a_quiet_pause() {
    explore(|| {
        let old = plain().start();
        advance(PERIOD);
        let threads = [old.thread(|vm| vm.serve(2)), old.thread(Vm::clear_interrupt)];
        old.stop();
        let (state, level, delivered) = (old.watchdog.save(), old.seen.level(), old.seen.timeouts().len());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        old.seen.assert_no_violations();

        let new = plain().clock(VmClock::monotonic_from(state.vm_time())).build();
        new.restore(&state, level);
        new.finish(|rest, _| delivered + rest.len() == 1);
    });
}

#[test]
fn the_last_handle_goes() {
    explore(|| {
        let vm = plain().start();
        advance(PERIOD);
        let (clock, weak, seen) = (vm.clock.clone(), vm.watchdog.downgrade(), vm.seen.clone());
        let serving = vm.thread(|vm| vm.serve(2));
        let pausing = shuttle::thread::spawn(move || {
            clock.pause();
            clock.quiesce(LIMIT);
            clock.resume();
        });
        drop(vm);
        [serving, pausing].into_iter().for_each(|thread| thread.join().unwrap());
        assert!(weak.upgrade().is_none(), "a handle is left");
        assert!(seen.timeouts().len() <= 1);
        seen.assert_no_violations();
    });
}

#[test]
fn a_policy_that_changes_beside_an_expiry() {
    explore(|| {
        let vm = plain().start();
        advance(PERIOD);
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| {
                let policy = Policy::new(Action::Shutdown).with_escalation(STAGE, Action::Poweroff);
                vm.watchdog.set_policy(policy);
            },
            Vm::clear_interrupt,
        ]);
        vm.finish(exactly_one);
    });
}

#[test]
fn an_acknowledgement_beside_a_retry() {
    explore(|| {
        let policy = Policy::new(Action::Reset).with_escalation(STAGE, Action::Poweroff);
        let setup = Setup::new(policy).handler(|_, event| match event.attempt {
            1 => Err("not now".into()),
            _ => Ok(()),
        });
        let vm = setup.start();
        advance(PERIOD);
        vm.side_by_side(&[|vm| vm.serve(3), |_| advance(Duration::from_millis(100)), |vm| vm.watchdog.acknowledge()]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_handler_that_calls_back() {
    explore(|| {
        let policy = Policy::new(Action::InjectNmi).with_pretimeout(Action::Dump);
        let setup = Setup::new(policy).handler(|vm, event| {
            match event.stage {
                Stage::Pretimeout => vm.ping(),
                _ => {
                    vm.watchdog.set_policy(Policy::new(Action::Reset));
                    vm.watchdog.acknowledge();
                    vm.clock.pause();
                    vm.clock.quiesce(LIMIT);
                    vm.watchdog.reset();
                    vm.resume();
                }
            }
            vm.watchdog.on_readable();
            Ok(())
        });
        let vm = setup.start();
        advance(PERIOD - STAGE / 4);
        vm.side_by_side(&[|vm| vm.serve(2), |vm| vm.serve(2), Vm::ping]);
        vm.finish(exactly_one);
    });
}

#[test]
fn a_line_that_calls_back() {
    explore(|| {
        let has_ended = Arc::new(AtomicBool::new(false));
        let setup = plain().line(move |vm, _| {
            if !has_ended.swap(true, Ordering::SeqCst) {
                vm.end_interrupt();
            }
            vm.watchdog.on_readable();
        });
        let vm = setup.start();
        advance(STAGE);
        vm.side_by_side(&[|vm| vm.serve(2), Vm::clear_interrupt]);
        vm.finish(exactly_one);
    });
}

#[test]
fn an_end_of_interrupt_beside_a_call_of_the_line() {
    explore_two_threads(|| {
        let vm = plain().start();
        advance(STAGE);
        vm.side_by_side(&[|vm| vm.serve(2), Vm::end_interrupt]);
        vm.finish(exactly_one);
    });
}

//! A guest whose second timeout comes before the rate permits its action.

use vm_watchdog::simulated::advance;
use vm_watchdog::{Action, Policy};

use crate::vm::{PERIOD, STAGE, Setup, Vm};
use crate::{count_at, explore};

/// A guest whose first timeout is over, and whose second is noticed by no thread.
fn expired_twice() -> Vm {
    let vm = Setup::new(Policy::new(Action::Dump).with_action_rate(PERIOD + STAGE, 1)).start();
    advance(PERIOD);
    vm.serve(1);
    vm.ping();
    advance(PERIOD);
    vm
}

#[test]
fn a_snapshot_beside_a_delayed_action() {
    explore(|| {
        let vm = expired_twice();
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.stop_for(|| advance(STAGE)), |_| advance(STAGE / 2)]);
        let seen = vm.seen.clone();
        vm.finish(move |delivered, _| {
            delivered.len() == 2
                && count_at(PERIOD * 2, delivered) == 1
                && seen.delays() == delivered.iter().filter(|event| event.delayed).count()
        });
    });
}

#[test]
fn two_threads_that_serve_a_delayed_action_beside_a_guest_that_feeds() {
    explore(|| {
        let vm = expired_twice();
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| vm.serve(2),
            |vm| {
                vm.ping();
                advance(STAGE);
            },
        ]);
        vm.finish(|delivered, _| count_at(PERIOD, delivered) == 1 && count_at(PERIOD * 2, delivered) == 1);
    });
}

#[test]
fn a_reset_beside_a_delayed_action() {
    explore(|| {
        let vm = expired_twice();
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.watchdog.reset(), |_| advance(STAGE)]);
        vm.finish(|delivered, _| count_at(PERIOD, delivered) == 1 && delivered.len() <= 2);
    });
}

#[test]
fn an_acknowledgement_beside_a_delayed_action() {
    explore(|| {
        let vm = expired_twice();
        vm.side_by_side(&[|vm| vm.serve(3), |vm| vm.watchdog.acknowledge(), |_| advance(STAGE)]);
        // Dropped if it was told before.
        let seen = vm.seen.clone();
        vm.finish(move |delivered, _| {
            count_at(PERIOD, delivered) == 1 && (count_at(PERIOD * 2, delivered) == 1 || seen.delays() == 1)
        });
    });
}

#[test]
fn a_policy_without_a_rate_beside_a_delayed_action() {
    explore(|| {
        let vm = expired_twice();
        vm.side_by_side(&[
            |vm| vm.serve(3),
            |vm| vm.watchdog.set_policy(Policy::new(Action::Dump)),
            Vm::clear_interrupt,
        ]);
        vm.finish(|delivered, _| count_at(PERIOD, delivered) == 1 && count_at(PERIOD * 2, delivered) == 1);
    });
}

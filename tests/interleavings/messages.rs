//! Interrupts of a guest that has enabled MSI.

use vm_watchdog::Model;
use vm_watchdog::simulated::advance;

use crate::vm::{STAGE, Vm};
use crate::{all, explore, explore_two_threads, plain};

/// A guest whose stage 1 is over, and whose interrupt no thread has noticed.
fn interrupted() -> Vm {
    let vm = plain().start();
    vm.enable_msi();
    advance(STAGE);
    vm
}

/// Ends a scenario in which the guest had between `least` and `most` messages.
fn finish(vm: &Vm, least: u32, most: u32) {
    vm.finish(all);
    let messages = vm.seen.messages();
    assert!((least..=most).contains(&messages), "{messages} messages");
}

#[test]
fn an_interrupt_that_several_threads_notice_has_one_message() {
    explore(|| {
        let vm = interrupted();
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| vm.serve(2),
            |vm| {
                vm.watchdog.read_bar(0x08, &mut [0]);
            },
        ]);
        finish(&vm, 1, 1);
    });
}

#[test]
fn a_message_beside_a_snapshot_that_is_restored() {
    explore_two_threads(|| {
        let vm = interrupted();
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| {
                vm.stop_for(|| {
                    let state = vm.watchdog.save();
                    vm.restore(&state, false);
                });
            },
        ]);
        finish(&vm, 1, 1);
    });
}

#[test]
fn a_message_beside_a_guest_that_clears_it_and_is_interrupted_again() {
    explore_two_threads(|| {
        let vm = interrupted();
        vm.side_by_side(&[
            |vm| vm.serve(2),
            |vm| {
                vm.clear_interrupt();
                vm.ping();
            },
        ]);
        let first = vm.seen.messages();
        advance(STAGE);
        finish(&vm, first + 1, 2);
    });
}

#[test]
fn a_message_beside_a_reset() {
    explore_two_threads(|| {
        let vm = interrupted();
        vm.side_by_side(&[|vm| vm.serve(2), |vm| vm.watchdog.reset()]);
        assert_eq!(vm.watchdog.inspect(|device| device.message()), None);
        finish(&vm, 0, 1);
    });
}

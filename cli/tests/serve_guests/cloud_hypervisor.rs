//! Cloud Hypervisor as the VMM, where `CLOUD_HYPERVISOR` names its binary. Where KVM is not backed by the processor, the
//! whole test runs in an outer guest.
//!
//! No package registry has that binary, so without the variable these tests are skipped even where guests are required.

use std::path::PathBuf;

use vm_watchdog_test_support::cloud_hypervisor::{self, Pieces, Test};

use crate::guest::Guest;
use crate::server::{Builder, Server};
use crate::{CARD_RESET, LONGER_THAN_THE_TIMEOUT};

/// Runs the test of this name with Cloud Hypervisor, or reports it as skipped.
fn with_cloud_hypervisor(test: &str, run: impl FnOnce(&Pieces)) {
    let name = &format!("cloud_hypervisor::{test}");
    let (modules, programs) = (&["i6300esb"], &[env!("CARGO_BIN_EXE_vm-watchdog")]);
    Test { variable: "CLOUD_HYPERVISOR", name, init: include_str!("init.sh"), modules, programs }.run(run);
}

fn start(pieces: &Pieces) -> (Server, Guest) {
    let server = Builder::new().options("--socket s --cloud-hypervisor api --watchdog i6300esb,action=reset").start();
    let mut vmm = pieces.vm(&api(&server));
    vmm.arg("--user-device").arg(format!("socket={}", server.path("s").display()));
    let mut guest = Guest::of(cloud_hypervisor::start(vmm));
    assert_eq!(guest.boot_status(), "0");
    (server, guest)
}

fn api(server: &Server) -> PathBuf {
    server.path("api")
}

#[test]
fn a_guest_that_stops_feeding_is_rebooted_and_sees_the_cause() {
    with_cloud_hypervisor("a_guest_that_stops_feeding_is_rebooted_and_sees_the_cause", |pieces| {
        let (server, mut guest) = start(pieces);
        let alive = crate::feed_and_kill(&mut guest);
        crate::expect_timeout(&server, alive);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

#[test]
fn a_guest_that_panics_while_armed_does_not_time_out_during_its_next_boot() {
    with_cloud_hypervisor("a_guest_that_panics_while_armed_does_not_time_out_during_its_next_boot", |pieces| {
        let (server, mut guest) = start(pieces);
        guest.feed();
        server.expect("armed");
        guest.run("(sleep 1; echo c > /proc/sysrq-trigger) &");
        server.expect("disconnected");
        assert_eq!(guest.boot_status(), "0");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
    });
}

#[test]
fn a_vm_that_is_shut_down_and_booted_again_has_its_watchdog() {
    with_cloud_hypervisor("a_vm_that_is_shut_down_and_booted_again_has_its_watchdog", |pieces| {
        let (server, mut guest) = start(pieces);
        guest.feed();
        server.expect("armed");
        cloud_hypervisor::call(&api(&server), "vm.shutdown", "");
        server.expect("disconnected");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        cloud_hypervisor::call(&api(&server), "vm.boot", "");
        assert_eq!(guest.boot_status(), "0");
        let alive = crate::feed_and_kill(&mut guest);
        crate::expect_timeout(&server, alive);
    });
}

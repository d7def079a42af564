//! Cloud Hypervisor as the VMM, where `CLOUD_HYPERVISOR` names its binary and KVM is backed by the processor.
//!
//! No package registry has that binary, so without the variable these tests are skipped even where guests are required.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vm_watchdog_test_support::{Unavailable, process, skip};

use crate::guest::{Guest, Pieces};
use crate::server::{Builder, Server};
use crate::{CARD_RESET, with_pieces};

/// Runs a test with Cloud Hypervisor, or says loudly that it did not.
fn with_cloud_hypervisor(test: &str, run: impl FnOnce(&Pieces, &Path)) {
    match std::env::var_os("CLOUD_HYPERVISOR") {
        Some(binary) => with_pieces(test, |pieces| run(pieces, Path::new(&binary))),
        None => skip::exempt(test, &Unavailable::new("CLOUD_HYPERVISOR names no binary")),
    }
}

fn start(pieces: &Pieces, binary: &Path) -> (Server, Guest) {
    let server = Builder::new().options("--socket s --cloud-hypervisor api --watchdog i6300esb,action=reset").start();
    let mut vmm: Command = process::that_dies_with_us(binary);
    vmm.arg("--kernel").arg(&pieces.kernel).arg("--initramfs").arg(&pieces.initramfs);
    vmm.args(["--serial", "tty", "--console", "off", "--cpus", "boot=1", "--memory", "size=256M,shared=on"]);
    vmm.arg("--api-socket").arg(format!("path={}", server.path("api").display()));
    vmm.arg("--user-device").arg(format!("socket={}", server.path("s").display()));
    vmm.args(["--cmdline", "console=ttyS0 quiet panic=1 cryptomgr.notests"]);
    let mut guest = Guest::boot(vmm);
    assert_eq!(guest.boot_status(), "0");
    (server, guest)
}

/// A call of the API by the operator.
fn call(server: &Server, name: &str) {
    let mut stream = UnixStream::connect(server.path("api")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "PUT /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut status = [0; 10];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 2", "{name}");
}

#[test]
fn a_guest_that_stops_feeding_is_rebooted_and_finds_out_why() {
    with_cloud_hypervisor("Cloud Hypervisor: reset", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
        crate::feed_and_kill(&server, &mut guest);
        crate::bite(&server);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

#[test]
fn a_guest_that_panics_while_armed_is_not_bitten_during_its_next_boot() {
    with_cloud_hypervisor("Cloud Hypervisor: panic", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
        guest.feed();
        server.expect("armed");
        guest.run("(sleep 1; echo c > /proc/sysrq-trigger) &");
        server.expect("disconnected");
        assert_eq!(guest.boot_status(), "0");
        server.expect_none("fire", Duration::from_secs(6));
    });
}

#[test]
fn a_vm_that_is_shut_down_and_booted_again_has_its_watchdog() {
    with_cloud_hypervisor("Cloud Hypervisor: shutdown and boot", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
        guest.feed();
        server.expect("armed");
        call(&server, "vm.shutdown");
        server.expect("disconnected");
        server.expect_none("fire", Duration::from_secs(6));
        call(&server, "vm.boot");
        assert_eq!(guest.boot_status(), "0");
        crate::feed_and_kill(&server, &mut guest);
        crate::bite(&server);
    });
}

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
use crate::{CARD_RESET, LONGER_THAN_THE_TIMEOUT, with_pieces};

/// Runs a test with Cloud Hypervisor, or reports it as skipped.
fn with_cloud_hypervisor(test: &str, run: impl FnOnce(&Pieces, &Path)) {
    match std::env::var_os("CLOUD_HYPERVISOR") {
        Some(binary) => with_pieces(test, |pieces| run(pieces, Path::new(&binary))),
        None => skip::exempt(test, &Unavailable::new("CLOUD_HYPERVISOR names no binary")),
    }
}

fn start(pieces: &Pieces, binary: &Path) -> (Server, Guest) {
    let server = Builder::new().options("--socket s --cloud-hypervisor api --watchdog i6300esb,action=reset").start();
    let mut vmm = process::that_dies_with_us(binary);
    vmm.arg("--kernel").arg(&pieces.kernel).arg("--initramfs").arg(&pieces.initramfs);
    // It has one serial port, which is the guest's channel. The kernel's console is a file.
    vmm.args(["--serial", "tty", "--cpus", "boot=1", "--memory", "size=256M,shared=on"]);
    vmm.arg("--console").arg(format!("file={}", server.path("console").display()));
    vmm.arg("--api-socket").arg(format!("path={}", server.path("api").display()));
    vmm.arg("--user-device").arg(format!("socket={}", server.path("s").display()));
    vmm.args(["--cmdline", "console=hvc0 quiet panic=1 cryptomgr.notests channel=ttyS0"]);
    let mut guest = Guest::boot(on_a_terminal(&vmm));
    assert_eq!(guest.boot_status(), "0");
    (server, guest)
}

/// The same command on a pseudo terminal: Cloud Hypervisor reads `tty` only from a terminal.
fn on_a_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = process::that_dies_with_us(Path::new("script"));
    script.args(["--quiet", "--return", "--command", &quoted.join(" "), "/dev/null"]);
    script
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
fn a_guest_that_stops_feeding_is_rebooted_and_sees_the_cause() {
    with_cloud_hypervisor("Cloud Hypervisor: reset", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
        let alive = crate::feed_and_kill(&mut guest);
        crate::expect_timeout(&server, alive);
        assert_eq!(server.expect("performed")["action"], "reset");
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

#[test]
fn a_guest_that_panics_while_armed_does_not_time_out_during_its_next_boot() {
    with_cloud_hypervisor("Cloud Hypervisor: panic", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
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
    with_cloud_hypervisor("Cloud Hypervisor: shutdown and boot", |pieces, binary| {
        let (server, mut guest) = start(pieces, binary);
        guest.feed();
        server.expect("armed");
        call(&server, "vm.shutdown");
        server.expect("disconnected");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        call(&server, "vm.boot");
        assert_eq!(guest.boot_status(), "0");
        let alive = crate::feed_and_kill(&mut guest);
        crate::expect_timeout(&server, alive);
    });
}

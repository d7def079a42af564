//! Guests that QEMU restores, from a snapshot or from a file, and that do not know that their watchdog was reset.
//!
//! QEMU 11.1 does not restore the address of the device either, which the server puts back.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::guest::{Guest, Pieces};
use crate::qmp::Operator;
use crate::server::{Builder, Server};
use crate::{CARD_RESET, FOUR_SECONDS, LATEST, LONGER_THAN_THE_TIMEOUT, boot, expect_timeout, start, with_pieces};

const WATCHDOG: &str = "i6300esb,action=reset";

/// A guest that feeds its watchdog, and its operator.
fn feeding(server: &Server, guest: &mut Guest) -> Operator {
    assert_eq!(guest.boot_status(), "0");
    guest.feed();
    server.expect("armed");
    Operator::connect(&server.path("test-qmp"))
}

/// The guest is protected again, feeds for a while, and is reset when its feeder is killed.
fn expect_protection(server: &Server, guest: &mut Guest) {
    server.expect_before("remapped", "unprotected");
    server.expect_before("rearmed", "unprotected");
    server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
    assert_eq!(guest.run("cat /sys/class/watchdog/watchdog0/state"), "active");
    let alive = guest.kill_feeder();
    expect_timeout(server, alive);
    assert_eq!(server.expect("performed")["action"], "reset");
    assert_eq!(guest.boot_status(), CARD_RESET);
}

#[test]
fn a_guest_that_is_loaded_from_a_snapshot_is_protected_again() {
    with_pieces("loadvm", |pieces| {
        let (server, mut guest) = start(pieces, WATCHDOG);
        let mut operator = feeding(&server, &mut guest);
        operator.add_disk(&server.path("disk"));
        operator.snapshot("snapshot-save");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        operator.snapshot("snapshot-load");
        server.expect("disarmed");
        expect_protection(&server, &mut guest);
    });
}

#[test]
fn a_guest_that_migrates_to_a_file_and_back_is_protected_again() {
    with_pieces("migration to a file", |pieces| {
        let (server, mut guest) = start(pieces, WATCHDOG);
        let mut operator = feeding(&server, &mut guest);
        let uri = format!("file:{}", server.path("saved").display());
        operator.execute("stop");
        operator.execute_with("migrate", &json!({"uri": uri}));
        operator.wait_for("query-migrate", |migration| migration["status"] == "completed");
        operator.execute("quit");
        server.expect("disconnected");
        guest.end();

        let mut machine = pieces.machine(server.folder.path(), &server.path("s"));
        machine.args(["-incoming", &uri]);
        let mut guest = Guest::boot(machine);
        server.expect_where("control", |event| event["connected"] == true);
        let mut operator = Operator::connect(&server.path("test-qmp"));
        operator.wait_for("query-status", |status| status["status"] == "paused");
        operator.execute("cont");
        expect_protection(&server, &mut guest);
    });
}

#[test]
fn a_restored_guest_is_reported_if_it_is_not_protected_again() {
    with_pieces("--no-rearm", |pieces| {
        let options = format!("--socket s --qmp qmp --no-rearm --watchdog {WATCHDOG}");
        let server = Builder::new().options(&options).start();
        let mut guest = boot(pieces, &server);
        let mut operator = feeding(&server, &mut guest);
        operator.add_disk(&server.path("disk"));
        operator.snapshot("snapshot-save");
        operator.snapshot("snapshot-load");
        server.expect_before("unprotected", "rearmed");
        server.expect_none("unprotected", LONGER_THAN_THE_TIMEOUT);
        // The next boot has its watchdog.
        operator.execute("system_reset");
        assert_eq!(guest.boot_status(), "0");
        let alive = crate::feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
    });
}

/// The same story with QEMU's own device.
#[test]
fn qemus_own_device_times_out_after_a_snapshot_was_loaded() {
    with_pieces("loadvm with QEMU's own device", own_device);
}

fn own_device(pieces: &Pieces) {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = pieces.machine_without_watchdog(folder.path());
    machine.args(["-device", "i6300esb"]);
    let mut guest = Guest::boot(machine);
    assert_eq!(guest.boot_status(), "0");
    guest.feed();
    let mut operator = Operator::connect(&folder.path().join("test-qmp"));
    operator.add_disk(&folder.path().join("disk"));
    operator.snapshot("snapshot-save");
    operator.snapshot("snapshot-load");
    guest.run("sleep 6");
    let alive = guest.kill_feeder();
    assert_eq!(guest.boot_status(), CARD_RESET);
    // It has booted since.
    assert!(alive.elapsed() >= FOUR_SECONDS);
    assert!(Instant::now() - alive < LATEST + Duration::from_secs(300));
}

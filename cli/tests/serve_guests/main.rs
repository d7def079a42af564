//! `vm-watchdog serve` with real VMMs and a stock Debian guest with its own driver and busybox.

mod arm64;
#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "only its connection is used here")]
mod client;
mod cloud_hypervisor;
mod guest;
mod health;
mod hot_plug;
mod qmp;
mod restored;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;
mod systemd;

use std::time::{Duration, Instant};

use serde_json::Value;
use vm_watchdog_test_support::{Unavailable, assets, skip};

use crate::guest::{Guest, Pieces};
use crate::qmp::Operator;
use crate::server::{Builder, Server};

/// WDIOF_CARDRESET: the last reset came from the watchdog.
const CARD_RESET: &str = "32";
/// The timeout of [`Guest::feed`].
const FOUR_SECONDS: Duration = seconds(4);
/// How late a timeout may be on a loaded machine. It is never early.
const LATEST: Duration = Duration::from_secs(10);
/// Long enough to show that there is no timeout.
const LONGER_THAN_THE_TIMEOUT: Duration = Duration::from_secs(6);

/// What so many seconds are to Linux' driver: two stages of units of 983,040 ns, 512 of them for a second.
const fn seconds(count: u64) -> Duration {
    Duration::from_nanos(2 * (count << 9) * 983_040)
}

/// Runs a test with a guest on x86, or reports it as skipped.
fn with_pieces(test: &str, run: impl FnOnce(&Pieces)) {
    with(test, Pieces::x86, run);
}

/// Runs a test while no other process runs guest tests, or reports it as skipped.
fn with(test: &str, pieces: impl FnOnce() -> Result<Pieces, Unavailable>, run: impl FnOnce(&Pieces)) {
    match assets::machine_for_this_process().and_then(|()| pieces()) {
        Ok(pieces) => run(&pieces),
        Err(why) => skip::loudly(test, &why),
    }
}

/// A server with one watchdog for QEMU, and a guest that has it.
fn start(pieces: &Pieces, watchdog: &str) -> (Server, Guest) {
    let server = Builder::new().options("--socket s --qmp qmp --watchdog").options(watchdog).start();
    let guest = boot(pieces, &server);
    (server, guest)
}

fn boot(pieces: &Pieces, server: &Server) -> Guest {
    let guest = Guest::boot(pieces.machine(server.folder.path(), &server.path("s")));
    server.expect_where("control", |event| event["connected"] == true);
    guest
}

/// Waits for the timeout of a guest that busybox fed, and whose last heartbeat did not come before `alive`.
fn expect_timeout(server: &Server, alive: Instant) -> Value {
    expect_timeout_of(FOUR_SECONDS, server, alive)
}

/// The same with another timeout: never early, neither by the server's clock nor by the test's, and not much later.
fn expect_timeout_of(timeout: Duration, server: &Server, alive: Instant) -> Value {
    let expiry = server.expect_where("expiry", |event| event["stage"] == "timeout");
    let waited = alive.elapsed();
    assert!(waited >= timeout, "a timeout {waited:?} after the last heartbeat, by the clock of the test: {expiry}");
    let time = |name: &str| Duration::from_nanos(expiry[name].as_u64().unwrap());
    assert_eq!(time("deadline_ns") - time("last_heartbeat_ns"), timeout, "{expiry}");
    assert!(time("observed_ns") >= time("deadline_ns"), "{expiry}");
    assert!(time("lateness_ns") < LATEST, "{expiry}");
    expiry
}

/// Lets busybox feed the watchdog, and kills it.
fn feed_and_kill(guest: &mut Guest) -> Instant {
    guest.feed();
    guest.kill_feeder()
}

fn reset(pieces: &Pieces, watchdog: &str) {
    let (server, mut guest) = start(pieces, watchdog);
    assert_eq!(guest.boot_status(), "0");
    let driver = guest.run("cat /sys/class/watchdog/watchdog0/identity; ls -d /sys/bus/pci/drivers/i6300ESB*/0000*");
    assert!(driver.contains("i6300ESB timer") && driver.contains("0000:00:"), "{driver}");
    guest.feed();
    server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
    let alive = guest.kill_feeder();
    let expiry = expect_timeout(&server, alive);
    assert!(expiry["heartbeats"].as_u64().unwrap() >= 5, "{expiry}");
    assert_eq!(server.expect("performed")["action"], "reset");
    assert_eq!(server.expect("vm")["name"], "reset");
    assert_eq!(guest.boot_status(), CARD_RESET);

    // The driver has cleared the bit: after a reset that has another cause it says so.
    Operator::connect(&server.path("test-qmp")).execute("system_reset");
    assert_eq!(guest.boot_status(), "0");
}

#[test]
fn a_guest_that_stops_feeding_is_reset_and_sees_the_cause() {
    with_pieces("reset", |pieces| reset(pieces, "i6300esb,action=reset"));
}

#[test]
fn a_watchdog_with_an_interrupt_pin_works_the_same() {
    with_pieces("reset with INTx", |pieces| reset(pieces, "i6300esb,action=reset,interrupt=intx"));
}

/// Linux finds the capability, and its driver enables no interrupt.
#[test]
fn a_watchdog_with_msi_works_the_same() {
    with_pieces("reset with MSI", |pieces| reset(pieces, "i6300esb,action=reset,interrupt=msi"));
}

/// QEMU forks before it listens and connects.
#[test]
fn a_qemu_in_the_background_is_the_process_behind_its_own_qmp_socket() {
    with_pieces("daemonize", |pieces| {
        let server = Builder::new().options("--socket s --qmp qmp").start();
        let _qemu = pieces.daemon(server.folder.path(), &server.path("s"));
        server.expect_where("control", |event| event["connected"] == true);
        // Only the VMM's reports count.
        Operator::connect(&server.path("test-qmp")).execute("stop");
        server.expect("paused");
    });
}

#[test]
fn a_guest_that_stops_feeding_is_powered_off() {
    with_pieces("poweroff", |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=poweroff");
        assert_eq!(guest.boot_status(), "0");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        guest.end();
        assert_eq!(server.expect("disconnected")["reason"], "left");
    });
}

#[test]
fn a_guest_that_stops_feeding_is_paused_and_protected_again_after_resume() {
    with_pieces("pause", |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=pause");
        assert_eq!(guest.boot_status(), "0");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        server.expect("paused");
        let mut operator = Operator::connect(&server.path("test-qmp"));
        assert_eq!(operator.status(), "paused");
        operator.execute("cont");
        server.expect("resumed");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        server.expect("paused");
    });
}

#[test]
fn a_guest_that_stops_feeding_gets_an_nmi_and_continues() {
    with_pieces("inject-nmi", |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=inject-nmi");
        assert_eq!(guest.boot_status(), "0");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        guest.run("until dmesg | grep -q 'NMI received for unknown reason'; do sleep 0.1; done");
    });
}

#[test]
fn a_pause_longer_than_the_timeout_causes_no_timeout() {
    with_pieces("a long pause", |pieces| {
        let (server, mut guest) = start(pieces, "i6300esb,action=reset");
        assert_eq!(guest.boot_status(), "0");
        guest.feed();
        server.expect("armed");
        let mut operator = Operator::connect(&server.path("test-qmp"));
        operator.execute("stop");
        server.expect("paused");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        operator.execute("cont");
        server.expect("resumed");
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        let alive = guest.kill_feeder();
        expect_timeout(&server, alive);
        assert_eq!(guest.boot_status(), CARD_RESET);
    });
}

#[test]
fn the_cause_of_the_reset_survives_a_server_that_is_killed() {
    with_pieces("kill -9 of the server", |pieces| {
        let options = "--socket s --qmp qmp --state state --watchdog i6300esb,action=poweroff";
        let server = Builder::new().options(options).start();
        let mut guest = boot(pieces, &server);
        assert_eq!(guest.boot_status(), "0");
        let alive = feed_and_kill(&mut guest);
        expect_timeout(&server, alive);
        guest.end();

        let server = server.replaced_by(options);
        let mut guest = boot(pieces, &server);
        assert_eq!(guest.boot_status(), CARD_RESET);

        // Without the server the guest runs on, unprotected.
        guest.feed();
        server.expect("armed");
        // Not within an access: QEMU 11.1 aborts when the answer to one does not come.
        guest.run("kill -STOP $feeder");
        let server = server.replaced_by(options);
        guest.run("kill -CONT $feeder; sleep 3");
        guest.kill_feeder();
        server.expect_none("expiry", LONGER_THAN_THE_TIMEOUT);
        guest.run("true");
    });
}

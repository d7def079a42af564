//! The state that survives the server.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fakes::FakeQmp;
use crate::server::{Builder, Server, TIMEOUT};

const OPTIONS: &str = "--socket s --watchdog i6300esb,action=none --state state";

/// The state in this file of the one watchdog.
fn saved_in(server: &Server, file: &str) -> Value {
    let states: Value = serde_json::from_str(&fs::read_to_string(server.path(file)).unwrap()).unwrap();
    states["watchdogs"]["watchdog0"].clone()
}

fn saved(server: &Server) -> Value {
    saved_in(server, "state")
}

/// Waits until this field of the device is on the disk.
fn wait_for(server: &Server, field: &str, value: impl Into<Value>) {
    let value = value.into();
    wait_until(server, |saved| saved["device"][field] == value);
}

fn wait_until(server: &Server, is_it: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_it(&saved(server)) {
        assert!(Instant::now() < deadline, "the state is still {}", saved(server));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_cause_of_the_last_reset_survives_a_server_that_is_killed() {
    let server = Builder::new().options(OPTIONS).start();
    let mut client = server.client();
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    wait_for(&server, "wdt_timeout", true);

    let server = server.replaced_by(OPTIONS);
    let mut client = server.client();
    assert!(client.timed_out());
    assert!(!client.is_enabled());
    client.unlock();
    client.write(crate::client::BAR0, 0x0C, &[0x00, 0x02]).unwrap();
    assert!(!client.timed_out(), "the guest has cleared it");
    wait_for(&server, "wdt_timeout", false);

    let server = server.replaced_by(OPTIONS);
    assert!(!server.client().timed_out());
}

#[test]
fn the_last_state_of_the_guest_is_saved_when_the_server_ends() {
    let mut server = Builder::new().options(OPTIONS).start();
    let mut client = server.client();
    // It is written for the first change, and not again so soon for the second.
    client.arm(60_000);
    wait_for(&server, "wdt_lock", 2);
    client.write(crate::client::CONFIG, 0x68, &[0]).unwrap();
    assert!(server.signal(Signal::TERM).success());
    assert_eq!(saved(&server)["device"]["wdt_lock"], 0);
}

#[test]
fn the_state_is_saved_before_the_action() {
    let server = Builder::new()
        .options("--socket s --watchdog i6300esb,action=poweroff --state state")
        .option("--exec", "cp state state.at-the-action")
        .start();
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
    assert_eq!(saved_in(&server, "state.at-the-action")["device"]["wdt_timeout"], true);
}

#[test]
fn a_watchdog_is_disarmed_after_a_restart_and_the_server_says_so() {
    // The clock is paused, so that two milliseconds are left however long this takes.
    let builder = Builder::new().options(OPTIONS).options("--qmp q");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let _qmp = qmp.accept(&server, false);
    server.expect("paused");
    let mut client = server.client();
    client.arm(1);
    wait_for(&server, "wdt_lock", 2);
    let server = server.replaced_by_and(OPTIONS, |server| {
        let restored = server.expect("restored");
        assert_eq!((&restored["was_armed"], &restored["wdt_timeout"]), (&true.into(), &false.into()));
    });
    server.expect_none("expiry", Duration::from_millis(300));
}

#[test]
fn a_timeout_whose_action_failed_is_reported_after_a_restart() {
    const OPTIONS: &str = "--socket s --watchdog i6300esb,action=poweroff --state state --exec false";
    let server = Builder::new().options(OPTIONS).start();
    let mut client = server.client();
    client.arm(1);
    wait_until(&server, |saved| saved["timeout"]["attempt"].as_u64() > Some(1));
    let server = server.replaced_by_and(OPTIONS, |server| {
        server.expect("restored");
        assert!(server.expect("log")["message"].as_str().unwrap().contains("is not performed"));
    });
    server.expect_none("expiry", Duration::from_millis(300));
}

#[test]
fn a_timeout_whose_vmm_has_disconnected_is_not_reported() {
    const OPTIONS: &str = "--socket s --watchdog i6300esb,action=poweroff --state state --exec false";
    let server = Builder::new().options(OPTIONS).start();
    let mut client = server.client();
    client.arm(1);
    wait_until(&server, |saved| !saved["timeout"].is_null());
    drop(client);
    wait_until(&server, |saved| saved["timeout"].is_null());
}

#[test]
fn a_corrupt_file_is_set_aside_with_a_message() {
    let builder = Builder::new().options(OPTIONS);
    fs::write(builder.path().join("state"), "{\"version\":1").unwrap();
    let server = builder.start_and(|server| {
        let log = server.expect_where("log", |event| event["level"] == "error");
        let message = log["message"].as_str().unwrap();
        assert!(message.contains("EOF while parsing") && message.contains("state.corrupt"), "{message}");
    });
    assert_eq!(fs::read_to_string(server.path("state.corrupt")).unwrap(), "{\"version\":1");
    assert_eq!(saved(&server)["version"], 1);
    assert!(!server.client().timed_out());
}

#[test]
fn two_servers_never_share_a_file() {
    let server = Builder::new().options(OPTIONS).start();
    let state = server.path("state").display().to_string();
    let second = Builder::new().options("--socket s --watchdog i6300esb,action=none").option("--state", &state);
    assert_eq!(second.fail(), (1, format!("vm-watchdog: state {state}: another process uses it\n")));
    drop(server.client());
}

#[test]
fn a_fifo_or_a_folder_instead_of_the_state_file_is_refused() {
    for make in ["mkfifo", "mkdir"] {
        let builder = Builder::new().options(OPTIONS);
        let path = builder.path().join("state");
        assert!(Command::new(make).arg(path).status().unwrap().success());
        let message = "vm-watchdog: state state: it is there and is no regular file\n".to_owned();
        assert_eq!(builder.fail(), (1, message), "{make}");
    }
}

//! Guests that run on although their VMM has reset the watchdog: after a snapshot was loaded, or a migration.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::actions::{is_timeout, with_qmp};
use crate::client::*;
use crate::fakes::QmpClient;
use crate::metrics::{metrics_port, scrape};
use crate::server::{Builder, Server, TIMEOUT};

/// The time between two heartbeats of a guest.
const INTERVAL: Duration = Duration::from_millis(600);
/// Longer than a few heartbeats take to be noticed.
const QUIET: Duration = Duration::from_millis(500);
/// A timeout of 5.9 s.
const UNITS: u32 = 3000;

fn start(options: &str) -> Server {
    Builder::new().options("--socket s --watchdog i6300esb,action=none").options(options).start()
}

/// A guest that has armed its watchdog.
fn armed(server: &Server) -> Client {
    let mut client = server.client();
    client.write(CONFIG, 0x60, &[3, 0]).unwrap();
    client.arm(UNITS);
    server.expect("armed");
    client
}

fn feed(client: &mut Client, times: u32) {
    for _ in 0..times {
        sleep(INTERVAL);
        client.ping();
    }
}

/// The value of a metric of the only watchdog.
fn metric(port: u16, name: &str) -> String {
    let metrics = scrape(port);
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("vm_watchdog_{name}{{id=\"watchdog0\"}} ")));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).to_owned()
}

#[test]
fn a_guest_that_feeds_on_after_a_reset_is_protected_again_and_times_out_when_it_stops() {
    let server = start("--metrics 0");
    let port = metrics_port(&server);
    let mut client = armed(&server);
    client.ask(RESET, &[]).unwrap();
    client.ask(RESET, &[]).unwrap();
    server.expect("disarmed");
    assert!(!client.is_enabled());
    feed(&mut client, 3);
    let last = Instant::now();
    server.expect_before("rearmed", "unprotected");
    server.expect("armed");
    assert!(client.is_enabled());
    assert_eq!((metric(port, "rearmed_total"), metric(port, "unprotected")), ("1".to_owned(), "0".to_owned()));
    assert_eq!(client.read(CONFIG, 0x60, 2).unwrap(), [3, 0]);
    for preload in [0x00, 0x04] {
        assert_eq!(client.read(BAR0, preload, 4).unwrap(), UNITS.to_le_bytes());
    }
    server.expect_where("expiry", is_timeout);
    // The heartbeat that it was armed by came before `last`, and hardly.
    assert!(last.elapsed() >= Duration::from_nanos(2 * u64::from(UNITS) * 983_040) - QUIET);
}

#[test]
fn a_guest_that_feeds_on_over_a_new_connection_or_a_new_server_is_protected_again() {
    const OPTIONS: &str = "--socket s --watchdog i6300esb,action=none --state state";
    let server = Builder::new().options(OPTIONS).start();
    drop(armed(&server));
    server.expect("disconnected");
    let mut client = server.client();
    feed(&mut client, 3);
    server.expect("rearmed");
    assert!(client.is_enabled());
    // The state is written soon.
    let deadline = Instant::now() + TIMEOUT;
    while !std::fs::read_to_string(server.path("state")).unwrap().contains("\"wdt_lock\": 2") {
        assert!(Instant::now() < deadline);
        sleep(QUIET / 10);
    }
    drop(client);
    let server = server.replaced_by(OPTIONS);
    let mut client = server.client();
    feed(&mut client, 3);
    server.expect("rearmed");
    assert_eq!(client.read(BAR0, 0x00, 4).unwrap(), UNITS.to_le_bytes());
}

#[test]
fn a_guest_that_is_not_protected_again_is_reported_once() {
    for (options, is_known, reason) in [
        ("--metrics 0 --no-rearm", true, "it is not armed again with --no-rearm"),
        ("--metrics 0", false, "what it had set before is not known"),
    ] {
        let server = start(options);
        let port = metrics_port(&server);
        let mut client = if is_known { armed(&server) } else { server.client() };
        client.ask(RESET, &[]).unwrap();
        assert_eq!(metric(port, "unprotected"), "0");
        feed(&mut client, 3);
        assert_eq!(server.expect_before("unprotected", "rearmed")["reason"], reason);
        assert!(!client.is_enabled());
        feed(&mut client, 2);
        server.expect_none("unprotected", QUIET);
        assert_eq!(metric(port, "unprotected"), "1");
        assert_eq!(metric(port, "rearmed_total"), "0");
        // The driver has sent one before it armed the watchdog.
        assert_eq!(metric(port, "heartbeats_while_disarmed_total"), if is_known { "6" } else { "5" });
        // The guest arms it anew, as after a reboot.
        client.arm(UNITS);
        server.expect("armed");
        assert_eq!(metric(port, "unprotected"), "0");
    }
}

#[test]
fn a_guest_that_boots_after_a_reset_is_left_alone() {
    let server = start("");
    let mut client = armed(&server);
    client.ask(RESET, &[]).unwrap();
    // Linux' driver attaches, and its user sets the timeout many times before the watchdog is opened.
    client.write(CONFIG, 0x60, &[3, 0]).unwrap();
    client.write(CONFIG, 0x68, &[0]).unwrap();
    feed(&mut client, 5);
    server.expect_none("rearmed", QUIET);
    assert!(!client.is_enabled());
    // It was disarmed before this reset.
    client.ask(RESET, &[]).unwrap();
    feed(&mut client, 3);
    assert_eq!(server.expect_before("unprotected", "rearmed")["reason"], "what it had set before is not known");
}

/// The accesses of firmware and guest that map BAR0.
fn map(client: &mut Client, address: u32) {
    client.write(CONFIG, 0x10, &address.to_le_bytes()).unwrap();
    client.write(CONFIG, 0x04, &[0x03, 0x01]).unwrap();
}

/// A QEMU that loads a snapshot: it resets the device and does not map it.
fn load_snapshot(client: &mut Client) {
    client.ask(RESET, &[]).unwrap();
    client.write(CONFIG, 0x10, &[0; 4]).unwrap();
}

/// Answers the commands of a server that maps the device again, as QEMU 11.1 does, up to the last.
fn answer_remap(qmp: &mut QmpClient, client: &mut Client) {
    qmp.answer("query-target", json!({"arch": "x86_64"}));
    let region =
        json!({"bar": 0, "address": -1, "size": 16, "type": "memory", "prefetch": false, "mem_type_64": false});
    let id = json!({"vendor": 0x8086, "device": 0x25AB, "subsystem": 0, "subsystem-vendor": 0});
    let function = json!({"bus": 0, "slot": 2, "function": 0, "id": id, "regions": [region], "qdev_id": "",
        "class_info": {"class": 0x880}, "irq_pin": 0});
    qmp.answer("query-pci", json!([{"bus": 0, "devices": [function]}]));
    qmp.answer("query-status", json!({"status": "running", "running": true}));
    qmp.answer("stop", json!({}));
    qmp.event("STOP");
    let mut commands = Vec::new();
    for answer in ["portl[0x0cf8] = 0x80001068\r\n", "", "", "", "portw[0x0cfc] = 0x0101\r\n", "", ""] {
        let arguments = qmp.answer("human-monitor-command", json!(answer));
        commands.push(arguments["command-line"].as_str().unwrap().to_owned());
    }
    let expected = [
        "i /w 0xcf8",
        "o /w 0xcf8 0x80001010",
        "o /w 0xcfc 0xfebff000",
        "o /w 0xcf8 0x80001004",
        "i /h 0xcfc",
        "o /h 0xcfc 0x103",
        "o /w 0xcf8 0x80001068",
    ];
    assert_eq!(commands, expected);
    map(client, 0xFEBF_F000);
}

#[test]
fn a_guest_that_qemu_restores_without_the_address_of_its_watchdog_gets_it_back() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.write(CONFIG, 0x10, &[0xFF; 4]).unwrap();
    map(&mut client, 0xFEBF_F000);
    client.arm(60_000);
    load_snapshot(&mut client);
    // A while of the VM's time in which a guest would have booted.
    qmp.no_command(Duration::from_secs(15));
    answer_remap(&mut qmp, &mut client);
    qmp.answer("cont", json!({}));
    qmp.event("RESUME");
    server.expect_before("remapped", "unprotected");
    feed(&mut client, 3);
    server.expect("rearmed");
    assert!(client.is_enabled());
}

#[test]
fn a_guest_whose_watchdog_cannot_be_mapped_again_is_reported() {
    let server = Builder::new().options("--socket s --metrics 0 --qmp qmp --no-rearm --watchdog i6300esb,action=none");
    let qmp = crate::fakes::FakeQmp::listen(&server.path().join("qmp"));
    let server = server.start();
    let port = metrics_port(&server);
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    map(&mut client, 0xFEBF_F000);
    client.arm(60_000);
    load_snapshot(&mut client);
    let event: Value = server.expect("unprotected");
    assert_eq!(event["reason"], "its heartbeats do not arrive: with --no-rearm its address is not put back");
    assert_eq!(metric(port, "unprotected"), "1");
    qmp.no_command(QUIET);
    server.expect_none("unprotected", QUIET);
    // The guest boots: its firmware sizes BAR0.
    client.write(CONFIG, 0x10, &[0xFF; 4]).unwrap();
    map(&mut client, 0xFEBF_F000);
    let deadline = Instant::now() + TIMEOUT;
    while metric(port, "unprotected") != "0" {
        assert!(Instant::now() < deadline, "it is reported for ever");
        sleep(Duration::from_millis(20));
    }
}

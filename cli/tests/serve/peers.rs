//! What a hostile QEMU or Cloud Hypervisor sends, at any length and any speed.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fakes::{FakeQmp, cloud_hypervisor};
use crate::server::{Builder, Server, TIMEOUT};

/// Far less than a tree of 64 KiB of JSON takes.
const LITTLE_MEMORY: u64 = 1 << 20;
/// Less than the server waits in all before it gives up a QMP connection, and a little more.
const SETUP: Duration = Duration::from_secs(10);

fn with_qmp() -> (Server, FakeQmp) {
    let builder = Builder::new().options("--socket s --qmp q --watchdog i6300esb,action=reset");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    (builder.start(), qmp)
}

/// The most memory that the server has had.
fn peak_memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn lost(server: &Server, reason: &str) {
    server.expect_where("control", |event| event["reason"].as_str().is_some_and(|told| told.contains(reason)));
}

#[test]
fn a_message_of_qemu_takes_little_memory() {
    let (server, qmp) = with_qmp();
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    let id = qmp.command()["id"].clone();
    server.expect("expiry");
    let before = peak_memory(&server);
    let tree = vec![json!({"": 0}); 8000];
    qmp.say(json!({"event": "NIC_RX_FILTER_CHANGED", "data": tree}));
    qmp.say(json!({"return": tree, "id": id}));
    server.expect("performed");
    let used = peak_memory(&server) - before;
    assert!(used < LITTLE_MEMORY, "{used} bytes for 64 KiB");
}

#[test]
fn a_message_of_qemu_that_is_too_long_is_an_error_that_names_it() {
    let (server, qmp) = with_qmp();
    let mut client = qmp.accept(&server, true);
    client.say(json!({"event": "NIC_RX_FILTER_CHANGED", "data": "x".repeat(60_000)}));
    client.event("STOP");
    server.expect("paused");
    client.say(json!({"event": "NIC_RX_FILTER_CHANGED", "data": "x".repeat(70_000)}));
    lost(&server, "QEMU sends a message of more than 65536 bytes");
}

#[test]
fn events_without_end_before_an_answer_are_an_error() {
    let (server, qmp) = with_qmp();
    let mut stream = qmp.accept_silently();
    let _ = stream.write_all(b"{\"QMP\": {}}\n");
    let started = Instant::now();
    while stream.write_all(b"{\"event\": \"NIC_RX_FILTER_CHANGED\"}\n").is_ok() {
        assert!(started.elapsed() < TIMEOUT, "they are read without end");
    }
    lost(&server, "QEMU sends more than 65536 bytes before it has answered");
}

#[test]
fn a_qemu_that_sends_a_byte_now_and_then_is_given_up() {
    let (server, qmp) = with_qmp();
    let mut stream = qmp.accept_silently();
    let started = Instant::now();
    while stream.write_all(b" ").is_ok() {
        assert!(started.elapsed() < SETUP, "it is waited for");
        std::thread::sleep(Duration::from_millis(100));
    }
    lost(&server, "QEMU has not answered query-status within 5s");
}

#[test]
fn an_answer_of_cloud_hypervisor_that_does_not_end_is_an_error() {
    let builder = Builder::new().options("--socket s --cloud-hypervisor c");
    let endless: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(20)).into_boxed_str());
    let long: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(20_000)).into_boxed_str());
    let calls = cloud_hypervisor(&builder.path().join("c"), vec![endless, long, "HTTP/1.1 204 No Content\r\n\r\n"]);
    let server = builder.start();
    let mut client = server.client();
    client.arm(1);
    for reason in ["closed the connection", "the header of the answer is longer than 16384 bytes"] {
        calls.recv_timeout(TIMEOUT).unwrap();
        let told = server.expect("action-failed")["reason"].as_str().unwrap().to_owned();
        assert!(told.contains(reason), "{told}");
    }
    server.expect("performed");
}

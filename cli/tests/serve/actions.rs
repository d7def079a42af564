//! What a timeout does to the VM, by QMP and by Cloud Hypervisor's API.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::fakes::{FakeQmp, cloud_hypervisor};
use crate::server::{Builder, Server, TIMEOUT};

/// A server with one watchdog that acts through a fake QEMU.
pub fn with_qmp(watchdog: &str) -> (Server, FakeQmp) {
    let builder = Builder::new().options("--socket s --qmp q --watchdog").options(watchdog);
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    (builder.start(), qmp)
}

pub fn is_timeout(event: &Value) -> bool {
    event["stage"] == "timeout"
}

#[test]
fn each_action_is_a_command_of_qmp() {
    for (action, command) in [
        ("reset", "system_reset"),
        ("shutdown", "system_powerdown"),
        ("poweroff", "quit"),
        ("pause", "stop"),
        ("inject-nmi", "inject-nmi"),
    ] {
        let (server, qmp) = with_qmp(&format!("i6300esb,action={action},id=wd"));
        let mut qmp = qmp.accept(&server, true);
        let mut client = server.client();
        client.arm(1);
        qmp.answer(command, json!({}));
        assert_eq!(server.expect("performed")["action"], action);
        assert!(client.timed_out());
        qmp.no_command(Duration::from_millis(50));
    }
}

#[test]
fn the_pretimeout_has_an_action_of_its_own() {
    let (server, qmp) = with_qmp("i6300esb,pretimeout=inject-nmi,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(50);
    qmp.answer("inject-nmi", json!({}));
    qmp.answer("system_reset", json!({}));
}

#[test]
fn an_action_does_not_block_accesses_to_the_device() {
    // While QEMU performs the reset, it sends requests to its device.
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    let command = qmp.command();
    assert_eq!(command["execute"], "system_reset");
    assert!(client.timed_out());
    client.ask(crate::client::RESET, &[]).unwrap();
    assert!(!client.is_enabled());
    qmp.say(json!({"return": {}, "id": command["id"]}));
    server.expect("performed");
}

#[test]
fn a_command_that_qemu_refuses_is_tried_again_and_then_escalated() {
    let (server, qmp) = with_qmp("i6300esb,action=shutdown,grace=60s,then=poweroff");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    for attempt in 1..=5 {
        qmp.refuse("system_powerdown", "not now");
        let failed = server.expect("action-failed");
        assert_eq!(failed["reason"], "QEMU refuses system_powerdown: not now", "attempt {attempt}");
    }
    qmp.answer("quit", json!({}));
    assert_eq!(server.expect_where("expiry", |event| event["stage"] == "escalation")["action"], "poweroff");
    assert_eq!(server.expect("performed")["action"], "poweroff");
}

#[test]
fn a_reason_from_qemu_is_sanitized_and_truncated() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    let forged = format!("not now\n[    9.000000 s] another: armed\x1B[2J{}", "x".repeat(60_000));
    qmp.say(json!({"event": "RESET", "data": {"reason": forged}}));
    let told = server.expect("vm")["reason"].as_str().unwrap().to_owned();
    assert!(told.starts_with("not now\u{FFFD}[    9.000000 s] another: armed\u{FFFD}[2Jxxx"), "{told}");
    assert_eq!(told.chars().count(), 200 + "...".len());

    client.arm(1);
    qmp.refuse("system_reset", &forged);
    assert_eq!(server.expect("action-failed")["reason"], format!("QEMU refuses system_reset: {told}"));
}

#[test]
fn an_action_is_retried_until_the_qmp_socket_exists() {
    let builder = Builder::new().options("--socket s --qmp q");
    let path = builder.path().join("q");
    let server = builder.start();
    let control = server.expect("control");
    assert_eq!(control["connected"], false);
    assert!(control["reason"].as_str().unwrap().contains("No such file"), "{control}");
    let mut client = server.client();
    client.arm(1);
    let failed = server.expect("action-failed");
    assert_eq!(failed["action"], "reset");
    assert!(failed["reason"].as_str().unwrap().contains("No such file"), "{failed}");

    let qmp = FakeQmp::listen(&path);
    qmp.accept(&server, true).answer("system_reset", json!({}));
    assert_eq!(server.expect("performed")["action"], "reset");
}

#[test]
fn a_lost_qmp_connection_is_established_again() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    for _ in 0..3 {
        drop(qmp.accept(&server, true));
        server.expect_where("control", |event| event["connected"] == false);
    }
    // Another client is connected first, and then disconnects.
    let busy = qmp.accept_silently();
    drop(busy);
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    qmp.answer("system_reset", json!({}));
}

#[test]
fn a_lost_connection_does_not_count_as_poweroff() {
    let (server, qmp) = with_qmp("i6300esb,action=poweroff");
    let mut first = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    assert_eq!(first.command()["execute"], "quit");
    drop(first);
    server.expect("action-failed");
    let mut second = qmp.accept(&server, true);
    assert_eq!(second.command()["execute"], "quit");
    // QEMU does not answer this one: it ends, and the connection of its device with it.
    drop((second, client));
    server.expect("disconnected");
    qmp.accept(&server, true).no_command(Duration::from_millis(500));
}

#[test]
fn a_missing_answer_is_a_failure_and_a_late_one_is_ignored() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    let first = qmp.command();
    let failed = server.expect("action-failed");
    assert_eq!(failed["reason"], "QEMU has not answered system_reset within 5s");
    let second = qmp.command();
    assert_ne!(first["id"], second["id"]);
    qmp.say(json!({"error": {"desc": "too late"}, "id": first["id"]}));
    qmp.say(json!({"return": {}, "id": second["id"]}));
    server.expect("performed");
}

#[test]
fn a_socket_that_does_not_speak_qmp_is_an_error() {
    let (server, qmp) = with_qmp("i6300esb,action=none");
    for nonsense in [&b"hello\n"[..], b"{}\n", b"[1,2]\n", b"\xFF\xFF\n", &[b'['; 100_000]] {
        let mut stream = qmp.accept_silently();
        // The server may have closed the connection before.
        let _ = std::io::Write::write_all(&mut stream, nonsense);
        drop(stream);
    }
    let mut qmp = qmp.accept(&server, true);
    for message in
        [json!(7), json!({"event": 7}), json!({"event": "STOP", "data": 7}), json!({"return": {}, "id": "x"})]
    {
        qmp.say(message);
    }
    server.expect("paused");
}

#[test]
fn a_reset_or_shutdown_of_the_vm_ends_the_escalation() {
    for event in ["RESET", "SHUTDOWN"] {
        let (server, qmp) = with_qmp("i6300esb,action=shutdown,grace=100ms,then=poweroff");
        let mut qmp = qmp.accept(&server, true);
        let mut client = server.client();
        client.arm(1);
        let command = qmp.command();
        assert_eq!(command["execute"], "system_powerdown");
        // The grace period begins on a paused clock, so it cannot end before the event arrives.
        qmp.pause(&server);
        qmp.say(json!({"return": {}, "id": command["id"]}));
        server.expect("performed");
        qmp.event(event);
        let told = server.expect("vm");
        assert_eq!((&told["name"], &told["reason"]), (&event.to_lowercase().into(), &"host-qmp".into()));
        qmp.resume(&server);
        qmp.no_command(Duration::from_millis(500));
    }
}

#[test]
fn two_watchdogs_of_one_vm_share_its_qmp_socket() {
    let watchdogs = "--watchdog i6300esb --watchdog i6300esb,action=inject-nmi";
    let builder = Builder::new().options("--qmp q --socket s --socket t").options(watchdogs);
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let mut qmp = qmp.accept(&server, true);
    let (mut s, mut t): (Client, Client) = (server.client_of("s"), server.client_of("t"));
    s.arm(1);
    t.arm(1);
    let first = qmp.command();
    qmp.no_command(Duration::from_millis(100)); // the second one waits for its turn
    qmp.say(json!({"return": {}, "id": first["id"]}));
    let second = qmp.command();
    qmp.say(json!({"return": {}, "id": second["id"]}));
    let mut commands = [first, second].map(|command| command["execute"].as_str().unwrap().to_owned());
    commands.sort();
    assert_eq!(commands, ["inject-nmi", "system_reset"]);
    qmp.event("STOP");
    for id in ["watchdog0", "watchdog1"] {
        server.expect_where("paused", |event| event["id"] == id);
    }
}

#[test]
fn each_action_is_a_call_of_cloud_hypervisor() {
    for (action, poweroff, call) in [
        ("reset", "", "vm.reboot"),
        ("shutdown", "", "vm.power-button"),
        ("poweroff", "", "vmm.shutdown"),
        ("poweroff", "--poweroff vm.shutdown", "vm.shutdown"),
        ("pause", "", "vm.pause"),
        ("inject-nmi", "", "vm.nmi"),
    ] {
        let builder = Builder::new()
            .options("--socket s --cloud-hypervisor c --watchdog")
            .options(&format!("i6300esb,action={action}"))
            .options(poweroff);
        let answers = vec![
            "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nno!",
            "",
            "HTTP/1.1 204 No Content\r\nServer: Cloud Hypervisor API\r\n\r\n",
        ];
        let calls = cloud_hypervisor(&builder.path().join("c"), answers);
        let server = builder.start();
        let mut client = server.client();
        client.arm(1);
        let next = || calls.recv_timeout(TIMEOUT).unwrap();
        let expected = format!("PUT /api/v1/{call} HTTP/1.1");
        assert_eq!(next(), expected);
        let reason = server.expect("action-failed")["reason"].as_str().unwrap().to_owned();
        assert_eq!(reason, format!("Cloud Hypervisor refuses {call}: status 500"));
        assert_eq!(next(), expected);
        server.expect("action-failed");
        assert_eq!(next(), expected);
        assert_eq!(server.expect("performed")["action"], action);
    }
}

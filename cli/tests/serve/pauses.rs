//! A pause of the VM and its watchdog. The clock is paused with the VM, so an armed watchdog has the same time left after
//! the pause, however long this machine takes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::actions::{is_timeout, with_qmp};

/// Longer than any timeout that must not come.
const QUIET: Duration = Duration::from_millis(300);
/// A unit of the preload registers: 2^15 ticks of 30 ns.
const UNIT_NS: u64 = 983_040;

fn number(event: &Value, name: &str) -> u64 {
    event[name].as_u64().unwrap_or_else(|| panic!("{name} in {event}"))
}

#[test]
fn a_pause_by_qmp_stops_the_watchdog_and_keeps_the_remaining_time() {
    const UNITS: u32 = 200;
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    // Paused again before the deadline. Repeated if this machine was too slow for that.
    let (deadline, paused_at) = loop {
        let armed_at = qmp.pause(&server);
        client.arm(UNITS);
        qmp.resume(&server);
        let deadline = armed_at + 2 * u64::from(UNITS) * UNIT_NS;
        let paused_at = qmp.pause(&server);
        if paused_at < deadline {
            break (deadline, paused_at);
        }
        qmp.resume(&server);
        qmp.answer("system_reset", json!({}));
    };
    qmp.no_command(Duration::from_nanos(deadline - paused_at) + QUIET);
    assert_eq!(qmp.vm_time(&server), paused_at, "the clock is stopped");
    let resumed = Instant::now();
    qmp.event("RESUME");
    let expiry = server.expect_where("expiry", is_timeout);
    assert!(
        resumed.elapsed() >= Duration::from_nanos(deadline - paused_at),
        "the remaining time is the same after the pause"
    );
    assert_eq!(number(&expiry, "deadline_ns"), deadline);
    assert!(number(&expiry, "observed_ns") >= deadline, "{expiry}");
    qmp.answer("system_reset", json!({}));
}

#[test]
fn the_end_of_a_pause_is_recorded_after_any_number_of_events() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    qmp.pause(&server);
    // More events than the budget allows at once, and then a delay for one more.
    for _ in 0..60 {
        drop(server.client());
    }
    std::thread::sleep(Duration::from_millis(300));
    qmp.resume(&server);
}

#[test]
fn a_vm_that_is_paused_when_qmp_connects_stops_the_clock() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, false);
    let paused_at = number(&server.expect("paused"), "vm_time_ns");
    let mut client = server.client();
    client.arm(1);
    qmp.no_command(QUIET);
    qmp.event("RESUME");
    assert_eq!(number(&server.expect_where("expiry", is_timeout), "deadline_ns"), paused_at + 2 * UNIT_NS);
    qmp.answer("system_reset", json!({}));
}

#[test]
fn the_action_pause_stops_the_clock_that_its_own_thread_runs_on() {
    // STOP comes before the answer to `stop`, on the connection that the handler waits for.
    let (server, qmp) = with_qmp("i6300esb,action=pause,grace=100ms,then=poweroff");
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    client.arm(1);
    let command = qmp.command();
    assert_eq!(command["execute"], "stop");
    qmp.event("STOP");
    qmp.say(json!({"return": {}, "id": command["id"]}));
    server.expect_before("performed", "action-failed");
    // The grace period is on the VM's clock, which is paused.
    qmp.no_command(QUIET);
    qmp.event("RESUME");
    qmp.answer("quit", json!({}));
}

#[test]
fn a_new_vm_does_not_inherit_the_pause_of_the_last_one() {
    let (server, qmp) = with_qmp("i6300esb,action=none");
    let mut first = qmp.accept(&server, true);
    let client = server.client();
    first.pause(&server);
    drop((first, client));
    server.expect("disconnected");
    server.expect_where("control", |event| event["connected"] == false);
    // From here on the fake QEMU accepts no connection.
    let mut client = server.client();
    client.arm(1);
    server.expect_where("expiry", is_timeout);
}

#[test]
fn a_vm_is_protected_although_qmp_was_lost_while_it_was_paused() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut first = qmp.accept(&server, true);
    let mut client = server.client();
    first.pause(&server);
    client.arm(1);
    server.expect_none("expiry", QUIET);
    drop(first);
    server.expect_where("control", |event| event["connected"] == false);
    server.expect("resumed");
    // Without QMP the VM counts as running; the action is retried until QMP is connected again.
    server.expect_where("expiry", is_timeout);
    qmp.accept(&server, true).answer("system_reset", json!({}));
}

#[test]
fn a_vm_that_is_still_paused_when_qmp_reconnects_stops_the_clock() {
    let (server, qmp) = with_qmp("i6300esb,action=reset");
    let mut first = qmp.accept(&server, true);
    first.pause(&server);
    drop(first);
    server.expect("resumed");
    let _second = qmp.accept(&server, false);
    server.expect("paused");
}

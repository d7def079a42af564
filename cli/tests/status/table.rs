//! The table at 80 columns, of servers whose status is fixed.

use serde_json::{Value, json};

use crate::{listen, run, status, with_status};

/// A watchdog that is well.
fn watchdog(id: &str) -> Value {
    json!({
        "id": id, "socket": "/run/vm-watchdog/x/watchdog", "connected": true, "armed": true, "unprotected": false,
        "timed_out": false, "period_ms": 60_000, "time_left_ms": 41_200, "heartbeats": 7, "last_heartbeat_ms": 18_800,
        "timeouts": 0, "last_action": null,
    })
}

fn vm(watchdogs: Value) -> Value {
    json!({
        "version": 1, "name": null, "server_version": "0.1.0", "uptime_ms": 5, "actions_by": "QMP", "qmp_connected": true,
        "paused": false, "watchdogs": watchdogs, "probes": [],
    })
}

/// A value with some fields replaced.
fn with(mut value: Value, fields: Value) -> Value {
    for (name, field) in fields.as_object().unwrap() {
        value[name] = field.clone();
    }
    value
}

fn probe(probe: &str, result: &str, reason: Value) -> Value {
    json!({"probe": probe, "result": result, "reason": reason, "last_action": null})
}

fn action(action: &str, outcome: &str, reason: Value, age_ms: u64) -> Value {
    json!({"action": action, "stage": "timeout", "outcome": outcome, "reason": reason, "age_ms": age_ms})
}

/// VMs in every state.
fn fleet() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, status: Value| with_status(folder.path(), name, &status);
    put("web-01", vm(json!([watchdog("watchdog0")])));
    // The spaces after the reason are not shown.
    let silent = json!({"time_left_ms": null, "last_heartbeat_ms": 7_300_000,
        "last_action": action("reset", "failed", json!("QEMU refuses system_reset: not now  "), 7_240_000)});
    put("web-02", vm(json!([with(watchdog("watchdog0"), silent)])));
    let recovered = json!({"last_action": action("reset", "performed", json!(null), 172_800_000)});
    let new = json!({"armed": false, "period_ms": null, "time_left_ms": null, "last_heartbeat_ms": null});
    put("pair", vm(json!([with(watchdog("system"), recovered), with(watchdog("app"), new)])));
    let probed = json!({"probes": [probe("liveness", "success", json!(null)),
        probe("readiness", "failure", json!("3 failures in a row, the last one: HTTP probe failed with statuscode: 503"))]});
    put("shop", with(vm(json!([watchdog("dog")])), probed));
    let restored = json!({"armed": false, "unprotected": true, "period_ms": null, "time_left_ms": null});
    put("restored-from-a-snapshot-of-last-week", vm(json!([with(watchdog("watchdog0"), restored)])));
    let gone = json!({"connected": false, "armed": false, "period_ms": null, "time_left_ms": null});
    put("crashed", vm(json!([with(watchdog("watchdog0"), gone.clone())])));
    put("off", with(vm(json!([with(watchdog("watchdog0"), gone)])), json!({"qmp_connected": null})));
    let delayed =
        json!({"time_left_ms": 3_599_001, "last_action": action("inject-nmi", "delayed", json!(null), 4_000)});
    put("paused", with(vm(json!([with(watchdog("watchdog0"), delayed)])), json!({"paused": true})));
    let probes = json!([probe("liveness", "failure", json!("2 failures in a row"))]);
    put("probes-only", with(vm(json!([])), json!({"probes": probes})));
    drop(listen(folder.path(), "dead"));
    folder
}

const TABLE: &str = "\
NAME           CONNECTED  ARMED  TIME LEFT  HEARTBEAT  LAST ACTION     PROBES
crashed        lost       no     -          18s ago    -               -
dead           no server
off            no         no     -          18s ago    -               -
pair/system    yes        yes    42s        18s ago    reset 2d ago    -
pair/app       yes        no     -          never      -               -
paused         paused     yes    60m00s     18s ago    delayed injec…  -
probes-only    -          -      -          -          -               not alive
restored-fro…  yes        lost   -          18s ago    -               -
shop           yes        yes    42s        18s ago    -               not ready
web-01         yes        yes    42s        18s ago    -               -
web-02         yes        yes    timed out  2h ago     failed reset…   -

crashed: QEMU runs and has lost its watchdog
probes-only: not alive: 2 failures in a row
restored-from-a-snapshot-of-last-week: the guest believes in a protection that…
shop: not ready: 3 failures in a row, the last one: HTTP probe failed with stat…
web-02: reset failed: QEMU refuses system_reset: not now
";

#[test]
fn a_fleet_is_readable_at_80_columns() {
    let folder = fleet();
    let shown = status(folder.path(), &[]);
    assert!(shown.output == TABLE, "{}", shown.output);
    assert_eq!((shown.status, shown.messages.as_str()), (Some(3), ""));
    assert!(shown.output.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn narrow_lines_are_cut_and_what_a_program_reads_is_not() {
    let folder = fleet();
    let narrow = run(crate::command(folder.path()).env("COLUMNS", "40"));
    assert!(narrow.output.lines().all(|line| line.chars().count() <= 40), "{}", narrow.output);
    assert!(narrow.output.contains("restored-fr…  yes"), "{}", narrow.output);
    let whole = run(crate::command(folder.path()).env_remove("COLUMNS"));
    assert!(whole.output.contains("restored-from-a-snapshot-of-last-week  yes"), "{}", whole.output);
    assert!(!whole.output.contains('…'), "{}", whole.output);
}

#[test]
fn the_status_says_whether_a_vm_is_well() {
    let folder = fleet();
    for (names, expected) in [
        (&["web-01"][..], 0),
        (&["web-02"], 3),
        (&["pair"], 4),
        (&["shop"], 4),
        (&["restored-from-a-snapshot-of-last-week"], 3),
        (&["crashed"], 3),
        (&["off"], 4),
        (&["paused"], 4),
        (&["probes-only"], 3),
        (&["dead"], 3),
        (&["none"], 3),
        (&["web-01", "off"], 4),
        (&["off", "dead"], 3),
    ] {
        assert_eq!(status(folder.path(), names).status, Some(expected), "{names:?}");
    }
    assert_eq!(status(folder.path(), &["--watch=0"]).status, Some(2));
    assert_eq!(status(&folder.path().join("off/metrics"), &[]).status, Some(1), "it is no folder");
    let none = status(&folder.path().join("none"), &[]);
    assert_eq!((none.status, none.output.as_str()), (Some(0), ""));
    assert!(none.messages.ends_with("none: no VM\n"), "{}", none.messages);
}

#[test]
fn json_has_what_the_table_has_and_the_whole_status() {
    let folder = fleet();
    let shown = status(folder.path(), &["--json", "shop", "dead"]);
    assert_eq!(shown.status, Some(3));
    let [shop, dead] = shown.json()["vms"].as_array().unwrap().clone().try_into().unwrap();
    assert_eq!(shown.json()["version"], 1);
    let socket = folder.path().join("shop/metrics");
    assert_eq!((&shop["name"], &shop["socket"]), (&json!("shop"), &json!(socket.to_str().unwrap())));
    assert_eq!((&shop["severity"], &shop["error"]), (&json!("warning"), &json!(null)));
    let reason = "not ready: 3 failures in a row, the last one: HTTP probe failed with statuscode: 503";
    assert_eq!(shop["findings"], json!([reason]));
    assert_eq!(shop["status"]["watchdogs"], json!([watchdog("dog")]));
    assert_eq!((&dead["severity"], &dead["error"]), (&json!("critical"), &json!("no server")));
    assert_eq!(dead["status"], json!(null));
}

#[test]
fn colours_are_for_terminals_and_for_who_asks_for_them() {
    let folder = fleet();
    let has_colour = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = crate::command(folder.path());
        command.args(arguments).envs(variable);
        run(&mut command).output.contains('\x1b')
    };
    assert!(!has_colour(&[], None));
    assert!(has_colour(&["--color=always"], None));
    assert!(has_colour(&["--color", "always"], Some(("NO_COLOR", "1"))), "the option is newer than the variable");
    assert!(!has_colour(&["--color=never"], Some(("CLICOLOR_FORCE", "1"))));
    let table = status(folder.path(), &["--color=always", "web-01", "dead"]).output;
    assert!(table.contains("\x1b[1m\x1b[31mno server\x1b[0m"), "{table:?}");
    assert!(!table.contains("web-01\x1b"), "what is well has none: {table:?}");
}

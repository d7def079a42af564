//! `exec` through the guest agent.

use serde_json::{Value, json};
use vm_watchdog_probes::Outcome;

use crate::support::{Agent, assert_fails};

/// An agent whose command has this status once it was asked three times.
fn agent(status: Value) -> Agent {
    let mut asked = 0;
    Agent::answering(move |command| {
        let command: Value = serde_json::from_str(command).expect("JSON");
        let answer = match command["execute"].as_str() {
            Some("guest-exec") => {
                let expected = json!({ "path": "cat", "arg": ["/tmp/healthy"], "capture-output": true });
                assert_eq!(command["arguments"], expected);
                json!({ "pid": 1234 })
            }
            Some("guest-exec-status") => {
                assert_eq!(command["arguments"], json!({ "pid": 1234 }));
                asked += 1;
                if asked < 3 { json!({ "exited": false }) } else { status.clone() }
            }
            other => panic!("unexpected command {other:?}"),
        };
        json!({ "return": answer }).to_string()
    })
}

fn exec(status: Value) -> Outcome {
    agent(status).exec(&["cat", "/tmp/healthy"])
}

#[test]
fn the_exit_code_0_passes() {
    assert_eq!(exec(json!({ "exited": true, "exitcode": 0 })), Outcome::Success);
    let output = json!({ "exited": true, "exitcode": 0, "out-data": "b2sK", "err-data": "d2FybmluZwo=" });
    assert_eq!(exec(output), Outcome::Success);
}

#[test]
fn another_exit_code_fails_with_what_the_command_wrote() {
    let rows = [
        (json!({ "exitcode": 1 }), "exec probe failed: exit code 1"),
        (json!({ "exitcode": 1, "err-data": "bm90IHRoZXJlCg==" }), "exec probe failed: exit code 1: not there"),
        (json!({ "exitcode": 2, "out-data": "c3Rkb3V0" }), "exec probe failed: exit code 2: stdout"),
        (
            json!({ "exitcode": 2, "out-data": "c3Rkb3V0", "err-data": "ZXJyb3I=" }),
            "exec probe failed: exit code 2: error",
        ),
        (json!({ "exitcode": 3, "out-data": "not Base64!" }), "exec probe failed: exit code 3"),
        (json!({ "exitcode": -1073741819i64 }), "exec probe failed: exit code -1073741819"),
        (json!({ "signal": 9 }), "exec probe failed: signal 9"),
        (json!({}), "exec probe failed: no exit code"),
    ];
    for (mut status, expected) in rows {
        status["exited"] = true.into();
        assert_eq!(exec(status), Outcome::Failure(expected.to_owned()));
    }
}

#[test]
fn the_output_may_be_as_long_as_the_agent_allows() {
    // 16 MiB in Base64, of standard output and of standard error.
    let data = "eHh4".repeat((16 << 20) / 3);
    let long = json!({ "exited": true, "exitcode": 0, "out-data": data, "err-data": data });
    assert_eq!(agent(long).exec(&["cat", "/tmp/healthy"]), Outcome::Success);
}

#[test]
fn a_command_that_does_not_exist_fails() {
    let agent = Agent::answering(|_| {
        json!({ "error": { "class": "GenericError", "desc": "Failed to execute child process \"absent\"" } })
            .to_string()
    });
    let outcome = agent.exec(&["absent"]);
    assert_fails(
        &outcome,
        "exec probe failed: the guest agent does not run it: Failed to execute child process \"absent\"",
    );
}

#[test]
fn a_command_that_does_not_end_times_out() {
    let agent = Agent::answering(|command| match command.contains("guest-exec-status") {
        true => json!({ "return": { "exited": false } }).to_string(),
        false => json!({ "return": { "pid": 7 } }).to_string(),
    });
    agent.exec_times_out(&["sleep", "60"]);
}

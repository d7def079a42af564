//! `vm-watchdog check` as a process: what it writes where, and its exit statuses.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifest/tests/fixtures/shop.yaml");

struct Run {
    status: Option<i32>,
    output: String,
    messages: String,
}

fn check(arguments: &[&str], input: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
    command.arg("check").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: output.status.code(), output: text(output.stdout), messages: text(output.stderr) }
}

#[test]
fn a_manifest_is_told_in_plain_words() {
    let run = check(&[SHOP], "");
    let expected = format!(
        "{SHOP}: VM of KubeVirt retail/shop
Watchdog guard (i6300esb, line 47): if the guest stops its heartbeats, the guest is asked to shut down.
Liveness (line 52): every 15 s, the first time 90 s after the VM has started, HTTPS GET /alive?deep=1 with Host: \"shop.example\", \
         X-Probe: \"1\" from port 8080 of shop.example, whose certificate is not verified, has to have a status of 200 to 399 within 4 s. \
         After 5 failures in a row, the guest is asked to shut down, and the VM is powered off 20 s later.
Readiness (line 68): every 10 s, as soon as the VM has started, the command test -e \"/run/shop ready\" in the guest (by its QEMU guest \
         agent) has to end with exit code 0 within 1 s. After 3 failures in a row, the VM is not ready; after 2 successes in a row it is.
"
    );
    assert_eq!((run.status, run.output.as_str(), run.messages.as_str()), (Some(0), expected.as_str(), ""));
}

#[test]
fn standard_input_is_read_and_warnings_are_told() {
    let run = check(&["-"], "-watchdog diag288 -watchdog-action none\n");
    let expected = "standard input: VM of QEMU\nWatchdog (diag288, line 1): if the guest stops its heartbeats, that is reported, and \
                    nothing else happens.\n";
    assert_eq!((run.status, run.output.as_str()), (Some(0), expected));
    let messages = "vm-watchdog: standard input:1:11: -watchdog: QEMU 7.2 and newer have no -watchdog: write -device diag288 (warning)
vm-watchdog: standard input:1:11: -watchdog: vm-watchdog serve has no diag288, only i6300esb (warning)\n";
    assert_eq!(run.messages, messages);
}

#[test]
fn an_error_is_a_line_each_and_status_1() {
    let text = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  livenessProve: {}\n  domain: 5\n";
    let run = check(&["-"], text);
    assert_eq!((run.status, run.output.as_str()), (Some(1), ""));
    let messages = "vm-watchdog: standard input:4:3: spec.livenessProve: unknown field: did you mean livenessProbe?
vm-watchdog: standard input:5:11: spec.domain: invalid value \"5\": accepted is a mapping with fields\n";
    assert_eq!(run.messages, messages);

    let run = check(&["/nonexistent.yaml"], "");
    assert_eq!(run.status, Some(1));
    assert_eq!(run.messages, "vm-watchdog: /nonexistent.yaml: No such file or directory (os error 2)\n");
}

#[test]
fn a_command_line_that_cannot_be_used_is_status_2() {
    for arguments in [&[][..], &["--nonsense", "-"], &["a", "b"]] {
        let run = check(arguments, "");
        assert_eq!((run.status, run.messages.lines().count()), (Some(2), 1), "{arguments:?}: {}", run.messages);
    }
}

#[test]
fn json_has_the_manifest_or_the_errors() {
    let text = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 7
  domain: {devices: {watchdog: {name: wd, i6300esb: {}}}}
  livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: A, value: b}]}, timeoutSeconds: 10}
  readinessProbe: {guestAgentPing: {}}
";
    let run = check(&["--json", "-"], text);
    assert_eq!((run.status, run.messages.as_str()), (Some(0), ""));
    let warning = "10 is not less than periodSeconds, which is 10: an attempt may end when the next one is due";
    let expected = json!({
        "file": "standard input", "dialect": "kubevirt", "name": "web", "namespace": null, "termination_grace_period_s": 7,
        "watchdogs": [{ "model": "i6300esb", "action": "reset", "name": "wd", "line": 6, "column": 22 }],
        "liveness": {
            "httpGet": { "scheme": "HTTP", "host": null, "port": 80, "path": "/", "headers": [{ "name": "A", "value": "b" }] },
            "initial_delay_s": 0, "period_s": 10, "timeout_s": 10, "failure_threshold": 3, "success_threshold": 1,
            "termination_grace_period_s": null, "line": 7, "column": 3,
        },
        "readiness": {
            "guestAgentPing": {}, "initial_delay_s": 0, "period_s": 10, "timeout_s": 1, "failure_threshold": 3, "success_threshold": 1,
            "termination_grace_period_s": null, "line": 8, "column": 3,
        },
        "warnings": [{ "line": 7, "column": 92, "path": "spec.livenessProbe.timeoutSeconds", "message": warning }],
        "errors": [],
    });
    assert_eq!(serde_json::from_str::<Value>(&run.output).unwrap(), expected);

    let run = check(&["--json", "-"], "<watchdog/>");
    assert_eq!((run.status, run.messages.as_str()), (Some(1), ""));
    let error = json!({ "line": 1, "column": 1, "path": "watchdog/@model", "message": "missing: accepted are i6300esb, diag288" });
    assert_eq!(
        serde_json::from_str::<Value>(&run.output).unwrap(),
        json!({ "file": "standard input", "errors": [error] })
    );
}

#[test]
fn one_of_several_vms_is_named() {
    let several = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifest/tests/fixtures/several.yaml");
    let run = check(&[several], "");
    assert_eq!(run.status, Some(1));
    assert!(run.messages.contains("choose one by its name: \"shop/front\""), "{}", run.messages);
    let run = check(&["--vm", "lab/front", several], "");
    assert_eq!(run.status, Some(0), "{}", run.messages);
    assert!(run.output.contains("TCP port 81"), "{}", run.output);
}

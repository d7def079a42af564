//! Every exit status that `--help` lists, from a run that ends with it. Scripts depend on the numbers.

use std::process::Command;

use rustix::process::{Pid, Signal};

use crate::support::{NO_KVM, Running, Temporary, boot};

/// Runs `vm-watchdog boot`, and checks its exit status, which is also in its last event if it has written any.
fn assert_status(status: i32, arguments: &[&str]) {
    let run = boot(&[&["--events=json"], arguments].concat());
    assert_eq!(run.status, Some(status), "{arguments:?}: {}", run.messages);
    if let Some(exit) = run.all("exit").last() {
        assert_eq!(exit["status"], status, "{exit}");
    }
}

#[test]
fn a_guest_that_powers_itself_off_is_0_and_a_watchdog_that_does_it_is_3() {
    assert_status(0, &[NO_KVM]);
    assert_status(3, &[NO_KVM, "--watchdog=i6300esb,action=poweroff"]);
}

#[test]
fn a_vmm_that_fails_is_1() {
    // Enough descriptors to start, and too few to run a VM: 3 is free, although the tests may have inherited it.
    let script = format!("exec 3>&-; ulimit -n 4; exec '{}' boot {NO_KVM}", env!("CARGO_BIN_EXE_vm-watchdog"));
    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("Too many open files"), "{message}");
}

#[test]
fn invalid_input_is_2_4_5_6_or_8() {
    let kernel = Temporary::with("exit-kernel", b"\x7FELF");
    assert_status(2, &["--turbo"]);
    assert_status(2, &[NO_KVM, "--events-file=/nonexistent/events"]);
    assert_status(4, &["--kernel=/nonexistent/vmlinux"]);
    assert_status(5, &["--kernel", kernel.path(), NO_KVM]);
    assert_status(6, &["--memory=4M"]);
    assert_status(8, &["--restore=/nonexistent/snapshot"]);
}

#[test]
fn a_built_in_guest_that_reads_an_unexpected_value_is_7() {
    // Saved while it waits for its watchdog to expire, and restored with a watchdog that is stopped.
    let snapshot = Temporary::new("exit-snapshot");
    let mut running =
        Running::start(&["--events=json", NO_KVM, "--watchdog=i6300esb,action=none", "--snapshot", snapshot.path()]);
    running.wait_for("armed");
    running.signal(Signal::USR1);
    running.wait_for("saved");
    drop(running);
    let mut saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&snapshot.0).unwrap()).unwrap();
    let device = &mut saved["watchdogs"][0]["state"]["device"];
    assert_eq!(device["wdt_lock"], 2, "{device}");
    device["wdt_lock"] = 0.into();
    device["counter"] = serde_json::Value::Null;
    std::fs::write(&snapshot.0, saved.to_string()).unwrap();
    assert_status(7, &[NO_KVM, "--restore", snapshot.path()]);
}

#[test]
fn a_server_ended_by_a_signal_is_0_and_one_that_cannot_serve_is_1_or_2() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
        command.current_dir(&folder).arg("serve").args(arguments);
        command
    };
    let harmless = ["--socket", "s", "--watchdog", "i6300esb,action=none"];
    let mut server = serve(&harmless).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut line).unwrap();
    // Both servers end before the first assertion, so that a failed one leaves none running.
    let second = serve(&harmless).output().unwrap().status.code();
    rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let first = server.wait().unwrap().code();
    assert_eq!(
        (first, second),
        (Some(0), Some(1)),
        "the first ended by SIGTERM, the second because the socket was in use"
    );
    assert_eq!(serve(&["--turbo"]).output().unwrap().status.code(), Some(2));
}

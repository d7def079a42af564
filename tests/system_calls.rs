//! A heartbeat makes no system call, counted by strace.

use std::path::{Path, PathBuf};
use std::process::Command;

use vm_watchdog_test_support::{Unavailable, skip};

/// The system calls that the example makes with so many heartbeats, in all its threads.
fn system_calls(example: &Path, heartbeats: u32) -> u64 {
    let run = Command::new("strace").args(["-f", "-c"]).arg(example).arg(heartbeats.to_string()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8_lossy(&run.stdout), format!("{heartbeats} heartbeats\n"));
    let table = String::from_utf8_lossy(&run.stderr).into_owned();
    let total = table.lines().find(|line| line.ends_with("total")).unwrap_or_else(|| panic!("no total in\n{table}"));
    total.split_ascii_whitespace().nth(3).and_then(|calls| calls.parse().ok()).unwrap_or_else(|| panic!("{total}"))
}

/// Built here, for cargo builds examples only where it is asked for all targets.
fn example() -> PathBuf {
    let build = ["build", "--quiet", "--example", "heartbeats", "--message-format=json"];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let build = Command::new(env!("CARGO")).args(build).args(["--manifest-path", manifest]).output().unwrap();
    let messages = String::from_utf8_lossy(&build.stdout).into_owned();
    let executable = messages.lines().filter_map(|message| message.split_once("\"executable\":\"")).next_back();
    let path = executable.and_then(|(_, rest)| rest.split('"').next());
    PathBuf::from(path.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&build.stderr))))
}

#[test]
fn ten_thousand_heartbeats_make_no_system_call() {
    if let Err(error) = Command::new("strace").arg("-V").output() {
        return skip::loudly("the system calls of a heartbeat", &Unavailable::while_doing("strace")(error));
    }
    let example = example();
    let (few, many) = (system_calls(&example, 10), system_calls(&example, 10_010));
    // Threads start and stop with a few calls more or less; ten thousand heartbeats add none to that.
    assert!(many < few + 100, "{few} system calls with 10 heartbeats, {many} with 10,000 more");
}

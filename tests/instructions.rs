//! How many instructions a heartbeat takes, counted by callgrind: a count does not depend on the load of the machine.
//!
//! The record has the number of a release build and its compiler. Another compiler makes other instructions, so the test is
//! skipped with it until `UPDATE_INSTRUCTIONS=1 cargo test --test instructions` records its number.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use vm_watchdog_test_support::{Unavailable, skip};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/instructions-of-a-heartbeat");
const HEARTBEATS: u64 = 10_000;
/// By how many percent the number may differ from the record.
const TOLERANCE: u64 = 5;

/// The instructions of `examples/heartbeats.rs` with so many heartbeats, in all its threads.
fn instructions(program: &Path, heartbeats: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).arg(heartbeats.to_string());
    let run = valgrind.output().unwrap();
    let report = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{report}");
    assert_eq!(String::from_utf8_lossy(&run.stdout), format!("{heartbeats} heartbeats\n"));
    let collected = report.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.unwrap_or_else(|| panic!("no count in\n{report}"));
    count.trim().parse().unwrap_or_else(|_| panic!("{count}"))
}

/// Built here with the release profile: the debug profile has other instructions.
fn program() -> PathBuf {
    let package = ["--package", "vm-watchdog-benches", "--bin", "heartbeats"];
    let build = ["build", "--quiet", "--release", "--message-format=json"];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let build =
        Command::new(env!("CARGO")).args(build).args(package).args(["--manifest-path", manifest]).output().unwrap();
    let messages = String::from_utf8_lossy(&build.stdout).into_owned();
    let executable = messages.lines().filter_map(|message| message.split_once("\"executable\":\"")).next_back();
    let path = executable.and_then(|(_, rest)| rest.split('"').next());
    PathBuf::from(path.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&build.stderr))))
}

/// The version of the compiler that builds the program.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    String::from_utf8(Command::new(rustc).arg("--version").output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn a_heartbeat_takes_as_many_instructions_as_recorded() {
    if env::consts::ARCH != "x86_64" {
        let why = Unavailable::new("the recorded number is that of x86_64");
        return skip::exempt("the instructions of a heartbeat", &why);
    }
    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        return skip::loudly("the instructions of a heartbeat", &Unavailable::while_doing("valgrind")(error));
    }
    let record = fs::read_to_string(RECORD).unwrap();
    let (recorded, by) = record.trim_end().split_once(" by ").unwrap_or_else(|| panic!("{RECORD}: {record:?}"));
    let (compiler, updates) = (compiler(), env::var_os("UPDATE_INSTRUCTIONS").is_some());
    if compiler != by && !updates {
        let why = Unavailable::new(format!("their number is recorded for {by}, and this is {compiler}"));
        return skip::loudly("the instructions of a heartbeat", &why);
    }
    let program = program();
    let (few, many) = (instructions(&program, 10), instructions(&program, 10 + HEARTBEATS));
    // Threads start and stop with a few instructions more or less, which so many heartbeats hide.
    let each = (many - few + HEARTBEATS / 2) / HEARTBEATS;
    println!("{each} instructions for a heartbeat of three writes");
    if updates {
        return fs::write(RECORD, format!("{each} by {compiler}\n")).unwrap();
    }
    let recorded: u64 = recorded.parse().unwrap_or_else(|_| panic!("{RECORD}: {record:?}: accepted is a number"));
    let difference = each.abs_diff(recorded) * 100;
    assert!(
        difference <= recorded * TOLERANCE,
        "a heartbeat takes {each} instructions, and {recorded} are recorded: \
         if that is right, UPDATE_INSTRUCTIONS=1 cargo test --test instructions"
    );
}

//! Skipped tests: each is reported immediately and recorded for the end of the run, or fails if skips are not allowed.
//!
//! Every test that cannot run on this machine calls [`loudly`], which writes a line to standard error. It does not use
//! `eprintln!`, whose output the harness captures in passing tests. The same line goes to the [record](record_file) of
//! the run, which the test target `summary` prints.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::{env, thread};

use rustix::fs::{FlockOperation, flock};

use crate::{Unavailable, assets};

/// If this is 1, as in CI, a test fails instead of being skipped, unless it is [`exempt`].
pub const REQUIRE_VARIABLE: &str = "VM_WATCHDOG_REQUIRE_GUESTS";

/// The name of the run that the record belongs to. Without it, each cargo command is a run.
pub const RUN_VARIABLE: &str = "VM_WATCHDOG_TEST_RUN";

/// Whether a skipped test fails.
pub fn is_failure() -> bool {
    env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1")
}

/// Reports a test as skipped. The caller returns afterwards.
///
/// # Panics
///
/// If a skipped test [fails](is_failure).
pub fn loudly(test: &str, why: &Unavailable) {
    assert!(!is_failure(), "{test} must not be skipped ({REQUIRE_VARIABLE}=1), but: {why}");
    report(&format!("{}: {test}: {why}", program()));
}

/// Reports a skipped test that is never required, because its programs cannot be fetched. README names each such test.
pub fn exempt(test: &str, why: &Unavailable) {
    report(&format!("{}: {test}: {why} (exempt from {REQUIRE_VARIABLE})", program()));
}

/// The name of the test in this thread. With `--test-threads=1` the harness does not name threads.
pub fn this_test() -> String {
    match thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => "a test".to_owned(),
    }
}

/// The reported lines of this run, one for each skipped test.
pub fn recorded() -> Vec<String> {
    let record = fs::read_to_string(record_file()).unwrap_or_default();
    let mut lines = record.lines();
    let is_ours = lines.next().is_some_and(|run| run == this_run());
    lines.filter(|_| is_ours).map(str::to_owned).collect()
}

/// The file that keeps the lines until the next run: `target/skipped-tests`. Its first line names the run.
pub fn record_file() -> PathBuf {
    assets::target_folder().join("skipped-tests")
}

fn report(line: &str) {
    // One write call, since other tests write at the same time.
    let _ = io::stderr().write_all(format!("SKIPPED {line}\n").as_bytes());
    let path = record_file();
    let appended = append(&path, &this_run(), line);
    appended.unwrap_or_else(|error| panic!("{}: {error}, so a skipped test is not recorded", path.display()));
}

/// Adds a line to the record of this run. Replaces the record of another run.
fn append(path: &Path, run: &str, line: &str) -> io::Result<()> {
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let record = io::read_to_string(&file)?;
    if record.lines().next() != Some(run) {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{run}")?;
    }
    writeln!(file, "{line}")
}

/// The test programs of one `cargo test` have cargo as their parent. The start time tells cargo from an earlier process
/// with the same id.
fn this_run() -> String {
    env::var(RUN_VARIABLE).unwrap_or_else(|_| {
        let parent = parent_id();
        let stat = fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
        // The name in parentheses may contain spaces; the start time is the twentieth field after it.
        let started = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(19)).unwrap_or("?");
        format!("process {parent}, started at {started}")
    })
}

/// The test target: the name of this program without the hash that cargo adds.
fn program() -> String {
    let path = env::current_exe().unwrap_or_default();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or(&*name, |(target, _hash)| target).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_all_lines_of_one_run() {
        let path = assets::target_folder().join(format!("self-test-of-skips-{}", std::process::id()));
        let lines = |run, line| {
            append(&path, run, line).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(lines("run 1", "no KVM"), "run 1\nno KVM\n");
        assert_eq!(lines("run 1", "no strace"), "run 1\nno KVM\nno strace\n");
        assert_eq!(lines("run 2", "no QEMU"), "run 2\nno QEMU\n");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_name_of_a_run_has_its_parent_process() {
        let run = this_run();
        assert!(env::var_os(RUN_VARIABLE).is_some() || !run.ends_with('?'), "{run}");
        assert_eq!(run, this_run());
    }
}

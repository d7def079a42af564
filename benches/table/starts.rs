//! How long the command takes to start, beside a start that does nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::{Row, in_turns, print};

const NOTHING: &str = "`vm-watchdog --version`";

/// A process, started until it writes `event`.
fn until(mut process: Child, output: impl Read, event: &str, started: Instant) -> Duration {
    let mut lines = BufReader::new(output).lines();
    let is_written = lines.any(|line| line.expect("text").contains(event));
    let took = started.elapsed();
    // It may have ended.
    let _ = process.kill();
    process.wait().expect("its status");
    assert!(is_written, "it ended without {event}");
    took
}

fn version(program: &Path) -> Duration {
    let started = Instant::now();
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    assert!(status.expect("a process").success());
    started.elapsed()
}

fn serve(program: &Path, socket: &Path) -> Duration {
    let started = Instant::now();
    let mut command = Command::new(program);
    command.args(["serve", "--events=json", "--watchdog=i6300esb,action=none", "--socket"]).arg(socket);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a process");
    let output = process.stdout.take().expect("a pipe");
    until(process, output, r#""event":"listening""#, started)
}

fn boot(program: &Path) -> Duration {
    let started = Instant::now();
    let mut command = Command::new(program);
    command.args(["boot", "--events=json", "--watchdog=i6300esb,action=poweroff"]);
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a process");
    let output = process.stderr.take().expect("a pipe");
    until(process, output, r#""event":"armed""#, started)
}

pub fn measure(program: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let row = |name: &str, start: fn(&Path, &Path) -> Duration| {
        let (program, socket) = (program.to_owned(), socket.clone());
        Row::timed(name, move |times| (0..times).map(|_| start(&program, &socket)).sum())
    };
    let rows = vec![
        row(NOTHING, |program, _| version(program)),
        row("`serve`, until it listens", serve),
        row("`boot`, until its built-in guest has armed the watchdog", |program, _| boot(program)),
    ];
    print("Starts", NOTHING, &in_turns(rows));
}

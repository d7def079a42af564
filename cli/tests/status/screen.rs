//! `--watch`, and what a terminal gets.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::server::TIMEOUT;
use crate::{command, listen, with_status};

const HOME: &str = "\x1b[H";

/// A terminal with the command on it.
struct Terminal {
    child: Child,
    /// What the command has written since the last call of [`Terminal::until`].
    output: Receiver<Vec<u8>>,
    read: String,
}

impl Terminal {
    fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&controller, size).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap();
        let terminal: OwnedFd = open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let child = command.env_remove("COLUMNS").stdout(terminal).spawn().unwrap();
        drop(command);
        let (sender, output) = channel();
        let mut controller = File::from(controller);
        thread::spawn(move || {
            let mut bytes = [0; 10_000];
            // The read fails when the command has ended.
            while let Ok(count) = controller.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, output, read: String::new() }
    }

    /// Reads until the text is as wanted, and returns it.
    fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        while !wanted(&self.read) {
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes = self.output.recv_timeout(left).unwrap_or_else(|error| panic!("{error}: {:?}", self.read));
            self.read.push_str(&String::from_utf8(bytes).unwrap());
        }
        std::mem::take(&mut self.read)
    }

    /// What a person does with ctrl-C. Returns the exit status and the rest of the output.
    fn interrupt(mut self) -> (Option<i32>, String) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let status = self.child.wait().unwrap().code();
        while let Ok(bytes) = self.output.recv_timeout(TIMEOUT) {
            self.read.push_str(&String::from_utf8(bytes).unwrap());
        }
        (status, std::mem::take(&mut self.read))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready() -> Value {
    json!({"version": 1, "name": null, "server_version": "0", "uptime_ms": 1, "actions_by": "none", "qmp_connected": null,
        "paused": false, "watchdogs": [], "probes": [{"probe": "readiness", "result": "success"}]})
}

fn watching(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = command(folder);
    command.args(arguments).stderr(Stdio::inherit());
    command
}

/// The lines of a frame without its control sequences.
fn plain(frame: &str) -> Vec<String> {
    let mut text = String::new();
    let mut characters = frame.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(character);
        }
    }
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn a_table_is_drawn_in_place_every_second_until_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    with_status(folder.path(), "well", &ready());
    let _silent = listen(folder.path(), "silent");
    let mut terminal = Terminal::start(watching(folder.path(), &["--watch"]), 24, 80);
    let started = Instant::now();
    let frames = terminal.until(|read| read.matches("\x1b[J").count() == 2);
    let first = frames.split(HOME).nth(1).unwrap();
    let expected = [
        "2 VMs: 1 critical, every 1s",
        "",
        "NAME    CONNECTED  ARMED  TIME LEFT  HEARTBEAT  LAST ACTION  PROBES",
        "silent  no answer within 1s",
        "well    -          -      -          -          -            ready",
    ];
    assert_eq!(plain(first), expected);
    assert!(!frames.contains("\x1b[2J"), "a cleared screen flickers: {frames:?}");
    // Every line erases what is left of the line before it.
    assert_eq!(first.matches("\x1b[K\r\n").count(), expected.len());
    assert!(first.contains("\x1b[1m\x1b[31mno answer within 1s\x1b[0m"), "a terminal has colours: {first:?}");
    drop(listen(folder.path(), "dead"));
    let frames = terminal.until(|read| read.contains("no server"));
    assert!(frames.contains("3 VMs: 2 critical, every 1s"), "{frames:?}");
    assert!(started.elapsed() > Duration::from_secs(1));
    let (status, rest) = terminal.interrupt();
    assert_eq!(status, Some(0));
    assert!(rest.ends_with('\n') && !rest.ends_with("\x1b[31m\n"), "{rest:?}");
}

#[test]
fn a_small_terminal_has_whole_lines_and_says_how_many_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..30 {
        drop(listen(folder.path(), &format!("a-vm-with-a-long-name-{index:02}")));
    }
    let mut command = watching(folder.path(), &["--watch=5"]);
    command.env("NO_COLOR", "1");
    let mut terminal = Terminal::start(command, 10, 30);
    let frame = terminal.until(|read| read.contains("\x1b[J"));
    assert!(!frame.contains("\x1b[1m"), "NO_COLOR: {frame:?}");
    let lines = plain(frame.strip_prefix(HOME).unwrap());
    assert_eq!(lines.len(), 9, "{lines:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 30), "{lines:?}");
    assert_eq!(lines[8], "… 25 more lines");
    assert_eq!(terminal.interrupt().0, Some(0));
}

#[test]
fn watched_json_is_an_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    with_status(folder.path(), "well", &ready());
    let mut child = watching(folder.path(), &["--watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let object: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(object["vms"][0]["name"], "well");
    }
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0), "there is no reader");
}

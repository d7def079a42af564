//! Where events are written: files that are rotated, full disks, and readers that do not read.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::client::Client;
use crate::server::{Builder, Server, TIMEOUT};

/// A server that writes its events to the file `events`.
fn with_file() -> (Server, PathBuf) {
    let builder = Builder::new().options("--socket s --watchdog i6300esb,action=none --events-file events");
    let server = builder.start_silent();
    let path = server.path("events");
    wait_for(&path, "listening");
    (server, path)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Waits for an event of this name in the file.
fn wait_for(path: &Path, name: &str) {
    let deadline = Instant::now() + TIMEOUT;
    while !text(path).contains(&format!("\"event\":\"{name}\"")) {
        assert!(Instant::now() < deadline, "no event {name}, but {}", text(path));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn sighup_opens_the_events_file_anew() {
    let (mut server, path) = with_file();
    let rotated = server.path("events.1");
    fs::rename(&path, &rotated).unwrap();
    let first = server.client();
    wait_for(&rotated, "connected");
    server.send_signal(Signal::HUP);
    let deadline = Instant::now() + TIMEOUT;
    while !path.exists() {
        assert!(server.is_running(), "the signal has ended it");
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(first);
    wait_for(&path, "disconnected");
    assert!(server.signal(Signal::TERM).success());
    wait_for(&path, "stopped");
    assert!(!text(&rotated).contains("disconnected"));
}

#[test]
fn an_events_file_is_appended_to_and_no_link_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::write(&target, "a line that is not compl").unwrap();
    let events = target.display().to_string();
    let options = "--socket s --watchdog i6300esb,action=none";
    let _server = Builder::new().options(options).option("--events-file", &events).start_silent();
    wait_for(&target, "listening");
    assert!(text(&target).starts_with("a line that is not compl\n{"), "{}", text(&target));

    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let link = link.display().to_string();
    let (status, message) = Builder::new().options(options).option("--events-file", &link).fail();
    assert_eq!(status, 1);
    assert!(message.starts_with(&format!("vm-watchdog: events file {link}: ")), "{message}");
}

#[test]
fn no_lines_are_merged_on_a_full_disk_and_what_is_lost_is_counted() {
    let (server, path) = with_file();
    let before = text(&path);
    // The next line is cut, and the ones after it do not fit at all.
    server.limit_file_length(Some(before.len() as u64 + 10));
    for _ in 0..3 {
        server.client();
    }
    let deadline = Instant::now() + TIMEOUT;
    while text(&path).len() < before.len() + 10 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    server.limit_file_length(None);
    let _client = server.client();
    wait_for(&path, "connected");
    let text = text(&path);
    let mut lines = text.strip_prefix(&before).unwrap().lines();
    assert_eq!(lines.next().map(str::len), Some(10), "{text}");
    let lost: Value = serde_json::from_str(lines.next().unwrap()).expect(&text);
    assert_eq!((&lost["event"], &lost["id"]), (&"lost".into(), &"server".into()));
    assert!((4..=6).contains(&lost["events"].as_u64().unwrap()), "{lost}");
    for line in lines {
        serde_json::from_str::<Value>(line).expect(&text);
    }
}

#[test]
fn no_event_is_lost_uncounted_when_its_reader_is_slow() {
    const SOCKETS: u64 = 20;
    // Both events of a connection are within the budget of a watchdog.
    const CONNECTIONS: u64 = 45;
    let folder = tempfile::tempdir().unwrap();
    let (reader, stdout) = UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
    command.args(["serve", "--events=json", "--watchdog=i6300esb,action=none"]).current_dir(&folder);
    command.args((0..SOCKETS).map(|socket| format!("--socket=s{socket}")));
    command.stdin(Stdio::null()).stdout(OwnedFd::from(stdout)).env_remove("NOTIFY_SOCKET");
    let mut server = command.spawn().unwrap();
    // Only the server writes to it, so that its end is seen.
    drop(command);
    let last = folder.path().join(format!("s{}", SOCKETS - 1));
    let deadline = Instant::now() + TIMEOUT;
    while UnixStream::connect(&last).is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut clients = Vec::new();
    for socket in 0..SOCKETS {
        let connect = || {
            let mut client = Client::connect(&folder.path().join(format!("s{socket}")));
            client.negotiate();
            client
        };
        for _ in 1..CONNECTIONS {
            connect();
        }
        clients.push(connect());
    }
    rustix::process::kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let (mut seen, mut lost) = (HashMap::<String, u64>::new(), 0);
    for line in BufReader::new(reader).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        *seen.entry(event["event"].as_str().unwrap().to_owned()).or_default() += 1;
        lost += event["events"].as_u64().unwrap_or(0) + event["suppressed"].as_u64().unwrap_or(0);
    }
    assert!(server.wait().unwrap().success());
    seen.remove("lost");
    // Each socket listens and stops. The last one has had one connection more, which waited for it to listen. The first events
    // say what the sandbox is, and that the server runs as root if it does.
    let first = 1 + u64::from(rustix::process::geteuid().is_root());
    let caused = first + SOCKETS * (1 + CONNECTIONS + CONNECTIONS - 1 + 1) + 2;
    assert!(lost > 0, "the test has not filled the queue: {seen:?}");
    assert_eq!(seen.values().sum::<u64>() + lost, caused, "{seen:?}, {lost} lost");
}

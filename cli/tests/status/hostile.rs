//! Servers that do not behave, beside one that does.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::{Run, answering, command, listen, run, status, with_status};

/// The limit of the command, and what a loaded machine adds.
const AT_MOST: Duration = Duration::from_secs(9);

fn well() -> Value {
    json!({"version": 1, "name": "x", "server_version": "0", "uptime_ms": 1, "actions_by": "none", "qmp_connected": null,
        "paused": false, "watchdogs": [], "probes": [{"probe": "readiness", "result": "success"}]})
}

fn line<'a>(run: &'a Run, name: &str) -> &'a str {
    let start = format!("{name} ");
    run.output.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {name} in {}", run.output))
}

#[test]
fn hostile_servers_have_a_row_each_and_delay_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    with_status(folder, "good", &well());
    // Six that accept and say nothing, or a little now and then.
    let _silent: Vec<_> = (0..5).map(|index| listen(folder, &format!("silent{index}"))).collect();
    let slow = listen(folder, "slow");
    thread::spawn(move || {
        let mut stream = slow.accept().unwrap().0;
        while stream.write_all(b"H").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let endless = listen(folder, "endless");
    thread::spawn(move || {
        let mut stream = endless.accept().unwrap().0;
        while stream.write_all(&[b' '; 60_000]).is_ok() {}
    });
    // One whose backlog is full.
    let full = listen(folder, "full");
    rustix::net::listen(&full, 0).unwrap();
    let _clients = UnixStream::connect(folder.join("full/metrics")).unwrap();
    answering(folder, "closing", Vec::new());
    answering(folder, "other", b"HTTP/1.1 404 Not Found\r\n\r\n\x1b[2J".to_vec());
    with_status(folder, "newer", &json!({"version": 7}));
    let mut many = well();
    many["probes"] = json!(vec![json!({"probe": "readiness", "result": "success"}); 101]);
    with_status(folder, "many", &many);
    fs::create_dir(folder.join("link")).unwrap();
    symlink(folder.join("good/metrics"), folder.join("link/metrics")).unwrap();
    fs::create_dir(folder.join("file")).unwrap();
    fs::write(folder.join("file/metrics"), "").unwrap();

    let started = Instant::now();
    let shown = status(folder, &[]);
    let took = started.elapsed();
    assert!(took < AT_MOST, "seven of them took {took:?} one after the other");
    assert_eq!(shown.status, Some(3));
    for (name, rest) in [
        ("good", "-          -      -          -          -            ready"),
        ("silent0", "no answer within 2s"),
        ("silent4", "no answer within 2s"),
        ("slow", "no answer within 2s"),
        ("full", "no answer within 2s"),
        ("endless", "no status: its answer is longer than 65536 bytes"),
        ("closing", "no status: it has closed the connection"),
        ("other", "no status: it answers with HTTP status 404"),
        ("newer", "no status: its status has version 7, known is 1"),
        ("many", "no status: its status has more than 100 watchdogs or probes"),
        ("link", "cannot be asked: it is a symbolic link"),
        ("file", "cannot be asked: it is no socket"),
    ] {
        assert!(line(&shown, name).ends_with(&format!("  {rest}")), "{}", shown.output);
    }
    assert!(!shown.output.contains('\x1b'), "{:?}", shown.output);
}

#[test]
fn text_of_a_server_does_nothing_to_the_terminal() {
    const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;title\u{7}\r\n\u{9b}31m\u{202e}\u{200b}\u{2028}";
    let folder = tempfile::tempdir().unwrap();
    let mut status_of_server = well();
    let watchdog = json!({"id": ESCAPES, "socket": ESCAPES, "connected": true, "armed": true, "unprotected": false,
        "timed_out": false, "period_ms": u64::MAX, "time_left_ms": u64::MAX, "heartbeats": u64::MAX,
        "last_heartbeat_ms": u64::MAX, "timeouts": u64::MAX,
        "last_action": {"action": ESCAPES, "stage": ESCAPES, "outcome": "failed", "reason": ESCAPES.repeat(100), "age_ms": 1}});
    status_of_server["watchdogs"] = json!([watchdog, watchdog]);
    status_of_server["name"] = json!(ESCAPES);
    with_status(folder.path(), &format!("name{}", ESCAPES.replace('/', "")), &status_of_server);
    for arguments in [&[][..], &["--json"]] {
        let shown = status(folder.path(), arguments);
        let is_bad = |character: char| {
            character != '\n' && (character.is_control() || "\u{202e}\u{200b}\u{2028}".contains(character))
        };
        assert!(!shown.output.contains(is_bad), "{:?}", shown.output);
        assert!(shown.output.contains('\u{FFFD}'), "{:?}", shown.output);
        // A header, two rows, an empty line and two reasons; or one line.
        assert_eq!(shown.output.lines().count(), if arguments.is_empty() { 6 } else { 1 }, "{}", shown.output);
    }
}

#[test]
fn numbers_that_are_none_are_no_status() {
    let folder = tempfile::tempdir().unwrap();
    for (name, uptime) in [("negative", json!(-1)), ("float", json!(1e300)), ("text", json!("1"))] {
        let mut status_of_server = well();
        status_of_server["uptime_ms"] = uptime;
        with_status(folder.path(), name, &status_of_server);
        let shown = status(folder.path(), &[name]);
        assert!(line(&shown, name).contains("no status: its status: invalid"), "{}", shown.output);
    }
}

#[test]
fn a_thousand_silent_servers_take_no_longer_than_one() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(4000, |maximum| maximum.min(4000));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum }).unwrap();
    let vms = (current - 500).min(1000);
    let folder = tempfile::tempdir().unwrap();
    let _silent: Vec<_> = (0..vms).map(|index| listen(folder.path(), &format!("vm{index:04}"))).collect();
    let started = Instant::now();
    let mut shell = Command::new("sh");
    // With the usual limit of a shell, which the command raises.
    shell.args(["-c", "ulimit -S -n 256; exec \"$0\" status --folder \"$1\""]);
    let shown = run(shell.arg(env!("CARGO_BIN_EXE_vm-watchdog")).arg(folder.path()));
    let took = started.elapsed();
    assert_eq!(shown.output.matches("no answer within 2s").count() as u64, vms, "{shown:?}");
    assert!(took < AT_MOST, "{took:?}");
}

#[test]
fn a_socket_that_may_not_be_opened_is_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let _listeners = [listen(folder.path(), "socket"), listen(folder.path(), "folder")];
    let forbid = |path: &str| fs::set_permissions(folder.path().join(path), fs::Permissions::from_mode(0o000)).unwrap();
    forbid("socket/metrics");
    forbid("folder");
    let plain = command(folder.path());
    let mut command = Command::new("setpriv");
    // Root may open everything by this capability. Other users have none to lose.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        command.args(["--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]);
    }
    command.arg(plain.get_program()).args(plain.get_args());
    let shown = run(&mut command);
    fs::set_permissions(folder.path().join("folder"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(shown.status, Some(3), "{shown:?}");
    for name in ["socket", "folder"] {
        assert!(line(&shown, name).ends_with("  no permission"), "{}", shown.output);
    }
}

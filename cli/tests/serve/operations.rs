//! Limits of the process, and what its commands inherit.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Builder, Server, TIMEOUT};

/// A server that a shell starts in a folder after these commands, with its socket `s` as descriptor 3 if it is given.
fn started_by(folder: &TempDir, commands: &str, options: &str, socket: Option<OwnedFd>) -> Child {
    let server = env!("CARGO_BIN_EXE_vm-watchdog");
    let script = format!("{commands}; exec '{server}' serve --events=json --socket s {options}");
    let script = if socket.is_some() {
        format!("export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&0 0</dev/null; {script}")
    } else {
        script
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    command.stdin(socket.map_or(Stdio::null(), Stdio::from)).env_remove("NOTIFY_SOCKET").spawn().unwrap()
}

/// Waits for a server that cannot start, and returns its status and its message.
fn failed(mut server: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + TIMEOUT;
    while server.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            server.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = server.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "there is no {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn too_few_files_are_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (status, message) = failed(started_by(&folder, "ulimit -n 13", "--watchdog i6300esb,action=none", None));
    assert_eq!((status, message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.starts_with("vm-watchdog: RLIMIT_NOFILE is 13, needed are "), "{message}");
    assert!(!folder.path().join("s").exists());
}

#[test]
fn a_socket_of_the_service_manager_that_does_not_listen_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let (status, message) = failed(started_by(&folder, ":", "--watchdog i6300esb,action=none", Some(socket)));
    assert_eq!(
        (status, message.as_str()),
        (Some(1), "vm-watchdog: socket s: the service manager passes it, and it does not listen\n")
    );
}

#[test]
fn a_command_inherits_nothing_of_the_service_manager_and_no_limit_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let command = "{ ulimit -Sn; env | grep -E \"^(LISTEN|NOTIFY|WATCHDOG_(USEC|PID))\"; \
        ls -l /proc/$$/fd | grep -c socket; trap; grep -E \"^Sig(Ign|Blk)\" /proc/self/status; } > new; mv new seen";
    let options = format!("--exec '{command}'");
    let manager = "ulimit -Sn 512; export NOTIFY_SOCKET=/nowhere WATCHDOG_USEC=60000000";
    let mut server = started_by(&folder, manager, &options, Some(listener.into()));
    let mut client = Client::connect(&folder.path().join("s"));
    client.negotiate();
    client.arm(1);
    let seen = folder.path().join("seen");
    wait_for(&seen);
    let seen = fs::read_to_string(seen).unwrap();
    let (first, signals) = seen.split_once("SigBlk:").unwrap();
    assert_eq!(first, "512\n0\n", "the limit of open files, and no socket");
    // The signals from 32 on belong to the C library.
    let mask = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap() & 0x7FFF_FFFF;
    let (blocked, ignored) = signals.split_once("SigIgn:").unwrap();
    // A shell in the background starts its commands with signals ignored, which a server passes on.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let ignored_here = own.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(mask).unwrap();
    let of_the_server = mask(ignored) & !ignored_here;
    let pipe = 1 << (Signal::PIPE.as_raw() - 1);
    assert_eq!((mask(blocked), of_the_server, mask(ignored) & pipe), (0, 0, 0), "{seen}");
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn node_exporter_can_read_the_metrics_file_of_a_server_with_any_umask_and_only_the_owner_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let options = "--watchdog i6300esb,action=none --state state --metrics-file vm.prom";
    let mut server = started_by(&folder, "umask 0777", options, Some(listener.into()));
    let text = || fs::read_to_string(folder.path().join("vm.prom")).unwrap_or_default();
    let mut client = Client::connect(&folder.path().join("s"));
    client.negotiate();
    client.arm(1);
    let deadline = Instant::now() + TIMEOUT;
    // The server writes the file before it restricts itself, and again after the expiry.
    while !text().contains("vm_watchdog_timeouts_total{id=\"watchdog0\"} 1\n") {
        assert!(Instant::now() < deadline, "{}", text());
        std::thread::sleep(Duration::from_millis(5));
    }
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("vm.prom"), mode("state")), (0o644, 0o600));
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_full_standard_error_changes_no_exit_status() {
    for (options, status) in [("--socket s --socket s", 2), ("--socket nowhere/s", 1), ("--help", 0)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
        command.arg("serve").args(options.split_whitespace()).args(["--watchdog", "i6300esb,action=none"]);
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ended = command.current_dir(&folder).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{options}");
    }
}

#[test]
fn a_server_without_an_events_file_ignores_sighup() {
    let mut server = Server::harmless();
    server.send_signal(rustix::process::Signal::HUP);
    let mut client = server.client();
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert!(server.is_running());
}

#[test]
fn a_file_that_is_longer_than_allowed_is_a_failure_that_ends_nothing() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none --state state").start();
    server.limit_file_length(Some(0));
    server.client().arm(1);
    server.expect_where("log", |event| event["message"].as_str().unwrap().contains("is not saved"));
    server.client();
}

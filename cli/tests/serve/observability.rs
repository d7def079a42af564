//! The server of the metrics, and the notifications to the service manager.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::metrics::{metrics_port, request, scrape};
use crate::server::{Builder, Server, TIMEOUT};

fn with_metrics() -> (Server, u16) {
    let server = Builder::new().options("--watchdog i6300esb,action=none --socket s --socket t --metrics 0").start();
    let port = metrics_port(&server);
    (server, port)
}

#[test]
fn a_malformed_request_for_metrics_is_refused() {
    let (server, port) = with_metrics();
    for (asked, answered) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\x00", "HTTP/1.1 400"),
        (b"GET /metrics HTTP/1.1\r\n", ""),
        (&[b'A'; 100_000], ""),
        (&[&b"GET /metrics HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(1000), b"\r\n"].concat(), ""),
    ] {
        let answer = request(port, asked);
        assert!(answer.starts_with(answered), "{answer}");
    }
    // A client connects and sends nothing.
    let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert!(scrape(port).contains("vm_watchdog_armed"));
    drop(silent);
    server.client();
}

#[test]
fn an_address_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, message) =
        Builder::new().options("--socket s --watchdog i6300esb,action=none").option("--metrics", &address).fail();
    assert_eq!((status, message.lines().count()), (1, 1), "{message}");
    assert!(message.contains(&address), "{message}");
}

#[test]
fn the_service_manager_is_notified_of_start_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let next = || {
        let mut message = [0; 1000];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut server = Builder::new()
        .options("--socket s --watchdog i6300esb,action=none")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .start();
    assert_eq!(next(), "READY=1\nSTATUS=1 watchdogs\n");
    for _ in 0..2 {
        assert_eq!(next(), "WATCHDOG=1\n");
    }
    server.signal(Signal::TERM);
    while next() != "STOPPING=1\n" {}
}

#[test]
fn the_service_managers_watchdog_is_not_notified_once_a_socket_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let server = Builder::new()
        .options("--watchdog i6300esb,action=none --socket s --socket t")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .start();
    // Without any files poll() fails.
    server.limit_files(Some(0));
    let _client = server.stream();
    server.expect_where("log", |event| event["message"].as_str().unwrap().contains("no longer served"));
    server.limit_files(None);

    // No notification for several intervals. Those that were sent before the server noticed the end are skipped.
    manager.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while manager.recv(&mut [0; 100]).is_ok() {
        assert!(Instant::now() < deadline, "notified although one socket is not served");
    }
}

/// A server for `socket` that is given `listener` as a service manager does it: the descriptor is 3, and LISTEN_PID is
/// the process that is started.
fn activated(listener: UnixListener, socket: &Path) -> Command {
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=1; exec '{}' serve --events=json --socket '{}' --watchdog i6300esb,action=none 3<&0 0</dev/null",
        env!("CARGO_BIN_EXE_vm-watchdog"),
        socket.display()
    );
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).stdin(OwnedFd::from(listener)).stdout(Stdio::null()).process_group(0);
    command
}

#[test]
fn a_socket_of_the_service_manager_is_used_and_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let mut server = activated(UnixListener::bind(&path).unwrap(), &path).spawn().unwrap();
    let mut client = Client::connect(&path);
    client.negotiate();
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert!(path.exists(), "it belongs to the service manager");
}

#[test]
fn paths_that_cannot_be_canonicalized_are_not_equal() {
    let folder = tempfile::tempdir().unwrap();
    let (passed, wanted) = (folder.path().join("passed"), folder.path().join("wanted"));
    let listener = UnixListener::bind(&passed).unwrap();
    // As for a server in a mount namespace of its own.
    std::fs::remove_file(&passed).unwrap();
    let mut server = activated(listener, &wanted).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It ends without output, or reports that it listens.
    let mut told = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut told).unwrap();
    // It may have ended already.
    let _ = server.kill();
    let output = server.wait_with_output().unwrap();
    assert_eq!(told, "");
    let message =
        format!("vm-watchdog: the service manager passes the socket {}, which no --socket names\n", passed.display());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), message);
}

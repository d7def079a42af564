//! Scrapers that do not behave, and the other ways to the metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::metrics::{metrics_port, scrape};
use crate::server::{Builder, TIMEOUT};

/// Less than the time that the server gives one scraper in all, so that no scraper waits for another one.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// Less than the time between two writes of the file when nothing happens.
const SOON: Duration = Duration::from_secs(10);

fn builder(options: &str) -> Builder {
    Builder::new().options("--socket s --watchdog i6300esb,action=none").options(options)
}

#[test]
fn silent_scrapers_keep_no_other_one_waiting() {
    let server = builder("--metrics 0").start();
    let port = metrics_port(&server);
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let silent: Vec<_> = (0..30).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"GET /metr").unwrap();
    let started = Instant::now();
    assert!(scrape(port).contains("vm_watchdog_armed"));
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    drop((silent, half));
}

#[test]
fn a_scraper_that_sends_a_byte_now_and_then_is_given_up() {
    let server = builder("--metrics 0").start();
    let mut slow = TcpStream::connect(("127.0.0.1", metrics_port(&server))).unwrap();
    let started = Instant::now();
    while slow.write_all(b"A").is_ok() {
        assert!(started.elapsed() < SOON, "it is waited for");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn metrics_are_served_on_a_unix_socket_with_the_permissions_of_sockets() {
    let mut server = builder("--metrics unix:m --socket-mode 660").start();
    assert_eq!(server.expect("metrics")["address"], "unix:m");
    let path = server.path("m");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("vm_watchdog_timeouts_total{id=\"watchdog0\"} 0\n"), "{answer}");
    assert!(server.signal(Signal::TERM).success());
    assert!(!path.exists());
}

fn wait_for(path: &Path, text: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !fs::read_to_string(path).unwrap_or_default().contains(text) {
        assert!(Instant::now() < deadline, "no {text} within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_metrics_file_is_replaced_after_an_expiry_and_removed_at_the_end() {
    let mut server = builder("--metrics-file vm.prom").start();
    let path = server.path("vm.prom");
    wait_for(&path, "vm_watchdog_timeouts_total{id=\"watchdog0\"} 0\n", TIMEOUT);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    let mut old = fs::File::open(&path).unwrap();
    let mut client = server.client();
    client.arm(1);
    wait_for(&path, "vm_watchdog_timeouts_total{id=\"watchdog0\"} 1\n", SOON);
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert!(text.contains("vm_watchdog_timeouts_total{id=\"watchdog0\"} 0\n"), "the old file is not changed");
    assert!(server.signal(Signal::TERM).success());
    assert!(!path.exists());
}

#[test]
fn a_metrics_file_that_is_a_link_is_refused() {
    let builder = builder("--metrics-file vm.prom");
    let target = builder.path().join("target");
    fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, builder.path().join("vm.prom")).unwrap();
    let (status, message) = builder.fail();
    assert_eq!((status, message.as_str()), (1, "vm-watchdog: metrics file vm.prom: it is a symbolic link\n"));
}

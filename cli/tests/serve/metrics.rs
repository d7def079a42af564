//! The value of each metric.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::client::*;
use crate::fakes::{FakeQmp, QmpClient};
use crate::server::{Builder, Server, TIMEOUT};
use crate::tenants::leave_threads_in_writes;

/// The address of the metrics, of a server with `--metrics 0`.
pub fn metrics_port(server: &Server) -> u16 {
    let address = server.expect("metrics")["address"].as_str().unwrap().to_owned();
    address.strip_prefix("127.0.0.1:").expect("an address of this machine").parse().unwrap()
}

pub fn request(port: u16, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A server that closes early may not have read it all.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

pub fn scrape(port: u16) -> String {
    let answer = request(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    body.to_owned()
}

/// The value of a metric of a watchdog.
fn value(metrics: &str, name: &str, id: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("vm_watchdog_{name}{{id=\"{id}\"}} ")))?;
    Some(line.parse().unwrap())
}

/// Waits until every counter of a watchdog is within these bounds. One that is not in the list has to be 0.
///
/// An action is counted when its handler has returned, which is a little after its last event.
fn wait_for_counters(port: u16, id: &str, expected: &[(&str, RangeInclusive<u64>)]) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let metrics = scrape(port);
        let counters = counters(&metrics, id);
        assert_eq!(counters.len(), 15, "{metrics}");
        let bounds = |name| expected.iter().find(|(expected, _)| *expected == name).map_or(0..=0, |(_, it)| it.clone());
        let is_known = |name| counters.contains_key(name);
        if counters.iter().all(|(name, value)| bounds(*name).contains(value))
            && expected.iter().all(|(name, _)| is_known(*name))
        {
            return;
        }
        assert!(Instant::now() < deadline, "{counters:#?}, but expected are {expected:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The counters of a watchdog by name.
pub fn counters<'a>(metrics: &'a str, id: &str) -> HashMap<&'a str, u64> {
    let suffix = format!("_total{{id=\"{id}\"}} ");
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("vm_watchdog_")?.split_once(&suffix));
    lines.map(|(name, value)| (name, value.parse().unwrap())).collect()
}

/// A watchdog whose VM a fake QEMU pauses and whose actions are commands, and another one that is not used.
fn with_qmp(watchdog: &str, exec: &str) -> (Server, QmpClient, u16) {
    let builder = Builder::new()
        .options("--metrics 0 --socket s --qmp q --watchdog")
        .options(watchdog)
        .option("--exec", exec)
        .options("--socket t --watchdog i6300esb,action=none");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let port = metrics_port(&server);
    let qmp = qmp.accept(&server, true);
    (server, qmp, port)
}

/// Lets the first stage end `times` times, each time in a wake of its own. The pretimeout action is due at its end.
fn warn(server: &Server, client: &mut Client, times: usize) {
    for (preload, units) in [(0x00, 1u32), (0x04, 60_000)] {
        client.unlock();
        client.write(BAR0, preload, &units.to_le_bytes()).unwrap();
    }
    for _ in 0..times {
        client.ping();
        server.expect_where("expiry", |event| event["stage"] == "pretimeout");
    }
}

#[test]
fn each_counter_counts_what_its_name_says() {
    let (server, _qmp, port) = with_qmp(
        "i6300esb,action=poweroff,pretimeout=debug,before=60m,action-interval=none,id=wd",
        "[ $WATCHDOG_ATTEMPT = 3 ]",
    );
    // Three connections that end in an error, one that stays open, and five surplus ones beside it.
    for _ in 0..3 {
        let mut client = server.client();
        client.send(&[0; 16]);
        assert!(client.receive().is_some_and(|reply| reply.error != 0));
        server.expect("disconnected");
    }
    let mut client = server.client();
    for _ in 0..5 {
        // One after the other: the server closes the connection of the oldest if there are too many at a time.
        let mut surplus = Client::new(server.stream());
        surplus.send(&message(1, VERSION, 0, PROPOSAL));
        server.expect("refused");
    }
    // Thirty-one writes to a register that is locked.
    for _ in 0..31 {
        client.write(BAR0, 0x00, &[1, 0, 0, 0]).unwrap();
    }
    // Eleven heartbeats of a watchdog that the guest has disarmed, and one of the driver that arms it.
    client.write(CONFIG, 0x68, &[0]).unwrap();
    for _ in 0..11 {
        client.ping();
    }
    // Six heartbeats with a pretimeout each, in a wake each. Its action, debug, is performed.
    client.arm(60_000);
    warn(&server, &mut client, 6);
    // Thirty-one heartbeats more, without.
    client.arm(60_000);
    for _ in 0..30 {
        client.ping();
    }
    // And one with a pretimeout and a timeout, in one wake or two. The action of the timeout succeeds at the third attempt,
    // and each attempt but the first has a wake of its own.
    client.arm(1);
    server.expect("performed");
    // All values differ, so that a swapped counter fails the test. Beside the nine wakes by the timer there is at most one
    // for each deadline that the guest has moved nearer, and one after it.
    let expected = [
        ("connections", 4..=4),
        ("protocol_errors", 3..=3),
        ("refused_clients", 5..=5),
        ("ignored_accesses", 31..=31),
        ("heartbeats", 38..=38),
        ("heartbeats_while_disarmed", 12..=12),
        ("pretimeouts", 7..=7),
        ("timeouts", 1..=1),
        ("action_failures", 2..=2),
        ("actions", 8..=8),
        ("timer_wakes", 9..=30),
    ];
    wait_for_counters(port, "wd", &expected);
    wait_for_counters(port, "watchdog1", &[]);
    let metrics = scrape(port);
    assert!(metrics.contains("# TYPE vm_watchdog_heartbeats_total counter\n"), "{metrics}");
}

#[test]
fn an_interrupt_that_cannot_be_signalled_is_counted() {
    let (server, _qmp, port) = with_qmp(
        "i6300esb,action=poweroff,pretimeout=debug,before=60m,action-interval=none,id=wd,interrupt=intx",
        "true",
    );
    for _ in 0..3 {
        drop(server.client());
        server.expect("disconnected");
    }
    // Four pretimeouts without an interrupt, because the client has set no eventfd yet.
    let mut client = server.client();
    client.arm(60_000);
    warn(&server, &mut client, 4);
    // The guest clears the interrupt, and the client sets an eventfd for the next one, after some that it does not read.
    client.write(BAR0, 0x08, &[1, 0, 0, 0]).unwrap();
    let unread = leave_threads_in_writes(&server, &mut client);
    let interrupt = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    client.connect_interrupt(&interrupt);
    client.ping();
    server.expect_where("expiry", |event| event["stage"] == "pretimeout");
    server.expect_where("log", |event| event["message"].as_str().unwrap().contains("4 threads wait for VMMs to read"));

    // The library tries again when it wakes.
    let expected = [
        ("interrupt_failures", 1..=5),
        ("connections", 4..=4),
        ("heartbeats", 5..=5),
        ("heartbeats_while_disarmed", 1..=1),
        ("pretimeouts", 5..=5),
        ("actions", 5..=5),
        ("timer_wakes", 5..=20),
    ];
    wait_for_counters(port, "wd", &expected);

    // And at the next access, when one of the threads has ended.
    rustix::io::read(&unread[0], &mut [0; 8]).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while rustix::io::read(&interrupt, &mut [0; 8]).is_err() {
        assert!(Instant::now() < deadline, "no interrupt");
        assert!(client.is_enabled(), "it is served as before");
    }
}

#[test]
fn each_gauge_has_its_current_value() {
    let (server, mut qmp, port) = with_qmp("i6300esb,action=none,id=wd", "true");
    let states = || {
        let metrics = scrape(port);
        for of_the_vm in ["qmp_connected", "paused"] {
            assert_eq!(value(&metrics, of_the_vm, "watchdog1"), value(&metrics, of_the_vm, "wd"));
        }
        ["qmp_connected", "paused", "connected", "armed", "timed_out"].map(|name| value(&metrics, name, "wd").unwrap())
    };
    assert_eq!(states(), [1.0, 0.0, 0.0, 0.0, 0.0]);
    qmp.pause(&server);
    assert_eq!(states(), [1.0, 1.0, 0.0, 0.0, 0.0]);
    let mut client = server.client();
    server.expect("connected");
    assert_eq!(states(), [1.0, 1.0, 1.0, 0.0, 0.0]);
    client.arm(1);
    assert_eq!(states(), [1.0, 1.0, 1.0, 1.0, 0.0]);
    qmp.resume(&server);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert_eq!(states(), [1.0, 0.0, 1.0, 1.0, 1.0]);
    client.write(CONFIG, 0x68, &[0]).unwrap();
    assert_eq!(states(), [1.0, 0.0, 1.0, 0.0, 1.0]);
    drop(client);
    server.expect("disconnected");
    assert_eq!(states(), [1.0, 0.0, 0.0, 0.0, 1.0]);
    drop(qmp);
    server.expect_where("control", |event| event["connected"] == false);
    assert_eq!(states(), [0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn the_age_of_the_last_heartbeat_is_that_of_the_last_heartbeat() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none --metrics 0").start();
    let port = metrics_port(&server);
    let mut client = server.client();
    client.arm(60_000);
    let age = || value(&scrape(port), "last_heartbeat_age_seconds", "watchdog0");
    assert_eq!(age(), None, "it has had none");
    let before = Instant::now();
    client.ping();
    let after = Instant::now();
    std::thread::sleep(Duration::from_millis(50));
    let at_least = after.elapsed().as_secs_f64();
    let age = age().unwrap();
    assert!((at_least..=before.elapsed().as_secs_f64()).contains(&age), "{age}");
}

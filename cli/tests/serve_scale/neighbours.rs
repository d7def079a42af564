//! A tenant that floods its server, and how late the watchdogs of other VMs time out meanwhile.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::assets;

use crate::client::*;
use crate::server::{Builder, Server};
use crate::{BareSleep, lateness, start};

const NEIGHBOURS: u32 = 8;
/// Quiet and flooded parts take turns, since the load that other programs put on the machine changes.
const ROUNDS: usize = 5;
/// How often each neighbour's watchdog times out in a part.
const TIMEOUTS: usize = 6;
/// How much later than 99 of 100 bare sleeps half of the timeouts may be, while the tenant floods.
const MEDIAN_BOUND: Duration = Duration::from_millis(20);
/// How much later than the worst bare sleep 99 of 100 timeouts may be.
const P99_BOUND: Duration = Duration::from_millis(200);

/// The lateness of the neighbours' watchdogs, and that of a bare sleep at the same time.
#[derive(Default)]
struct Samples {
    watchdogs: Vec<Duration>,
    bare: Vec<Duration>,
}

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug)]
struct Summary {
    median: Duration,
    p99: Duration,
    worst: Duration,
}

impl Samples {
    fn add(&mut self, neighbours: &mut [(Server, Client)]) {
        let bare = BareSleep::start();
        for _ in 0..TIMEOUTS {
            for ((_, client), number) in neighbours.iter_mut().zip(0..) {
                client.arm(60 + 5 * number);
            }
            self.watchdogs.extend(neighbours.iter().map(|(server, _)| lateness(server)));
        }
        self.bare.extend(bare.lateness());
    }
}

impl Summary {
    fn of(mut lateness: Vec<Duration>) -> Self {
        lateness.sort();
        let at = |percent| lateness[(lateness.len() - 1) * percent / 100];
        Self { median: at(50), p99: at(99), worst: at(100) }
    }

    /// How many times later than in the other one.
    fn ratio(&self, other: &Self) -> [f64; 2] {
        [(self.median, other.median), (self.p99, other.p99)]
            .map(|(flooded, quiet)| flooded.as_secs_f64() / quiet.as_secs_f64())
    }
}

/// The threads of a tenant that sends as much as its server takes, on one socket each.
struct Flood {
    is_over: Arc<AtomicBool>,
    started: Instant,
    threads: Vec<(&'static str, JoinHandle<u64>)>,
}

impl Flood {
    fn start(server: &Server) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let start = |what, socket, flood: fn(PathBuf, &AtomicBool) -> u64| {
            let (path, is_over) = (server.path(socket), is_over.clone());
            (what, std::thread::spawn(move || flood(path, &is_over)))
        };
        let threads = vec![
            start("guest writes", "writes", send_writes),
            start("connections", "connections", connect),
            start("descriptors", "descriptors", send_descriptors),
        ];
        Self { is_over, started: Instant::now(), threads }
    }

    /// Ends it, and gives what was sent in a second.
    fn end(self) -> Vec<(&'static str, u64)> {
        self.is_over.store(true, Ordering::Relaxed);
        let elapsed = self.started.elapsed().as_secs_f64();
        let end = |(what, thread): (_, JoinHandle<u64>)| (what, (thread.join().unwrap() as f64 / elapsed) as u64);
        self.threads.into_iter().map(end).collect()
    }
}

/// A guest's heartbeats, which have no reply.
fn send_writes(socket: PathBuf, is_over: &AtomicBool) -> u64 {
    let mut client = Client::connect(&socket);
    client.negotiate();
    client.arm(60_000);
    let heartbeat = [[0x80, 0], [0x86, 0], [0, 1]];
    let heartbeat = heartbeat.map(|data| message(1, REGION_WRITE, NO_REPLY, &access(BAR0, 0x0C, 2, &data))).concat();
    let (heartbeats, mut sent) = (heartbeat.repeat(100), 0);
    while !is_over.load(Ordering::Relaxed) {
        client.send(&heartbeats);
        sent += 300;
    }
    sent
}

/// Connections with half a message.
fn connect(socket: PathBuf, is_over: &AtomicBool) -> u64 {
    let mut connections = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // The server may already have closed it.
        let _ = stream.write_all(&message(1, VERSION, 0, PROPOSAL)[..20]);
        connections += 1;
    }
    connections
}

/// As many descriptors as a message can have, in messages that must not have any.
fn send_descriptors(socket: PathBuf, is_over: &AtomicBool) -> u64 {
    let (pipe, _other) = UnixStream::pair().unwrap();
    let (pipes, reset, mut sent) = ([pipe.as_fd(); 253], message(1, RESET, 0, &[]), 0);
    while !is_over.load(Ordering::Relaxed) {
        let mut client = Client::connect(&socket);
        if client.ask(VERSION, PROPOSAL).is_err() {
            continue;
        }
        // Sending fails while too many are in flight. The server closes the connection when it cannot close them fast enough.
        while !is_over.load(Ordering::Relaxed) && client.try_send_with_fds(&reset, &pipes).is_ok() {
            if client.receive().is_none() {
                break;
            }
            sent += 253;
        }
    }
    sent
}

#[test]
fn a_tenant_that_floods_its_server_does_not_delay_the_watchdogs_of_others() {
    let _machine = assets::machine_to_ourselves().unwrap();
    let sockets = "--socket writes --socket connections --socket descriptors";
    let hostile = Builder::new().options("--watchdog i6300esb,action=none").options(sockets).start();
    let mut neighbours: Vec<_> = (0..NEIGHBOURS).map(|_| start()).collect();
    let [mut quiet, mut flooded] = [Samples::default(), Samples::default()];
    for _ in 0..ROUNDS {
        quiet.add(&mut neighbours);
        let flood = Flood::start(&hostile);
        flooded.add(&mut neighbours);
        println!("flood, each second: {:?}", flood.end());
    }
    let count = quiet.watchdogs.len();
    let [(quiet, bare_quiet), (flooded, bare)] =
        [quiet, flooded].map(|samples| (Summary::of(samples.watchdogs), Summary::of(samples.bare)));
    println!("lateness of {count} timeouts of {NEIGHBOURS} neighbours: quiet {quiet:?}, flooded {flooded:?}");
    println!("lateness of a bare sleep: quiet {bare_quiet:?}, flooded {bare:?}");
    let (ratio, bare_ratio) = (flooded.ratio(&quiet), bare.ratio(&bare_quiet));
    println!("flooded to quiet (median, p99): {ratio:.1?}; of a bare sleep {bare_ratio:.1?}");
    assert!(flooded.median < bare.p99 + MEDIAN_BOUND && flooded.p99 < bare.worst + P99_BOUND);
}

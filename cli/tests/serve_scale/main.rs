//! What the servers of many VMs take of a host, and what a hostile VM takes of the others.
//!
//! Many processes, each with the watchdog of one VM: the private memory of one, its wake-ups and its processor time when
//! idle, and whether each watchdog times out in time. The other measurements have files of their own.
//!
//! `cargo test -p vm-watchdog-cli --test serve_scale -- --nocapture` prints the figures of docs/serve.md.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod client;
mod connections;
mod neighbours;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_watchdog_test_support::assets;

use crate::client::Client;
use crate::server::{Builder, Server};

/// How many processes there are, unless the machine takes too long to start them.
const MOST_PROCESSES: usize = 1000;
/// How many there are in any case.
const LEAST_PROCESSES: usize = 200;
/// How long processes are started.
const STARTING: Duration = Duration::from_secs(30);
/// The most private memory of one.
const MOST_MEMORY: u64 = 768 << 10;
/// How long the processes are idle.
const IDLE: Duration = Duration::from_secs(10);
/// How much later than the worst bare sleep at the same time half of the watchdogs may time out.
const MEDIAN_BOUND: Duration = Duration::from_millis(100);
/// How much later each of them may. A machine that runs other programs may leave one thread of thousands waiting.
const WORST_BOUND: Duration = Duration::from_secs(2);

/// A server, and a client that is connected to it.
fn start() -> (Server, Client) {
    let server = Builder::new().options("--watchdog i6300esb,action=none --socket s").start();
    let client = server.client();
    (server, client)
}

/// Processor time used so far.
fn processor_time(server: &Server) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    // After the name, which is in parentheses: user and system time are the 12th and 13th, in ticks of 10 ms.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// How often each of its threads has waited.
fn waits(server: &Server) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let count = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse().unwrap()
    };
    threads.map(|thread| count(thread.unwrap())).collect()
}

/// Memory of the process that is its own.
fn memory(server: &Server) -> u64 {
    memory_in(server, "Private_")
}

/// What the kernel reports in the lines that start like this.
fn memory_in(server: &Server, start: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10).sum()
}

/// How late its next timeout is.
fn lateness(server: &Server) -> Duration {
    let expiry = server.expect_where("expiry", |event| event["stage"] == "timeout");
    Duration::from_nanos(expiry["lateness_ns"].as_u64().unwrap())
}

fn median<T: Ord + Copy>(values: &mut [T]) -> T {
    values.sort();
    values[values.len() / 2]
}

#[test]
fn many_idle_processes_use_little_memory_and_do_not_wake_and_time_out_in_time() {
    let _machine = assets::machine_to_ourselves().unwrap();
    // A pipe, a socket and more for each.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let (mut servers, started) = (Vec::new(), Instant::now());
    while servers.len() < LEAST_PROCESSES || servers.len() < MOST_PROCESSES && started.elapsed() < STARTING {
        servers.push(start());
    }
    let count = servers.len();
    println!("{count} processes of {MOST_PROCESSES} within {:?}", started.elapsed());
    for (_, client) in &mut servers {
        client.arm(0xF_FFFF);
    }
    let mut memories: Vec<_> = servers.iter().map(|(server, _)| memory(server)).collect();
    let each = median(&mut memories);
    println!("memory: {each} bytes private in the median, {} at most", memories[count - 1]);
    assert!(each < MOST_MEMORY, "{each} bytes private");

    let used = || servers.iter().map(|(server, _)| processor_time(server)).sum::<Duration>();
    let waited = || servers.iter().map(|(server, _)| waits(server)).collect::<Vec<_>>();
    let (used_before, waited_before) = (used(), waited());
    std::thread::sleep(IDLE);
    let (used, waited_after) = (used() - used_before, waited());
    let percent = 100.0 * used.as_secs_f64() / IDLE.as_secs_f64();
    let woken = waited_before.iter().zip(&waited_after).filter(|(before, after)| before != after).count();
    println!("idle: {percent} % of one processor, {woken} processes woken, {} threads each", waited_after[0].len());
    assert!(percent < 1.0);
    assert_eq!(woken, 0, "an idle process does not wake");

    // Deadlines spread over a second or more, which come while others are being set.
    let bare_sleep = BareSleep::start();
    for (index, (_, client)) in servers.iter_mut().enumerate() {
        client.arm(256 + u32::try_from(index).unwrap() * 2);
    }
    let mut lateness: Vec<_> = servers.iter().map(|(server, _)| lateness(server)).collect();
    let middle = median(&mut lateness);
    let (worst, bare) = (lateness[count - 1], *bare_sleep.lateness().iter().max().unwrap());
    println!("lateness: median {middle:?}, worst {worst:?}; worst of a bare sleep {bare:?}");
    assert!(middle < bare + MEDIAN_BOUND && worst < bare + WORST_BOUND);
}

/// Measures the lateness of bare sleeps, with the load that other programs put on this machine.
struct BareSleep {
    is_done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl BareSleep {
    fn start() -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let thread = {
            let is_done = is_done.clone();
            std::thread::spawn(move || {
                let (asked, mut lateness) = (Duration::from_millis(1), Vec::new());
                while !is_done.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    std::thread::sleep(asked);
                    lateness.push(started.elapsed() - asked);
                }
                lateness
            })
        };
        Self { is_done, thread }
    }

    fn lateness(self) -> Vec<Duration> {
        self.is_done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

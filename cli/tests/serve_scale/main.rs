//! Two hundred watchdogs in one process: their processor time and memory when idle, and whether each fires in time.
//!
//! `cargo test --release -p vm-watchdog-cli --test serve_scale -- --nocapture` prints the figures of the README.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod client;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::assets;

use crate::client::Client;
use crate::server::{Builder, Server};

const WATCHDOGS: usize = 200;
/// The most memory for each of them after the first. Measured are 32 KB.
const MOST_MEMORY: u64 = 48 << 10;
/// How long the watchdogs are idle.
const IDLE: Duration = Duration::from_secs(10);
/// How much later than a bare sleep at the same time a watchdog may fire.
const BOUND: Duration = Duration::from_millis(100);

fn start(watchdogs: usize) -> Server {
    let sockets: Vec<_> = (0..watchdogs).map(|index| format!("--socket s{index}")).collect();
    Builder::new().options("--watchdog i6300esb,action=none").options(&sockets.join(" ")).start()
}

fn connect(server: &Server, watchdogs: usize) -> Vec<Client> {
    (0..watchdogs).map(|index| server.client_of(&format!("s{index}"))).collect()
}

/// Processor time used so far.
fn processor_time(server: &Server) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    // After the name, which is in parentheses: user and system time are the 12th and 13th, in ticks of 10 ms.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// Memory of the process that is its own.
fn memory(server: &Server) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let own = rollup.lines().filter(|line| line.starts_with("Private_"));
    own.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10).sum()
}

#[test]
fn two_hundred_idle_watchdogs_use_little_processor_time_and_fire_in_time() {
    let _machine = assets::machine_to_ourselves().unwrap();
    let one = start(1);
    let _client = connect(&one, 1);
    let server = start(WATCHDOGS);
    let mut clients = connect(&server, WATCHDOGS);
    for client in &mut clients {
        client.arm(0xF_FFFF);
    }
    let each = (memory(&server) - memory(&one)) / (WATCHDOGS as u64 - 1);
    println!("memory: {each} bytes a watchdog with its client connected, {} for the first", memory(&one));
    assert!(each < MOST_MEMORY, "{each} bytes a watchdog");

    let before = processor_time(&server);
    std::thread::sleep(IDLE);
    let used = processor_time(&server) - before;
    let percent = 100.0 * used.as_secs_f64() / IDLE.as_secs_f64();
    println!("idle: {percent} % of one processor, {WATCHDOGS} watchdogs armed");
    assert!(percent < 1.0);

    // Deadlines spread over a second, which all come while others are being set.
    let bare_sleep = BareSleep::start();
    for (index, client) in clients.iter_mut().enumerate() {
        client.arm(256 + u32::try_from(index).unwrap() * 2);
    }
    let mut lateness = HashMap::new();
    while lateness.len() < WATCHDOGS {
        let expiry = server.expect_where("expiry", |event| event["stage"] == "timeout");
        let late = Duration::from_nanos(expiry["lateness_ns"].as_u64().unwrap());
        assert_eq!(lateness.insert(expiry["id"].as_str().unwrap().to_owned(), late), None, "once: {expiry}");
    }
    let mut lateness: Vec<_> = lateness.into_values().collect();
    lateness.sort();
    let (median, worst, bare) = (lateness[WATCHDOGS / 2], lateness[WATCHDOGS - 1], bare_sleep.worst());
    println!("lateness: median {median:?}, worst {worst:?}; worst of a bare sleep {bare:?}");
    assert!(worst < bare + BOUND);
}

/// Measures the lateness of a bare sleep, with the load that other programs put on this machine.
struct BareSleep {
    is_done: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl BareSleep {
    fn start() -> Self {
        let is_done = Arc::new(AtomicBool::new(false));
        let thread = {
            let is_done = is_done.clone();
            std::thread::spawn(move || {
                let (asked, mut worst) = (Duration::from_millis(1), Duration::ZERO);
                while !is_done.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    std::thread::sleep(asked);
                    worst = worst.max(started.elapsed() - asked);
                }
                worst
            })
        };
        Self { is_done, thread }
    }

    fn worst(self) -> Duration {
        self.is_done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

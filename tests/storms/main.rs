//! The worst programs that a guest can write, each from several vCPU threads at once: what they cost the host, and what
//! they cost a neighbour in the same process, stay within the bounds of docs/evidence.md.
//!
//! `--nocapture` prints the figures. A target with one test, because a process has one logger and one allocator, and
//! processor time is shared.

#[path = "../common/mod.rs"]
mod common;
mod guests;
mod host;
mod measure;
mod neighbour;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use guests::Storm;
use host::Host;
use measure::{Cost, Sample};
use neighbour::{Costs, Neighbour};
use vm_watchdog::{Action, Model, Policy, Watchdog};
use vm_watchdog_test_support::assets;

/// How many vCPUs a guest has, each a thread that makes accesses without a pause.
const VCPUS: u32 = 8;
/// Threads start and memory that stays is allocated before the measurement.
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1500);

/// The most wakes of the watchdog's thread in a second.
const WAKES_BOUND: f64 = 1_000.0;
/// The most memory by which the heap may grow: what is in use at the moment of a measurement differs by this.
const HEAP_BOUND: i64 = 16 << 10;
/// The most by which the anonymous memory of the process may.
const MEMORY_BOUND: i64 = 512 << 10;
/// The most processor time of the watchdog's thread, as a share of one processor.
const SHARE_BOUND: f64 = 0.15;
/// The most processor time of a wake.
const WAKE_BOUND: Duration = Duration::from_micros(250);
/// How much later than the latest bare sleep a timeout may be.
const LATENESS_BOUND: Duration = Duration::from_millis(500);
/// How many times the heartbeat of a neighbour may cost what it costs in a quiet process, and how much more.
const HEARTBEAT_FACTOR: u32 = 10;
const HEARTBEAT_BOUND: Duration = Duration::from_micros(10);

#[test]
fn no_storm_of_a_guest_costs_the_host_or_a_neighbour_more_than_its_bounds() {
    let _machine = assets::machine_to_ourselves().unwrap();
    host::install_logger();
    let quiet = {
        let neighbour = Neighbour::start();
        thread::sleep(MEASURED);
        neighbour.end()
    };
    let mut report = Report { quiet: quiet.heartbeat(), failures: Vec::new() };
    println!("{VCPUS} vCPUs, {MEASURED:?} each, on {} processors", thread::available_parallelism().unwrap());
    println!("{}", Cost::HEAD);
    println!("{:28} {:>60} {}", "quiet", "", quiet);
    guests::i6300esb().iter().for_each(|storm| report.add(storm));
    guests::diag288().iter().for_each(|storm| report.add(storm));
    guests::wdat().iter().for_each(|storm| report.add(storm));
    guests::sbsa().iter().for_each(|storm| report.add(storm));
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

/// What was beyond its bound.
struct Report {
    /// The median cost of a heartbeat in the quiet process.
    quiet: Duration,
    failures: Vec<String>,
}

impl Report {
    fn add<M: Model + Send + 'static>(&mut self, storm: &Storm<M>) {
        let (cost, neighbour) = measure(storm);
        println!("{:28} {cost} {neighbour}", storm.name);
        let mut check = |holds: bool, what: &str| {
            if !holds {
                self.failures.push(format!("{}: {what}", storm.name));
            }
        };
        let seconds = cost.elapsed.as_secs_f64();
        // One that was due before, and one at the end.
        check(cost.wakes as f64 <= WAKES_BOUND * seconds + 2.0, "wakes");
        for (kind, lines) in host::KINDS.iter().zip(cost.lines) {
            check(lines as f64 <= seconds + 1.0, &format!("{lines} log lines of the kind {kind:?}"));
        }
        check(cost.run_delay_readings as f64 <= 10.0 * seconds + 1.0, "readings of the run delay");
        check(cost.heap < HEAP_BOUND, "growth of the heap");
        check(cost.memory < MEMORY_BOUND, "growth of anonymous memory");
        check(cost.share() < SHARE_BOUND, "processor time of the watchdog's thread");
        let wakes = u32::try_from(cost.wakes).unwrap();
        check(cost.processor_time < WAKE_BOUND * (wakes + 10), "processor time of a wake");
        let latest_sleep = neighbour.latest_sleep();
        check(cost.lateness < latest_sleep + LATENESS_BOUND, "lateness of its own timeout");
        check((cost.lateness > Duration::ZERO) == storm.expires, "whether it times out");
        check(cost.accesses > 1_000, "too few accesses to show a limit");
        check(neighbour.heartbeat() < self.quiet * HEARTBEAT_FACTOR + HEARTBEAT_BOUND, "a neighbour's heartbeat");
        check(neighbour.lateness() < latest_sleep + LATENESS_BOUND, "a neighbour's timeout");
        check(neighbour.unwanted == 0, "a timeout of a neighbour that feeds");
    }
}

/// What a storm costs the host, and meanwhile the neighbour.
fn measure<M: Model + Send + 'static>(storm: &Storm<M>) -> (Cost, Costs) {
    let host = Host::default();
    let builder = Watchdog::builder(host::ID, (storm.device)())
        .policy(Policy::new(Action::InjectNmi).with_pretimeout(Action::InjectNmi))
        .interrupt_line(host.line())
        .msi(host.messages())
        .compensate_steal_time(host.run_delay(), 2);
    let watchdog = builder.build(host.handler()).unwrap();
    let thread = watchdog.spawn().unwrap();
    let (is_over, accesses) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcome = thread::scope(|scope| {
        let (watchdog, is_over, accesses) = (&watchdog, &is_over, &accesses);
        let neighbour = Neighbour::start();
        (storm.begin)(watchdog);
        for vcpu in 0..VCPUS {
            scope.spawn(move || {
                for round in (vcpu..).step_by(VCPUS as usize) {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    (storm.again)(watchdog, round);
                    accesses.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let sample = || Sample::take(watchdog, &host, accesses);
        thread::sleep(WARM_UP);
        let before = sample();
        thread::sleep(MEASURED);
        let cost = Cost::between(&before, &sample(), &host);
        // Before a panic of the neighbour's thread is passed on, because the scope waits for the vCPUs.
        is_over.store(true, Ordering::Relaxed);
        (cost, neighbour.end())
    });
    drop(thread);
    outcome
}

//! The worst programs that a guest can run on a vCPU of the reference VMM: what they cost its process beside the vCPU, and
//! what they cost a VM beside it. `tests/storms` has those of several vCPUs, in-process.
//!
//! `--nocapture` prints the figures.

#[path = "../boot/support.rs"]
mod support;

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use program::{Program, WDAT};
use rustix::process::Pid;
use support::{Running, has_kvm, kernel, number};
use vm_watchdog_test_support::assets;
use vm_watchdog_timeline::{ENTRIES_AT_ONCE, ENTRIES_PER_SECOND};

/// The limits of the timeline are used up meanwhile.
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);

/// The most waits of the process' threads in a second, the vCPU's excluded. A wake of a watchdog, 1,000 of which are
/// permitted for each, may make one of the loop for its event too.
const WAITS_BOUND: f64 = 2_500.0;
/// The most processor time of these threads, as a share of one processor.
const SHARE_BOUND: f64 = 0.25;
/// The most by which its anonymous memory may grow.
const MEMORY_BOUND: i64 = 512 << 10;
/// The kinds of entries that a guest can cause: feeding, expiries and remarks.
const KINDS: u32 = 3;
/// How late the timeout of a neighbour may be.
const LATENESS_BOUND: Duration = Duration::from_millis(500);

/// Two stages of 512 << 15 ticks of 30 ns.
const NEIGHBOURS_PERIOD_NS: u64 = 1_006_632_960;

/// The programs, and whether their watchdogs expire meanwhile.
fn storms() -> [(&'static str, Program, bool); 6] {
    let free_running = || Program::new().write_config(0x60, 0x04).set_preloads(1).write_config(0x68, 0x06);
    let running = || Program::new().set_preloads(60_000).write_config(0x68, 0x02);
    [
        ("timeouts", free_running().again(), true),
        ("interrupts", free_running().again().write_bar(0x08, 1), true),
        ("heartbeats", running().again().unlock().write_bar(0x0C, 0x100), false),
        ("unlocks", running().again().unlock().write_bar(0x0C, 0x80).write_bar(0x0C, 0x86).write_bar(0x0C, 1), false),
        (
            "configuration",
            running()
                .again()
                .write_config(0x04, 0x0406)
                .write_config(0x10, u32::MAX)
                .write_config(0x10, 0x3000_0000)
                .write_config(0x04, 0)
                .write_config(0x68, 0)
                .write_config(0x68, 2)
                .write_config(0xFC, u32::MAX),
            false,
        ),
        (
            "everything, and the wdat",
            free_running()
                .write_port(WDAT, 1)
                .again()
                .set_preloads(2)
                .unlock()
                .write_bar(0x0C, 0x100)
                .write_bar(0x08, 1)
                .write_config(0x68, 0)
                .write_config(0x68, 6)
                .write_port(WDAT + 4, 1)
                .write_port(WDAT + 8, 0)
                .write_port(WDAT + 8, 1)
                .write_port(WDAT + 12, 1),
            true,
        ),
    ]
}

#[test]
fn no_storm_on_a_vcpu_costs_its_host_or_a_neighbour_more_than_its_bounds() {
    if !has_kvm() {
        return;
    }
    let _machine = assets::machine_to_ourselves().unwrap();
    println!("one vCPU, {MEASURED:?} each, on {} processors", thread::available_parallelism().unwrap());
    println!("storm                      vCPU    others   waits/s   lines/s   memory, KiB   neighbour late by");
    let failures: Vec<_> =
        storms().iter().flat_map(|(name, program, expires)| measure(name, program, *expires)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs a storm beside a neighbour, and gives what was beyond its bound.
fn measure(name: &str, program: &Program, expires: bool) -> Vec<String> {
    let kernel = kernel("storm", &program.to_code());
    let i6300esb = "--watchdog=i6300esb,action=debug,pretimeout=debug,interrupt=intx";
    let started = Instant::now();
    let mut storm = Running::start(&[
        "--events=json",
        "--kernel",
        kernel.path(),
        "--memory=32M",
        i6300esb,
        "--watchdog=wdat,action=debug",
    ]);
    storm.wait_for("armed");
    let neighbour = thread::spawn(neighbours_lateness);
    thread::sleep(WARM_UP);
    let before = Used::by(&storm);
    thread::sleep(MEASURED);
    let used = Used::by(&storm);
    let lateness = neighbour.join().unwrap();
    let run = storm.finish(Duration::ZERO);
    let lived = started.elapsed();

    // Nothing that is counted was before or after.
    let seconds = (used.ended - before.began).as_secs_f64();
    let share = |used: Duration, before: Duration| (used - before).as_secs_f64() / seconds;
    let vcpu = share(used.by_vcpu, before.by_vcpu);
    let others = share(used.by_others, before.by_others);
    let waits = (used.waits - before.waits) as f64 / seconds;
    let memory = used.memory - before.memory;
    let lines = run.messages.lines().count();
    println!(
        "{name:25} {:5.1}% {:8.2}% {waits:9.0} {:9.0} {:13} {lateness:>19.3?}",
        100.0 * vcpu,
        100.0 * others,
        lines as f64 / lived.as_secs_f64(),
        memory >> 10
    );
    let most_lines =
        f64::from(KINDS) * (f64::from(ENTRIES_AT_ONCE) + f64::from(ENTRIES_PER_SECOND) * lived.as_secs_f64());
    let mut failures = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            failures.push(format!("{name}: {what}"));
        }
    };
    check(waits < WAITS_BOUND, "waits");
    check(others < SHARE_BOUND, "processor time of the host's threads");
    check(memory < MEMORY_BOUND, "growth of anonymous memory");
    check((lines as f64) < most_lines, "lines");
    check(lateness < LATENESS_BOUND, "the timeout of a neighbour");
    check(run.all("expiry").is_empty() != expires, "whether it times out");
    check(run.status.is_none(), "it has ended by itself");
    failures
}

/// Runs a guest that feeds its watchdog and stops, and gives how late its timeout is. It is never early.
fn neighbours_lateness() -> Duration {
    let run = support::boot(&["--events=json", "--watchdog=i6300esb,action=poweroff"]);
    let expiry = run.expiry("timeout");
    assert_eq!(number(&expiry, "deadline_ns") - number(&expiry, "last_heartbeat_ns"), NEIGHBOURS_PERIOD_NS);
    Duration::from_nanos(number(&expiry, "lateness_ns"))
}

/// What a process has used so far.
struct Used {
    began: Instant,
    ended: Instant,
    by_vcpu: Duration,
    by_others: Duration,
    /// How often the other threads have waited.
    waits: u64,
    /// Anonymous memory, in bytes. Private pages of its file depend on which other processes have it mapped.
    memory: i64,
}

impl Used {
    fn by(running: &Running) -> Self {
        let began = Instant::now();
        let (process, vcpu) = (running.id(), running.vcpu());
        let folder = PathBuf::from(format!("/proc/{process}"));
        let mut used = Self {
            began,
            ended: began,
            by_vcpu: Duration::ZERO,
            by_others: Duration::ZERO,
            waits: 0,
            memory: anonymous_memory(&folder),
        };
        for thread in fs::read_dir(folder.join("task")).unwrap() {
            let thread = thread.unwrap();
            if thread.file_name().into_string().ok().and_then(|id| Pid::from_raw(id.parse().ok()?)) == Some(vcpu) {
                used.by_vcpu += processor_time(&thread.path());
            } else {
                used.by_others += processor_time(&thread.path());
                used.waits += waits(&thread.path());
            }
        }
        used.ended = Instant::now();
        used
    }
}

fn processor_time(thread: &Path) -> Duration {
    let account = fs::read_to_string(thread.join("schedstat")).unwrap();
    Duration::from_nanos(account.split(' ').next().unwrap().parse().unwrap())
}

fn waits(thread: &Path) -> u64 {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    count.trim().parse().unwrap()
}

fn anonymous_memory(process: &Path) -> i64 {
    let rollup = fs::read_to_string(process.join("smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<i64>().unwrap() << 10
}

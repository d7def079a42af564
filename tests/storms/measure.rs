//! What the kernel, the allocator and the library say that a storm costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_watchdog::{Model, Watchdog};

use crate::host::{self, Host, KINDS};

/// Counts the bytes of the heap that are in use.
struct InUse;

static IN_USE: AtomicI64 = AtomicI64::new(0);

#[global_allocator]
static ALLOCATOR: InUse = InUse;

// SAFETY: passes each call unchanged to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for InUse {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What has been used so far.
pub struct Sample {
    began: Instant,
    ended: Instant,
    wakes: u64,
    waits: u64,
    processor_time: Duration,
    lines: [u64; KINDS.len()],
    heap: i64,
    memory: i64,
    run_delay_readings: u64,
    accesses: u64,
}

impl Sample {
    pub fn take<M: Model + Send + 'static>(watchdog: &Watchdog<M>, host: &Host, accesses: &AtomicU64) -> Self {
        let began = Instant::now();
        let thread = thread_of_the_watchdog();
        let [waits, processor_time] = [waits(&thread), processor_time(&thread)];
        Self {
            began,
            wakes: watchdog.stats().wakes,
            waits,
            processor_time: Duration::from_nanos(processor_time),
            lines: host::lines(),
            heap: IN_USE.load(Ordering::Relaxed),
            memory: anonymous_memory(),
            run_delay_readings: host.run_delay_readings(),
            accesses: accesses.load(Ordering::Relaxed),
            ended: Instant::now(),
        }
    }
}

/// Its folder in /proc.
fn thread_of_the_watchdog() -> PathBuf {
    let name = format!("watchdog {}", host::ID);
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let is_it = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name);
    threads.into_iter().find(is_it).expect("the thread of the watchdog")
}

/// How often a thread has given the processor up to wait for something.
fn waits(thread: &std::path::Path) -> u64 {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    count.trim().parse().unwrap()
}

/// In nanoseconds.
fn processor_time(thread: &std::path::Path) -> u64 {
    let account = fs::read_to_string(thread.join("schedstat")).unwrap();
    account.split(' ').next().unwrap().parse().unwrap()
}

/// The memory of this process that is no file's, in bytes.
fn anonymous_memory() -> i64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<i64>().unwrap() << 10
}

/// What was used between two samples.
pub struct Cost {
    pub elapsed: Duration,
    pub wakes: u64,
    /// How often the watchdog's thread waited: for a wake, or for the lock that a vCPU held.
    pub waits: u64,
    pub processor_time: Duration,
    pub lines: [u64; KINDS.len()],
    pub heap: i64,
    pub memory: i64,
    pub run_delay_readings: u64,
    pub accesses: u64,
    /// The largest of an event of the guest's watchdog since its start; zero if there was none.
    pub lateness: Duration,
}

impl Cost {
    pub const HEAD: &str = "storm                         rounds/s  wakes/s  waits/s  lines   heap  anonym.  thread     late \
                            | a neighbour's heartbeat, timeout and bare sleep";

    pub fn between(before: &Sample, after: &Sample, host: &Host) -> Self {
        let mut lines = after.lines;
        lines.iter_mut().zip(before.lines).for_each(|(after, before)| *after -= before);
        Self {
            // Nothing that is counted was before or after.
            elapsed: after.ended - before.began,
            wakes: after.wakes - before.wakes,
            waits: after.waits - before.waits,
            processor_time: after.processor_time - before.processor_time,
            lines,
            heap: after.heap - before.heap,
            memory: after.memory - before.memory,
            run_delay_readings: after.run_delay_readings - before.run_delay_readings,
            accesses: after.accesses - before.accesses,
            lateness: host.lateness(),
        }
    }

    /// The processor time of the watchdog's thread, as a share of one processor.
    pub fn share(&self) -> f64 {
        self.processor_time.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |count: u64| count as f64 / self.elapsed.as_secs_f64();
        let (accesses, wakes, waits) = (rate(self.accesses), rate(self.wakes), rate(self.waits));
        let lines: u64 = self.lines.iter().sum();
        let kib = |bytes: i64| bytes as f64 / 1024.0;
        let (heap, memory) = (kib(self.heap), kib(self.memory));
        write!(f, "{accesses:9.0} {wakes:8.0} {waits:8.0} {lines:6} {heap:6.1} {memory:8.0} ")?;
        write!(f, "{:7.2}% {:>8}", 100.0 * self.share(), millis(self.lateness))
    }
}

/// In milliseconds.
pub fn millis(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

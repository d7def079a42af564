//! The VMM's side of a guest: code that fails every other time, and a logger that counts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use vm_watchdog::{ActionHandler, Event, HandlerError, InterruptLine, MsiMessage, MsiSender, RunDelay, VcpuDelay};

/// The name of the watchdog of the hostile guest.
pub const ID: &str = "storm";

/// The kinds of log lines, by a part that the others do not have.
pub const KINDS: [&str; 7] = [
    "late, action",
    "failed at attempt",
    "the interrupt line",
    "the interrupt message",
    "cannot read the run delay",
    "feeds it and believes in it",
    "this one is none of those above",
];

static LINES: [AtomicU64; KINDS.len()] = [const { AtomicU64::new(0) }; KINDS.len()];

/// Counts the lines about the hostile guest's watchdog.
pub fn install_logger() {
    log::set_logger(&Counter).unwrap();
    log::set_max_level(LevelFilter::Trace);
}

/// How many lines of each kind there were.
pub fn lines() -> [u64; KINDS.len()] {
    LINES.each_ref().map(|lines| lines.load(Ordering::Relaxed))
}

struct Counter;

impl Log for Counter {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        let line = record.args().to_string();
        if line.starts_with(&format!("watchdog {ID}: ")) {
            let kind = KINDS.iter().position(|kind| line.contains(kind)).unwrap_or(KINDS.len() - 1);
            LINES[kind].fetch_add(1, Ordering::Relaxed);
        }
    }
    fn flush(&self) {}
}

/// What the VMM's code was called for.
#[derive(Clone, Default)]
pub struct Host(Arc<Counters>);

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    run_delay_readings: AtomicU64,
    /// In nanoseconds.
    lateness: AtomicU64,
}

impl Host {
    pub fn handler(&self) -> impl ActionHandler + 'static {
        let host = self.clone();
        move |event: &Event| -> Result<(), HandlerError> {
            if event.attempt == 1 {
                let lateness = u64::try_from(event.lateness().as_nanos()).unwrap();
                // A timeout that is not late at all has happened too.
                host.0.lateness.fetch_max(lateness.max(1), Ordering::Relaxed);
            }
            Ok(host.fail_sometimes()?)
        }
    }

    pub fn line(&self) -> impl InterruptLine + 'static {
        let host = self.clone();
        move |_high: bool| host.fail_sometimes()
    }

    pub fn messages(&self) -> impl MsiSender + 'static {
        let host = self.clone();
        move |_message: MsiMessage| host.fail_sometimes()
    }

    pub fn run_delay(&self) -> impl RunDelay + 'static {
        Reader(self.clone())
    }

    pub fn run_delay_readings(&self) -> u64 {
        self.0.run_delay_readings.load(Ordering::Relaxed)
    }

    /// The largest lateness of an event at its first attempt.
    pub fn lateness(&self) -> Duration {
        Duration::from_nanos(self.0.lateness.load(Ordering::Relaxed))
    }

    fn fail_sometimes(&self) -> io::Result<()> {
        match self.0.calls.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Ok(()),
            _ => Err(io::Error::other("the VMM is busy")),
        }
    }
}

struct Reader(Host);

impl RunDelay for Reader {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        self.0.0.run_delay_readings.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::other("the thread has ended"))
    }
}

//! A timeline: what happened, and when by a VM's clock, for a person (text) or a program (JSON lines).
//!
//! Some entries can be caused by the guest as often as it likes. They pass a [`Budget`] each, so that no guest fills a
//! disk faster than [`ENTRIES_PER_SECOND`]; what was left out is counted in the next entry.

use std::fmt;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vm_watchdog::{VmClock, VmInstant};

/// How many entries of one kind a guest can cause per second, in the long run.
pub const ENTRIES_PER_SECOND: u32 = 20;
/// How many it can cause at once.
pub const ENTRIES_AT_ONCE: u32 = 100;

/// How entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line a person can follow.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Something that happens. The JSON form is the serialization, the text form the display.
pub trait TimelineEntry: Serialize + fmt::Display {
    /// Which budget pays for it; None if no guest can cause it at will.
    fn kind(&self) -> Option<Kind>;
}

/// The kinds of entries that a guest can cause, each with a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The guest drives its watchdog.
    Feeding,
    /// A watchdog fires, and what follows from it.
    Firing,
    /// Anything else.
    Remark,
}

/// Writes entries with the time on the VM's clock. Shared by all threads of the process.
pub struct Timeline<E> {
    clock: VmClock,
    format: Format,
    state: Mutex<State>,
    entries: PhantomData<fn(E)>,
}

struct State {
    out: Box<dyn Write + Send>,
    feeding: Budget,
    firing: Budget,
    remarks: Budget,
    suppressed: u64,
}

/// One line of the JSON form.
#[derive(Serialize)]
struct Line<'a, E> {
    #[serde(flatten)]
    entry: &'a E,
    vm_time_ns: u64,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed: u64,
}

impl<E: TimelineEntry> Timeline<E> {
    /// A timeline on this clock.
    pub fn new(clock: VmClock, format: Format, out: Box<dyn Write + Send>) -> Self {
        let budget = || Budget::new(Instant::now());
        let state = State { out, feeding: budget(), firing: budget(), remarks: budget(), suppressed: 0 };
        Self { clock, format, state: Mutex::new(state), entries: PhantomData }
    }

    /// Writes an entry, unless it is of a kind of which the guest has caused too many. A timeline that cannot be
    /// written does not stop the VM.
    pub fn record(&self, entry: E) {
        let vm_time = self.clock.now();
        let mut state = self.state();
        // The disk is the host's, and so is the time in which it may be filled: the VM's may stand still.
        let now = Instant::now();
        let in_budget = match entry.kind() {
            Some(Kind::Feeding) => state.feeding.take(now),
            Some(Kind::Firing) => state.firing.take(now),
            Some(Kind::Remark) => state.remarks.take(now),
            None => true,
        };
        if !in_budget {
            state.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut state.suppressed);
        let line = self.format.line(&entry, vm_time, suppressed);
        let _ = state.out.write_all(line.as_bytes()).and_then(|()| state.out.flush());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Format {
    fn line<E: TimelineEntry>(self, entry: &E, vm_time: VmInstant, suppressed: u64) -> String {
        let vm_time_ns = vm_time.as_nanos();
        let mut line = match self {
            Self::Text if suppressed > 0 => format!("{} {entry} ({suppressed} entries left out)", Stamp(vm_time_ns)),
            Self::Text => format!("{} {entry}", Stamp(vm_time_ns)),
            Self::Json => serde_json::to_string(&Line { entry, vm_time_ns, suppressed })
                .unwrap_or_else(|error| format!("{{\"event\":\"unwritable\",\"reason\":\"{error}\"}}")),
        };
        line.push('\n');
        line
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A token bucket: a burst, then a rate.
#[derive(Debug)]
struct Budget {
    /// When the bucket would be full again.
    full_at: Instant,
}

impl Budget {
    const COST: Duration = Duration::from_nanos(1_000_000_000 / ENTRIES_PER_SECOND as u64);
    const DEPTH: Duration = Duration::from_nanos(Self::COST.as_nanos() as u64 * ENTRIES_AT_ONCE as u64);

    fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + Self::COST;
        let in_budget = full_at.saturating_duration_since(now) <= Self::DEPTH;
        if in_budget {
            self.full_at = full_at;
        }
        in_budget
    }
}

/// A time since the start of the VM, for people.
struct Stamp(u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:12.6} s]", Duration::from_nanos(self.0).as_secs_f64())
    }
}

/// A duration in seconds, for people.
pub fn seconds(nanos: u64) -> String {
    format!("{:.3} s", Duration::from_nanos(nanos).as_secs_f64())
}

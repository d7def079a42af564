//! Writes entries, at a bounded rate.
//!
//! A guest can cause entries of some kinds at any rate. Each kind has a budget, so that a guest cannot fill the host's
//! disk faster than [`ENTRIES_PER_SECOND`]; the next entry says how many were suppressed.

use std::fmt;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vm_watchdog::{VmClock, VmInstant};

use crate::format::{Format, Stamp};

/// How many entries of one kind a guest can cause per second, in the long run.
pub const ENTRIES_PER_SECOND: u32 = 20;
/// How many it can cause at once.
pub const ENTRIES_AT_ONCE: u32 = 100;

/// Something that happened. The JSON form is the serialization, the text form the display.
pub trait TimelineEntry: Serialize + fmt::Display {
    /// The kind whose budget the entry takes from; `None` if a guest cannot cause the entry at will.
    fn kind(&self) -> Option<Kind>;
}

/// The kinds of entries that a guest can cause at any rate, each with a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The guest drives its watchdog.
    Feeding,
    /// A watchdog expires, or an action follows.
    Expiry,
    /// An action, where its rate is limited: a guest that lets its watchdog expire all the time hides none.
    Action,
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
    expiries: Budget,
    actions: Budget,
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
        let (feeding, expiries, actions, remarks) = (budget(), budget(), budget(), budget());
        let state = State { out, feeding, expiries, actions, remarks, suppressed: 0 };
        Self { clock, format, state: Mutex::new(state), entries: PhantomData }
    }

    /// Writes an entry, unless the budget of its kind is used up. An entry that cannot be written is lost: the VM
    /// continues.
    pub fn record(&self, entry: E) {
        let vm_time = self.clock.now();
        let mut state = self.state();
        // The budget protects the host's disk, so it counts the host's time: the VM's clock may be paused.
        let now = Instant::now();
        let in_budget = match entry.kind() {
            Some(Kind::Feeding) => state.feeding.take(now),
            Some(Kind::Expiry) => state.expiries.take(now),
            Some(Kind::Action) => state.actions.take(now),
            Some(Kind::Remark) => state.remarks.take(now),
            None => true,
        };
        if !in_budget {
            state.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut state.suppressed);
        let line = to_line(self.format, &entry, vm_time, suppressed);
        let _ = state.out.write_all(line.as_bytes()).and_then(|()| state.out.flush());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry as a line. `suppressed` is how many entries before it were left out.
pub fn to_line<E: TimelineEntry>(format: Format, entry: &E, vm_time: VmInstant, suppressed: u64) -> String {
    let vm_time_ns = vm_time.as_nanos();
    let mut line = match format {
        Format::Text if suppressed > 0 => format!("{} {entry} ({suppressed} entries left out)", Stamp(vm_time_ns)),
        Format::Text => format!("{} {entry}", Stamp(vm_time_ns)),
        Format::Json => serde_json::to_string(&Line { entry, vm_time_ns, suppressed })
            .unwrap_or_else(|error| format!("{{\"event\":\"unwritable\",\"reason\":\"{error}\"}}")),
    };
    line.push('\n');
    line
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

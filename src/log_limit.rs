//! Log lines, and no more of them than somebody will read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::delivery::Delivery;
use crate::{Event, HandlerError, VmInstant};

/// The least time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one line of each kind through a second of the VM's time, and says how many it held back.
///
/// The logger is the VMM's code, so no lock is held when it is called.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    events: Mutex<Gate>,
    failures: Mutex<Gate>,
    lines: Mutex<Gate>,
    readings: Mutex<Gate>,
}

impl LogLimit {
    pub fn event(&self, now: VmInstant, id: &str, delivery: &Delivery) {
        let Delivery { stage, action, deadline, attempt, .. } = delivery;
        let late = now.saturating_duration_since(*deadline);
        write(&self.events, now, |held| {
            log::warn!("watchdog {id}: {stage} at {deadline} ({late:?} ago), action {action}, attempt {attempt}{held}");
        });
    }

    pub fn failure(&self, event: &Event, error: &HandlerError) {
        let Event { id, stage, action, attempt, observed, .. } = event;
        write(&self.failures, *observed, |held| {
            log::error!("watchdog {id}: action {action} of {stage} failed at attempt {attempt}: {error}{held}");
        });
    }

    pub fn line_failure(&self, now: VmInstant, id: &str, high: bool, error: &HandlerError) {
        let level = if high { "raised" } else { "lowered" };
        write(&self.lines, now, |held| {
            log::error!("watchdog {id}: the interrupt line cannot be {level}: {error}{held}");
        });
    }

    pub fn run_delay_failure(&self, now: VmInstant, id: &str, error: &HandlerError) {
        write(&self.readings, now, |held| {
            log::error!("watchdog {id}: the run delay of the guest is not known: {error}{held}");
        });
    }
}

/// Writes a line, unless one was written just now. A logger or an error that panics loses its line and nothing else.
fn write(gate: &Mutex<Gate>, now: VmInstant, line: impl FnOnce(HeldBack)) {
    let passed = gate.lock().unwrap_or_else(PoisonError::into_inner).pass(now);
    if let Some(held) = passed {
        let _ = catch_unwind(AssertUnwindSafe(|| line(held)));
    }
}

#[derive(Debug, Default)]
struct Gate {
    opens: VmInstant,
    held_back: u64,
}

/// How many lines were held back, as the end of the line that is not.
struct HeldBack(u64);

impl Gate {
    fn pass(&mut self, now: VmInstant) -> Option<HeldBack> {
        if now < self.opens {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.opens = now + INTERVAL;
        Some(HeldBack(std::mem::take(&mut self.held_back)))
    }
}

impl std::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            held_back => write!(f, " ({held_back} lines like this held back)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_passes_and_the_rest_is_counted() {
        let mut gate = Gate::default();
        let at = |millis| VmInstant::ZERO + Duration::from_millis(millis);
        let passed = |gate: &mut Gate, millis| gate.pass(at(millis)).map(|held| held.to_string());
        assert_eq!(passed(&mut gate, 0).as_deref(), Some(""));
        assert_eq!(passed(&mut gate, 1), None);
        assert_eq!(passed(&mut gate, 999), None);
        assert_eq!(passed(&mut gate, 1000).as_deref(), Some(" (2 lines like this held back)"));
    }
}

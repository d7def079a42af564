//! Log lines, at most one of each kind a second.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vm_watchdog_devices::{MsiMessage, VmInstant};

use crate::core::Notice;
use crate::event::Event;
use crate::foreign;

/// The least time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// What there is to log.
///
/// The logger is the VMM's code and may be slow. What happens is therefore collected, and logged when the actions have
/// been performed, the timer is armed and no lock is held.
#[derive(Debug)]
pub(crate) enum Record {
    /// A stage has ended.
    Event(Event),
    /// The policy's rate withholds the action: until this instant, or for good.
    Withheld(Event, Option<VmInstant>),
    /// The handler failed.
    ActionFailed(Event, String),
    /// The interrupt line could not be set to this level.
    LineFailed(VmInstant, bool, String),
    /// The interrupt message could not be sent.
    MessageFailed(VmInstant, MsiMessage, String),
    /// The run delay could not be read.
    RunDelayFailed(VmInstant, String),
    /// The guest has fed a disarmed watchdog.
    Notice(VmInstant, Notice),
}

/// Lets one line of each kind through in a second of the VM's time, and says how many it held back. It takes no room before
/// the first line.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(OnceLock<Box<Gates>>);

#[derive(Debug, Default)]
struct Gates {
    events: Mutex<Gate>,
    withheld: Mutex<Gate>,
    failures: Mutex<Gate>,
    lines: Mutex<Gate>,
    messages: Mutex<Gate>,
    readings: Mutex<Gate>,
    notices: Mutex<Gate>,
}

impl LogLimit {
    /// Logs what the limit lets through, for the watchdog `id`.
    pub fn write(&self, id: &str, records: &[Record]) {
        for record in records {
            self.0.get_or_init(Box::default).write_one(id, record);
        }
    }
}

impl Gates {
    fn write_one(&self, id: &str, record: &Record) {
        match record {
            Record::Event(event) => {
                let Event { stage, action, deadline, attempt, observed, .. } = event;
                let late = event.lateness();
                write(&self.events, *observed, |held| {
                    log::warn!(
                        "watchdog {id}: {stage} at {deadline}, {late:?} late, action {action}, attempt {attempt}{held}"
                    );
                });
            }
            Record::Withheld(Event { stage, action, deadline, observed, .. }, until) => {
                write(&self.withheld, *observed, |held| match until {
                    Some(until) => {
                        log::warn!("watchdog {id}: {stage} at {deadline}, action {action} delayed until {until}{held}");
                    }
                    None => log::warn!("watchdog {id}: {stage} at {deadline}, action {action} suppressed{held}"),
                });
            }
            Record::ActionFailed(Event { stage, action, attempt, observed, .. }, error) => {
                write(&self.failures, *observed, |held| {
                    log::error!("watchdog {id}: action {action} of {stage} failed at attempt {attempt}: {error}{held}");
                });
            }
            Record::LineFailed(now, high, error) => {
                let level = if *high { "raise" } else { "lower" };
                write(&self.lines, *now, |held| {
                    log::error!("watchdog {id}: cannot {level} the interrupt line: {error}{held}");
                });
            }
            Record::MessageFailed(now, MsiMessage { address, data, .. }, error) => {
                write(&self.messages, *now, |held| {
                    log::error!(
                        "watchdog {id}: cannot send the interrupt message {data:#x} to {address:#x}: {error}{held}"
                    );
                });
            }
            Record::Notice(now, Notice::Unprotected) => {
                write(&self.notices, *now, |held| {
                    log::error!(
                        "watchdog {id}: the guest feeds it and believes in it, but a reset has disarmed it{held}"
                    );
                });
            }
            Record::Notice(now, Notice::Rearmed(timeout)) => {
                write(&self.notices, *now, |held| {
                    log::warn!(
                        "watchdog {id}: armed again with {timeout:?} for a guest that does not know of a reset{held}"
                    );
                });
            }
            Record::RunDelayFailed(now, error) => {
                write(&self.readings, *now, |held| {
                    log::error!("watchdog {id}: cannot read the run delay of the guest: {error}{held}");
                });
            }
        }
    }
}

/// Writes a line, unless one was written just now. A logger that panics loses its line and nothing else.
fn write(gate: &Mutex<Gate>, now: VmInstant, line: impl FnOnce(HeldBack)) {
    let passed = gate.lock().unwrap_or_else(PoisonError::into_inner).pass(now);
    if let Some(held) = passed {
        let _ = foreign::contain(|| line(held));
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

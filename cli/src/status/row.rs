//! The rows of the table: a row for each watchdog of a VM, and one for a VM without any.

use std::time::Duration;

use crate::status::ask::Trouble;
use crate::status::document::{ActionOutcome, ActionStatus, ProbeStatus, StatusV1, WatchdogStatus};
use crate::status::judgement::{Finding, Severity, is_failure, is_liveness, of_probe, of_watchdog};
use crate::status::targets::Target;

/// The columns.
pub const HEADER: [&str; 7] = ["NAME", "CONNECTED", "ARMED", "TIME LEFT", "HEARTBEAT", "LAST ACTION", "PROBES"];

/// A VM as the table shows it.
#[derive(Clone, Debug)]
pub struct Vm {
    pub target: Target,
    pub answer: Result<StatusV1, Trouble>,
    pub rows: Vec<Row>,
    pub findings: Vec<Finding>,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub cells: Cells,
}

#[derive(Clone, Debug)]
pub enum Cells {
    /// Those after the name.
    Values([Cell; 6]),
    /// A text in place of them.
    Message(Cell),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub severity: Severity,
}

impl Vm {
    pub fn new(target: Target, answer: Result<StatusV1, Trouble>) -> Self {
        let (rows, findings) = match &answer {
            Ok(status) => (rows(&target, status), findings(status)),
            Err(trouble) => {
                let text = trouble.to_string();
                let cells = Cells::Message(Cell { text: text.clone(), severity: Severity::Critical });
                let finding = Finding { severity: Severity::Critical, text, is_detail: false };
                (vec![Row { name: target.name.to_string(), cells }], vec![finding])
            }
        };
        Self { target, answer, rows, findings }
    }

    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or_default()
    }
}

fn findings(status: &StatusV1) -> Vec<Finding> {
    let several = status.watchdogs.len() > 1;
    let of_each = |watchdog: &WatchdogStatus| {
        let name = if several { format!("{}: ", watchdog.id) } else { String::new() };
        let named = move |finding: Finding| Finding { text: format!("{name}{}", finding.text), ..finding };
        of_watchdog(status, watchdog).into_iter().map(named)
    };
    status.watchdogs.iter().flat_map(of_each).chain(status.probes.iter().flat_map(of_probe)).collect()
}

fn rows(target: &Target, status: &StatusV1) -> Vec<Row> {
    let name = |watchdog: &WatchdogStatus| match status.watchdogs.len() {
        1 => target.name.to_string(),
        _ => format!("{}/{}", target.name, watchdog.id),
    };
    let of_watchdog = |watchdog| Row { name: name(watchdog), cells: Cells::Values(values(status, watchdog)) };
    if status.watchdogs.is_empty() {
        let none = [(); 4].map(|()| Cell::ok("-"));
        let [connected, armed, time_left, heartbeat] = none;
        let values = [connected, armed, time_left, heartbeat, last_action(status, None), probes(&status.probes)];
        return vec![Row { name: target.name.to_string(), cells: Cells::Values(values) }];
    }
    status.watchdogs.iter().map(of_watchdog).collect()
}

fn values(status: &StatusV1, watchdog: &WatchdogStatus) -> [Cell; 6] {
    let WatchdogStatus { connected, armed, unprotected, time_left_ms, last_heartbeat_ms, .. } = watchdog;
    let connected = match (*connected, status.qmp_connected) {
        (true, Some(false)) => Cell::critical("no QMP"),
        (true, _) if status.paused => Cell::ok("paused"),
        (true, _) => Cell::ok("yes"),
        (false, Some(true)) => Cell::critical("lost"),
        (false, _) => Cell::warning("no"),
    };
    let armed_cell = match (*unprotected, *armed) {
        (true, _) => Cell::critical("lost"),
        (false, true) => Cell::ok("yes"),
        (false, false) => Cell::warning("no"),
    };
    let time_left = match time_left_ms {
        Some(left) => Cell::ok(time_left(*left)),
        None if *armed => Cell::critical("timed out"),
        None => Cell::ok("-"),
    };
    let heartbeat = Cell::ok(last_heartbeat_ms.map_or_else(|| "never".to_owned(), |age| format!("{} ago", rough(age))));
    let last_action = last_action(status, watchdog.last_action.as_ref());
    [connected, armed_cell, time_left, heartbeat, last_action, probes(&status.probes)]
}

/// The last action of the watchdog, or of the liveness probe if that is more recent.
fn last_action(status: &StatusV1, of_watchdog: Option<&ActionStatus>) -> Cell {
    let of_probes = status.probes.iter().filter_map(|probe| probe.last_action.as_ref());
    let Some(last) = of_probes.chain(of_watchdog).min_by_key(|action| action.age_ms) else {
        return Cell::ok("-");
    };
    let ActionStatus { action, outcome, age_ms, .. } = last;
    let ago = rough(*age_ms);
    match outcome {
        ActionOutcome::Started => Cell::warning(format!("{action} under way")),
        ActionOutcome::Performed | ActionOutcome::Unknown => Cell::ok(format!("{action} {ago} ago")),
        ActionOutcome::Failed => Cell::critical(format!("failed {action} {ago} ago")),
        ActionOutcome::Delayed => Cell::warning(format!("delayed {action} {ago} ago")),
    }
}

/// The worst of the probes in a word: a VM that is ready is also alive.
fn probes(probes: &[ProbeStatus]) -> Cell {
    let has =
        |liveness, failure| probes.iter().any(|probe| is_liveness(probe) == liveness && is_failure(probe) == failure);
    if has(true, true) {
        Cell::critical("not alive")
    } else if has(false, true) {
        Cell::warning("not ready")
    } else if has(false, false) {
        Cell::ok("ready")
    } else {
        Cell::ok(if probes.is_empty() { "-" } else { "alive" })
    }
}

impl Cell {
    fn ok(text: impl Into<String>) -> Self {
        Self { text: text.into(), severity: Severity::Ok }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self { text: text.into(), severity: Severity::Warning }
    }

    fn critical(text: impl Into<String>) -> Self {
        Self { text: text.into(), severity: Severity::Critical }
    }
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// An age in one unit, rounded down: 42s, 12m, 5h, 3d.
fn rough(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / MINUTE),
        6000..172_800 => format!("{}h", seconds / HOUR),
        _ => format!("{}d", seconds / DAY),
    }
}

/// A remaining time in one or two units, rounded up to a second: 27s, 5m12s, 3h20m.
fn time_left(millis: u64) -> String {
    let seconds = millis.div_ceil(1000);
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m{:02}s", seconds / MINUTE, seconds % MINUTE),
        6000..172_800 => format!("{}h{:02}m", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_or_two_units() {
        for (seconds, age, left) in [
            (0, "0s", "0s"),
            (99, "99s", "99s"),
            (100, "1m", "1m40s"),
            (5999, "99m", "99m59s"),
            (6000, "1h", "1h40m"),
            (172_799, "47h", "47h59m"),
            (172_800, "2d", "2d"),
        ] {
            assert_eq!((rough(seconds * 1000).as_str(), time_left(seconds * 1000).as_str()), (age, left));
        }
        assert_eq!((rough(1999), time_left(1001)), ("1s".to_owned(), "2s".to_owned()));
        assert_eq!(rough(u64::MAX), "213503982334d");
        assert_eq!(time_left(u64::MAX), "213503982334d");
    }
}

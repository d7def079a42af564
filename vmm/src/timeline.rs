//! The entries of the timeline of a run.

use std::fmt;

use serde::Serialize;
use vm_watchdog_timeline::{GuestExpiry, Kind, LogLine, TimelineEntry};

/// The timeline of a run.
pub type Timeline = vm_watchdog_timeline::Timeline<Entry>;

/// Something that happened. The JSON form is the serialization; its field `event` is the name in kebab case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Entry {
    /// The VMM starts the guest for the first time.
    Boot {
        /// What is booted: `built-in` or the path of the kernel.
        guest: String,
        /// What runs it: `kvm` or `in-process`.
        runs_on: &'static str,
        /// Why it does not run on KVM.
        #[serde(skip_serializing_if = "Option::is_none")]
        because: Option<String>,
        /// Guest memory.
        memory_bytes: u64,
        /// Each watchdog, as its option spells it.
        watchdogs: Vec<String>,
    },
    /// The guest started a watchdog.
    Armed { id: String },
    /// The guest stopped a watchdog.
    Disarmed { id: String },
    /// The guest fed a watchdog.
    Heartbeat { id: String, heartbeats: u64, last_heartbeat_ns: Option<u64> },
    /// A stage of a watchdog has expired.
    Expiry {
        id: String,
        #[serde(flatten)]
        expiry: GuestExpiry,
    },
    /// The guest got a non-maskable interrupt.
    Nmi,
    /// The guest's power button was pressed.
    PowerButton,
    /// The guest and its clock are paused.
    Paused,
    /// The guest and its clock are resumed.
    Resumed,
    /// The VM was saved to a file.
    Saved { path: String },
    /// The VM was restored from a file, with its clock at the time at which it was saved.
    Restored { path: String },
    /// Guest memory was written to a file.
    Dump { path: String, bytes: u64 },
    /// The VMM could not do what a watchdog or the operator asked for.
    ActionFailed { action: String, reason: String },
    /// The machine was reset and boots again.
    Reset { cause: Cause, resets: u64 },
    /// A remark of the built-in guest.
    Guest { message: String },
    /// A log line of the watchdog library.
    Log(LogLine),
    /// The run ends.
    Exit { status: u8, reason: String },
}

/// The cause of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A watchdog's action.
    Watchdog,
    /// The guest itself.
    Guest,
}

impl From<LogLine> for Entry {
    fn from(line: LogLine) -> Self {
        Self::Log(line)
    }
}

impl TimelineEntry for Entry {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Armed { .. } | Self::Disarmed { .. } | Self::Heartbeat { .. } => Some(Kind::Feeding),
            Self::Expiry { .. } | Self::Nmi | Self::PowerButton | Self::Dump { .. } | Self::ActionFailed { .. } => {
                Some(Kind::Expiry)
            }
            Self::Guest { .. } | Self::Log(_) | Self::Reset { .. } => Some(Kind::Remark),
            Self::Boot { .. }
            | Self::Paused
            | Self::Resumed
            | Self::Saved { .. }
            | Self::Restored { .. }
            | Self::Exit { .. } => None,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot { guest, runs_on, because, memory_bytes, watchdogs } => {
                write!(f, "boot: {guest} guest, {runs_on}")?;
                if let Some(because) = because {
                    write!(f, " because {because}")?;
                }
                write!(f, "; {} MiB; {}", memory_bytes >> 20, watchdogs.join("; "))
            }
            Self::Armed { id } => write!(f, "{id}: armed"),
            Self::Disarmed { id } => write!(f, "{id}: disarmed by the guest"),
            Self::Heartbeat { id, heartbeats, .. } => write!(f, "{id}: heartbeat {heartbeats}"),
            Self::Expiry { id, expiry } => write!(f, "{id}: {expiry}"),
            Self::Nmi => f.write_str("NMI injected"),
            Self::PowerButton => f.write_str("power button pressed"),
            Self::Paused => f.write_str("paused; SIGUSR2 resumes"),
            Self::Resumed => f.write_str("resumed"),
            Self::Saved { path } => write!(f, "saved to {path}"),
            Self::Restored { path } => write!(f, "restored from {path}"),
            Self::Dump { path, bytes } => write!(f, "dumped {bytes} bytes of guest memory to {path}"),
            Self::ActionFailed { action, reason } => write!(f, "{action} failed: {reason}"),
            Self::Reset { cause: Cause::Watchdog, resets } => write!(f, "reset {resets}, by the watchdog"),
            Self::Reset { cause: Cause::Guest, resets } => write!(f, "reset {resets}, by the guest itself"),
            Self::Guest { message } => write!(f, "guest: {message}"),
            Self::Log(line) => write!(f, "{line}"),
            Self::Exit { status, reason } => write!(f, "exit {status}: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use vm_watchdog::{Action, Stage, VmClock};
    use vm_watchdog_timeline::{ENTRIES_AT_ONCE, ENTRIES_PER_SECOND, Expiry, Format};

    use super::*;

    /// What the timeline has written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn expiry() -> Entry {
        let expiry = Expiry {
            stage: Stage::Timeout,
            action: Action::Reset,
            attempt: 1,
            deadline_ns: 2_000_000_000,
            observed_ns: 2_000_100_000,
            lateness_ns: 100_000,
        };
        Entry::Expiry {
            id: "watchdog0".into(),
            expiry: GuestExpiry { expiry, heartbeats: 3, last_heartbeat_ns: Some(993_367_040) },
        }
    }

    #[test]
    fn json_is_one_object_a_line() {
        let (clock, time) = VmClock::manual();
        let written = Written::default();
        let timeline = Timeline::new(clock, Format::Json, Box::new(written.clone()));
        time.advance(Duration::from_nanos(2_000_200_000));
        timeline.record(expiry());
        let line: serde_json::Value = serde_json::from_str(&written.lines()[0]).unwrap();
        assert_eq!(
            line,
            serde_json::json!({
                "event": "expiry", "vm_time_ns": 2_000_200_000_u64, "id": "watchdog0", "stage": "timeout",
                "action": "reset", "attempt": 1, "deadline_ns": 2_000_000_000_u64, "observed_ns": 2_000_100_000_u64,
                "lateness_ns": 100_000, "heartbeats": 3, "last_heartbeat_ns": 993_367_040,
            })
        );
    }

    #[test]
    fn text_reads_as_a_sentence() {
        let (clock, time) = VmClock::manual();
        let written = Written::default();
        let timeline = Timeline::new(clock, Format::Text, Box::new(written.clone()));
        time.advance(Duration::from_millis(2_000));
        timeline.record(expiry());
        assert_eq!(
            written.lines(),
            [
                "[    2.000000 s] watchdog0: timeout 1.007 s after the last of 3 heartbeats (due at 2.000 s, 0.100 ms late): reset"
            ]
        );
    }

    #[test]
    fn a_guest_that_feeds_all_the_time_does_not_hide_a_timeout_and_does_not_flood() {
        let (clock, _time) = VmClock::manual();
        let written = Written::default();
        let started = Instant::now();
        let timeline = Timeline::new(clock, Format::Json, Box::new(written.clone()));
        for heartbeats in 0..100_000 {
            timeline.record(Entry::Heartbeat { id: "watchdog0".into(), heartbeats, last_heartbeat_ns: None });
        }
        timeline.record(expiry());
        let lines = written.lines();
        let limit = f64::from(ENTRIES_AT_ONCE + 1) + started.elapsed().as_secs_f64() * f64::from(ENTRIES_PER_SECOND);
        assert!(lines.len() as f64 <= limit, "{}", lines.len());
        assert!(lines.last().unwrap().contains("\"expiry\""));
        assert!(lines.last().unwrap().contains("\"suppressed\":"));
    }
}

//! What the server tells of a watchdog, and a way out for it that never makes a watchdog wait.

use std::fmt;
use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vm_watchdog::{Action, Event, Stage};

use super::connection::Standing;
use crate::timeline::{Kind, TimelineEntry, seconds};

/// The timeline of one watchdog.
pub type Timeline = crate::timeline::Timeline<Entry>;

/// How many lines may wait to be written. Further ones are dropped.
const LINES_WAITING: usize = 1024;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Something that happened to the watchdog `id`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub id: String,
    #[serde(flatten)]
    pub what: What,
}

/// What happened. The JSON form is the serialization; its field `event` is the name in kebab case.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The socket listens.
    Listening { socket: String, actions: &'static str },
    /// Metrics are served at this address and port.
    Metrics { address: String },
    /// A VMM has connected: the watchdog was powered on.
    Connected,
    /// The VMM has gone: the watchdog is disarmed.
    Disconnected { reason: Standing },
    /// A second VMM was refused.
    Refused,
    /// The guest has started its watchdog.
    Armed,
    /// The guest has stopped it, or a reset has.
    Disarmed,
    /// A watchdog fired.
    Fire(Fire),
    /// What it asked for was done.
    Performed { action: Action },
    /// What it asked for was not done.
    ActionFailed { action: Action, reason: String },
    /// The control socket of the VM is connected, or no longer.
    Control { socket: String, connected: bool, reason: Option<String> },
    /// The VM stands still, and so does the clock of its watchdogs.
    Paused,
    /// It goes on.
    Resumed,
    /// The VM reports an event.
    Vm { name: &'static str, reason: Option<String> },
    /// A saved state was found.
    Restored { wdt_timeout: bool, was_armed: bool },
    /// A log line of the watchdog library or of the server.
    Log { level: String, message: String },
    /// The socket is closed.
    Stopped,
}

/// A watchdog fired.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fire {
    pub stage: Stage,
    pub action: Action,
    pub attempt: u32,
    pub deadline_ns: u64,
    pub observed_ns: u64,
    pub lateness_ns: u64,
    pub heartbeats: u64,
    pub last_heartbeat_ns: Option<u64>,
}

impl Fire {
    pub fn new(event: &Event, heartbeats: u64) -> Self {
        Self {
            stage: event.stage,
            action: event.action,
            attempt: event.attempt,
            deadline_ns: event.deadline.as_nanos(),
            observed_ns: event.observed.as_nanos(),
            lateness_ns: u64::try_from(event.lateness().as_nanos()).unwrap_or(u64::MAX),
            heartbeats,
            last_heartbeat_ns: event.last_heartbeat.map(|at| at.as_nanos()),
        }
    }
}

impl TimelineEntry for Entry {
    fn kind(&self) -> Option<Kind> {
        match self.what {
            What::Armed | What::Disarmed => Some(Kind::Feeding),
            What::Fire(_) | What::Performed { .. } | What::ActionFailed { .. } => Some(Kind::Firing),
            What::Listening { .. } | What::Metrics { .. } | What::Restored { .. } | What::Stopped => None,
            What::Connected
            | What::Disconnected { .. }
            | What::Refused
            | What::Control { .. }
            | What::Paused
            | What::Resumed
            | What::Vm { .. }
            | What::Log { .. } => Some(Kind::Remark),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |reason: &Option<String>| reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        write!(f, "{}: ", self.id)?;
        match &self.what {
            What::Listening { socket, actions } => write!(f, "listening on {socket}, actions by {actions}"),
            What::Metrics { address } => write!(f, "metrics at http://{address}/metrics"),
            What::Connected => f.write_str("a VMM has connected"),
            What::Disconnected { reason } => write!(f, "{reason}"),
            What::Refused => f.write_str("a second VMM was refused"),
            What::Armed => f.write_str("armed"),
            What::Disarmed => f.write_str("disarmed"),
            What::Fire(fire) => write!(f, "{fire}"),
            What::Performed { action } => write!(f, "{action} done"),
            What::ActionFailed { action, reason } => write!(f, "{action} failed: {reason}"),
            What::Control { socket, connected: true, .. } => write!(f, "{socket} connected"),
            What::Control { socket, connected: false, reason } => {
                write!(f, "{socket} not connected{}", because(reason))
            }
            What::Paused => f.write_str("the VM is paused"),
            What::Resumed => f.write_str("the VM goes on"),
            What::Vm { name, reason } => write!(f, "the VM reports {name}{}", because(reason)),
            What::Restored { wdt_timeout, was_armed } => {
                f.write_str("saved state found")?;
                if *wdt_timeout {
                    f.write_str("; the last reset came from the watchdog")?;
                }
                if *was_armed {
                    f.write_str("; it was armed then, and protects nobody until a VM connects")?;
                }
                Ok(())
            }
            What::Log { level, message } => write!(f, "{level}: {message}"),
            What::Stopped => f.write_str("no longer listening"),
        }
    }
}

impl fmt::Display for Fire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, action, attempt, deadline_ns, observed_ns, lateness_ns, heartbeats, last_heartbeat_ns } =
            self;
        write!(f, "{stage}")?;
        if let Some(last) = last_heartbeat_ns {
            write!(f, " {} after the last of {heartbeats} heartbeats", seconds(observed_ns.saturating_sub(*last)))?;
        }
        let lateness = Duration::from_nanos(*lateness_ns).as_secs_f64() * 1e3;
        write!(f, " (due at {}, {lateness:.3} ms late): {action}", seconds(*deadline_ns))?;
        if *attempt > 1 { write!(f, " (attempt {attempt})") } else { Ok(()) }
    }
}

/// Hands lines to a thread that writes them to standard output, so that a reader who does not read stops nobody.
#[derive(Clone)]
pub struct Lines {
    waiting: SyncSender<Line>,
}

/// What the thread is told.
enum Line {
    Next(Vec<u8>),
    /// There are no more, and somebody waits for the end.
    Last(SyncSender<()>),
}

/// Starts to write.
pub fn open() -> io::Result<Lines> {
    let (waiting, lines) = sync_channel(LINES_WAITING);
    thread::Builder::new().name("events".into()).spawn(move || {
        for line in lines {
            match line {
                Line::Next(line) => {
                    let mut out = io::stdout().lock();
                    // Nobody is left to be told if standard output is gone.
                    let _ = out.write_all(&line).and_then(|()| out.flush());
                }
                Line::Last(done) => drop(done),
            }
        }
    })?;
    Ok(Lines { waiting })
}

impl Lines {
    /// Waits a moment for the last lines, once nothing records any more.
    pub fn finish(self) {
        let (done, is_done) = sync_channel(0);
        if self.waiting.try_send(Line::Last(done)).is_ok() {
            // Ends when the other end is dropped. A reader that does not read is not waited for.
            let _ = is_done.recv_timeout(LAST_LINES);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.waiting.try_send(Line::Next(line.to_vec())) {
            Ok(()) => Ok(line.len()),
            Err(TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TrySendError::Disconnected(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! The entry for a stage of a watchdog that has expired.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_watchdog::{Action, Event, Stage, VmInstant};

use crate::format::seconds;

/// An [`Event`] of the library, without the name of the watchdog. All times are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The stage that has expired.
    pub stage: Stage,
    /// The action that follows.
    pub action: Action,
    /// 1, and one more for each time that the action failed.
    pub attempt: u32,
    /// When it was due.
    pub deadline_ns: u64,
    /// When the host noticed.
    pub observed_ns: u64,
    /// The difference.
    pub lateness_ns: u64,
}

/// An expiry with the last heartbeat before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestExpiry {
    /// The expiry.
    #[serde(flatten)]
    pub expiry: Expiry,
    /// How many heartbeats the guest has sent.
    pub heartbeats: u64,
    /// When it sent the last one.
    pub last_heartbeat_ns: Option<u64>,
}

impl From<&Event> for Expiry {
    fn from(event: &Event) -> Self {
        Self {
            stage: event.stage,
            action: event.action,
            attempt: event.attempt,
            deadline_ns: event.deadline.as_nanos(),
            observed_ns: event.observed.as_nanos(),
            lateness_ns: u64::try_from(event.lateness().as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

impl GuestExpiry {
    /// The entry for `event` of a guest that has sent this many heartbeats.
    pub fn new(event: &Event, heartbeats: u64) -> Self {
        let last_heartbeat_ns = event.last_heartbeat.map(VmInstant::as_nanos);
        Self { expiry: event.into(), heartbeats, last_heartbeat_ns }
    }
}

impl fmt::Display for GuestExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expiry, heartbeats, last_heartbeat_ns } = self;
        let Expiry { stage, action, attempt, deadline_ns, observed_ns, lateness_ns } = expiry;
        write!(f, "{stage}")?;
        if let Some(last) = last_heartbeat_ns {
            write!(f, " {} after the last of {heartbeats} heartbeats", seconds(observed_ns.saturating_sub(*last)))?;
        }
        let lateness = Duration::from_nanos(*lateness_ns).as_secs_f64() * 1e3;
        write!(f, " (due at {}, {lateness:.3} ms late): {action}", seconds(*deadline_ns))?;
        if *attempt > 1 { write!(f, " (attempt {attempt})") } else { Ok(()) }
    }
}

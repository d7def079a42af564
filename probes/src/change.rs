//! The result of a probe, and how it changes.

use std::fmt;

use crate::probe::ProbeKind;

/// The result of a probe.
///
/// ```
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind, ProbeResult, Worker};
///
/// let probe = Probe::new(Handler::GuestAgentPing);
/// assert_eq!(Worker::new(ProbeKind::Liveness, &probe)?.result(), ProbeResult::Success);
/// assert_eq!(Worker::new(ProbeKind::Readiness, &probe)?.result(), ProbeResult::Failure);
/// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeResult {
    /// Alive, or ready.
    Success,
    /// Not alive, or not ready.
    Failure,
}

impl ProbeResult {
    /// `success` or `failure`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }

    pub(crate) fn initial(kind: ProbeKind) -> Self {
        match kind {
            ProbeKind::Liveness => Self::Success,
            ProbeKind::Readiness => Self::Failure,
        }
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an outcome led to. [`Attempt`](crate::Attempt) has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// Whether the outcome counts: the VM ran, unpaused and without a reset, during the whole attempt.
    pub counted: bool,
    /// The new result, if it has changed.
    pub change: Option<Change>,
}

/// A change of a probe's result. [`Worker`](crate::Worker) has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The new result.
    pub result: ProbeResult,
    /// Why it has changed.
    pub cause: Cause,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.result, self.cause)
    }
}

/// Why the result of a probe has changed. [`Change`] is where it is found.
///
/// ```
/// use vm_watchdog_probes::Cause;
///
/// assert_eq!(Cause::Successes { count: 1 }.to_string(), "1 success");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// As many successes in a row as `successThreshold`.
    Successes {
        /// How many.
        count: u32,
    },
    /// As many failures in a row as `failureThreshold`.
    Failures {
        /// How many.
        count: u32,
        /// The message of the last one.
        message: String,
    },
    /// The VM has started, and the worker starts over.
    VmStarted,
    /// The VM was reset, and the worker starts over.
    VmReset,
    /// The VM has stopped, and is not ready.
    VmStopped,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Successes { count: 1 } => f.write_str("1 success"),
            Self::Successes { count } => write!(f, "{count} successes in a row"),
            Self::Failures { count: 1, message } => write!(f, "1 failure: {message}"),
            Self::Failures { count, message } => write!(f, "{count} failures in a row, the last one: {message}"),
            Self::VmStarted => f.write_str("the VM has started"),
            Self::VmReset => f.write_str("the VM was reset"),
            Self::VmStopped => f.write_str("the VM has stopped"),
        }
    }
}

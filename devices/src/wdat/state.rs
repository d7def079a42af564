//! Saving and restoring the watchdog.

use core::time::Duration;

use super::{Countdown, Wdat};
use crate::{StateError, VmInstant};

/// Version 1 of the saved state of a [`Wdat`].
///
/// It holds durations, never instants, so it can be restored on any clock. The [configuration](super::WdatConfig) is not
/// part of it: the VMM creates the target device with the same configuration, whose unit RELOAD has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct WdatStateV1 {
    /// RELOAD, as the guest wrote it.
    pub reload: u32,
    /// Whether the watchdog runs: bit 0 of CONTROL.
    pub running: bool,
    /// Nanoseconds until the timeout. None if it does not run, or has timed out without a heartbeat since.
    pub remaining_ns: Option<u64>,
    /// Whether it has timed out since the guest last cleared that: bit 0 of STATUS.
    pub timed_out: bool,
    /// Nanoseconds since a timeout that is not yet polled.
    pub timeout_age_ns: Option<u64>,
}

impl Wdat {
    pub(super) fn to_state(&self) -> WdatStateV1 {
        // Exhaustive: a new field does not compile until it is handled here.
        let Self { config: _, reload, countdown, timed_out, expired, latest } = *self;
        let nanos = |from: VmInstant, to: VmInstant| to.as_nanos().saturating_sub(from.as_nanos());
        let remaining_ns = match countdown {
            Countdown::Running { deadline } => Some(nanos(latest, deadline)),
            Countdown::Stopped | Countdown::Expired => None,
        };
        WdatStateV1 {
            reload,
            running: countdown != Countdown::Stopped,
            remaining_ns,
            timed_out,
            timeout_age_ns: expired.map(|instant| nanos(instant, latest)),
        }
    }

    pub(super) fn with_state(&self, state: &WdatStateV1, now: VmInstant) -> Result<Self, StateError> {
        let WdatStateV1 { reload, running, remaining_ns, timed_out, timeout_age_ns } = *state;
        let countdown = match (running, remaining_ns) {
            (false, None) => Countdown::Stopped,
            (true, None) => Countdown::Expired,
            (running, Some(remaining)) => {
                let period = self.config.period;
                let most = period.as_duration() * period.max_count();
                let is_possible = remaining > 0 && Duration::from_nanos(remaining) <= most;
                StateError::unless(is_possible, "remaining_ns", remaining, "1 to the longest countdown")?;
                StateError::unless(running, "running", running, "true while time remains")?;
                Countdown::Running { deadline: now + Duration::from_nanos(remaining) }
            }
        };
        let expired = timeout_age_ns.map(|age| now - Duration::from_nanos(age));
        Ok(Self { config: self.config, reload, countdown, timed_out, expired, latest: now })
    }
}

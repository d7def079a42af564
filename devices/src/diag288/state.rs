//! Saving and restoring the watchdog.

use core::time::Duration;

use super::{CpCommand, Diag288, Timer};
use crate::{StateError, VmInstant};

/// Version 1 of the saved state of a [`Diag288`].
///
/// It holds durations, never instants, so it can be restored on any clock. [`AfterTimeout`](crate::AfterTimeout) is not
/// part of it: the host that restores the state sets it from its own policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Diag288StateV1 {
    /// Nanoseconds until the timeout, if the watchdog runs.
    pub remaining_ns: Option<u64>,
    /// Whether it has timed out and the guest has neither restarted nor cancelled it since.
    pub timed_out: bool,
    /// Nanoseconds since a timeout that is not yet polled.
    pub timeout_age_ns: Option<u64>,
    /// With the z/VM flavour: the guest's command for the timeout.
    pub command: Option<CpCommand>,
    /// The guest's command for the last timeout.
    pub timeout_command: Option<CpCommand>,
    /// Whether it has timed out since the guest last armed it, in this boot or the one before. Older files lack it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub has_timed_out: bool,
}

impl Diag288 {
    pub(super) fn to_state(&self) -> Diag288StateV1 {
        // Exhaustive: a new field does not compile until it is handled here.
        let Self { flavour: _, after_timeout: _, timer, command, expired, expired_command, has_timed_out, latest } =
            *self;
        let nanos = |from: VmInstant, to: VmInstant| to.as_nanos().saturating_sub(from.as_nanos());
        let (remaining_ns, timed_out) = match timer {
            Timer::Stopped => (None, false),
            Timer::Running { deadline } => (Some(nanos(latest, deadline)), false),
            Timer::Expired => (None, true),
        };
        Diag288StateV1 {
            remaining_ns,
            timed_out,
            timeout_age_ns: expired.map(|instant| nanos(instant, latest)),
            command,
            timeout_command: expired_command,
            has_timed_out,
        }
    }

    pub(super) fn with_state(&self, state: &Diag288StateV1, now: VmInstant) -> Result<Self, StateError> {
        let Diag288StateV1 { remaining_ns, timed_out, timeout_age_ns, command, timeout_command, has_timed_out } =
            *state;
        let timer = match (remaining_ns, timed_out) {
            (None, false) => Timer::Stopped,
            (None, true) => Timer::Expired,
            (Some(remaining), timed_out) => {
                StateError::unless(remaining > 0, "remaining_ns", remaining, "at least 1")?;
                StateError::unless(!timed_out, "timed_out", timed_out, "false while time remains")?;
                Timer::Running { deadline: now + Duration::from_nanos(remaining) }
            }
        };
        let expired = timeout_age_ns.map(|age| now - Duration::from_nanos(age));
        // A command exists exactly while a watchdog of the z/VM flavour runs.
        let with_command = remaining_ns.is_some() && self.takes_commands();
        StateError::unless(
            command.is_some() == with_command,
            "command",
            command.is_some(),
            if with_command { "a command while time remains" } else { "none here" },
        )?;
        // With the z/VM flavour every timeout has a command, which stays until the reset.
        let possible = if self.takes_commands() {
            timeout_command.is_some() || !timed_out && timeout_age_ns.is_none()
        } else {
            timeout_command.is_none()
        };
        StateError::unless(
            possible,
            "timeout_command",
            timeout_command.is_some(),
            if self.takes_commands() { "a command after a timeout" } else { "none here" },
        )?;
        let expired_command = timeout_command;
        Ok(Self { timer, command, expired, expired_command, has_timed_out, latest: now, ..self.clone() })
    }
}

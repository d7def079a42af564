//! Saving the watchdog, and making it again from what was saved.

use core::time::Duration;

use super::{CpCommand, Diag288, Timer};
use crate::{StateError, VmInstant};

/// Version 1 of the saved state of a [`Diag288`].
///
/// It holds times that remain or have passed, never instants, so it can be restored on any clock. What the timeout leads
/// to is not part of it: that follows from the policy of whoever restores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Diag288StateV1 {
    /// Nanoseconds until the timeout, if the watchdog runs.
    pub remaining_ns: Option<u64>,
    /// Whether it has timed out and the guest has neither restarted nor cancelled it since.
    pub timed_out: bool,
    /// Nanoseconds since a timeout that nobody has polled.
    pub timeout_age_ns: Option<u64>,
    /// What the guest wants executed at the timeout, if it runs in the flavour of z/VM.
    pub command: Option<CpCommand>,
    /// What the guest wanted executed at the last timeout.
    pub timeout_command: Option<CpCommand>,
}

impl Diag288 {
    pub(super) fn to_state(&self) -> Diag288StateV1 {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self { flavour: _, after_timeout: _, timer, command, expired, expired_command, latest } = *self;
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
        }
    }

    pub(super) fn with_state(&self, state: &Diag288StateV1, now: VmInstant) -> Result<Self, StateError> {
        let Diag288StateV1 { remaining_ns, timed_out, timeout_age_ns, command, timeout_command } = *state;
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
        // The guest of the one flavour has a command while the watchdog runs, the guest of the other never.
        let with_command = remaining_ns.is_some() && self.takes_commands();
        StateError::unless(
            command.is_some() == with_command,
            "command",
            command.is_some(),
            if with_command { "a command while time remains" } else { "none here" },
        )?;
        // Every timeout of a guest with commands has one, and it is kept until the reset.
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
        Ok(Self { timer, command, expired, expired_command, latest: now, ..self.clone() })
    }
}

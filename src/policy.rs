//! What each expiry of a watchdog means.

use std::time::Duration;

use crate::Action;

/// Which action follows which expiry.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::{Action, Policy};
///
/// // Warn the guest with an NMI, then ask it to shut down, and pull the plug if it is still there after 30 s.
/// let policy = Policy::new(Action::Shutdown)
///     .with_pretimeout(Action::InjectNmi)
///     .with_escalation(Duration::from_secs(30), Action::Poweroff);
/// assert_eq!(policy.timeout, Action::Shutdown);
/// assert_eq!(Policy::default(), Policy::new(Action::Reset));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Policy {
    /// When the first stage of a two-stage watchdog ends. Default none.
    pub pretimeout: Action,
    /// When the watchdog times out. Default reset.
    pub timeout: Action,
    /// What follows if the timeout's action did not help. Default nothing.
    pub escalation: Option<Escalation>,
}

/// The second thing to do about a timeout: after a grace period, or at once when the first cannot be done.
///
/// It is dropped when the platform resets, when the VMM [acknowledges](crate::Watchdog::acknowledge) the timeout, and,
/// after an action that leaves the guest running (pause, inject-nmi, dump, none), when the guest's next heartbeat
/// shows that it has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Escalation {
    /// How long to wait after the timeout's action has been performed, in the VM's time.
    pub grace: Duration,
    /// What to do then.
    pub action: Action,
}

impl Policy {
    /// `timeout` when the watchdog times out, and nothing else.
    pub const fn new(timeout: Action) -> Self {
        Self { pretimeout: Action::None, timeout, escalation: None }
    }

    /// The same policy with `action` when the first stage ends.
    pub const fn with_pretimeout(self, action: Action) -> Self {
        Self { pretimeout: action, ..self }
    }

    /// The same policy with `action` when the VM is still there `grace` after the timeout's action.
    pub const fn with_escalation(self, grace: Duration, action: Action) -> Self {
        Self { escalation: Some(Escalation { grace, action }), ..self }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Action::Reset)
    }
}

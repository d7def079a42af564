//! What each expiry of a watchdog means.

use std::time::Duration;

use crate::action::Action;

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
    /// Before the watchdog times out, if it has two stages. Default none.
    pub pretimeout: Action,
    /// How long before the timeout the pretimeout action is due, in the VM's time; never before the end of the first
    /// stage. Default (None): a quarter of the time from the last heartbeat to the timeout.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pretimeout_before: Option<Duration>,
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
#[non_exhaustive]
pub struct Escalation {
    /// How long to wait after the timeout's action has been performed, in the VM's time.
    pub grace: Duration,
    /// What to do then.
    pub action: Action,
}

impl Policy {
    /// `timeout` when the watchdog times out, and nothing else.
    pub const fn new(timeout: Action) -> Self {
        Self { pretimeout: Action::None, pretimeout_before: None, timeout, escalation: None }
    }

    /// The same policy with `action` before the timeout.
    ///
    /// Guests feed their watchdog at half of its timeout (systemd, the watchdog daemon), which is also where the first
    /// stage ends. An action at the end of the first stage would hit healthy guests on a busy host, so it has a
    /// [margin of its own](Self::with_pretimeout_before).
    pub const fn with_pretimeout(self, action: Action) -> Self {
        Self { pretimeout: action, ..self }
    }

    /// The same policy with the pretimeout action due `before` the timeout, in place of a quarter of the period.
    pub const fn with_pretimeout_before(self, before: Duration) -> Self {
        Self { pretimeout_before: Some(before), ..self }
    }

    /// The same policy with `action` when the VM is still there `grace` after the timeout's action.
    pub const fn with_escalation(self, grace: Duration, action: Action) -> Self {
        Self { escalation: Some(Escalation { grace, action }), ..self }
    }
}

impl Policy {
    /// The actions that a handler may be asked for, so that a VMM can refuse those that it cannot perform when it is
    /// configured. `none` is never asked for.
    ///
    /// ```
    /// use vm_watchdog::{Action, Policy};
    ///
    /// let policy = Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi);
    /// assert!(policy.actions().eq([Action::InjectNmi, Action::Reset]));
    /// ```
    pub fn actions(&self) -> impl Iterator<Item = Action> + use<> {
        let escalation = self.escalation.map(|escalation| escalation.action);
        let actions = [Some(self.pretimeout), Some(self.timeout), escalation].into_iter().flatten();
        actions.filter(|action| *action != Action::None)
    }

    /// How long before the timeout of a period of this length the pretimeout action is due.
    pub(crate) fn pretimeout_margin(&self, period: Duration) -> Duration {
        self.pretimeout_before.unwrap_or(period / 4)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Action::Reset)
    }
}

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
    /// How often actions may be performed. Default: at any rate.
    #[cfg_attr(feature = "serde", serde(default))]
    pub action_rate: Option<ActionRate>,
}

/// How often the actions of a watchdog may be performed: `burst` of them at once, and one in each `interval` in the long
/// run, in the VM's time.
///
/// A guest that runs on after an action can arm its watchdog for a tick and let it expire again, a thousand times a second.
/// Where an action costs the host something (a dump, a command), a rate bounds that cost:
///
/// - The action of a timeout beyond the rate is delayed until the rate permits it, at most for `interval`. The handler is
///   [told](crate::ActionHandler::delayed). A heartbeat does not drop it, as it does not drop any timeout that the handler
///   has not been called with. Timeouts that come until then are covered by it. [`reset`](crate::Watchdog::reset)
///   and [`acknowledge`](crate::Watchdog::acknowledge) drop it.
/// - The action of a pretimeout beyond the rate is [suppressed](crate::ActionHandler::suppressed), because it is of no use
///   later. The last action of a burst is kept for a timeout, so a pretimeout never delays one, and a burst of 1 has no
///   pretimeout action.
/// - Retries of a failed action are not counted: their pauses grow to 10 s. An escalation is neither counted nor delayed:
///   there is at most one for each timeout, and its grace begins when the timeout's action has been performed.
/// - `none` costs nothing: a watchdog with this action reports every expiry.
///
/// A reset of the device and a new connection of a guest change nothing about what is spent, and a restored watchdog has
/// what is left in its saved state or in itself, whichever is less.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::{Action, ActionRate, Policy};
///
/// let policy = Policy::new(Action::Dump).with_action_rate(Duration::from_secs(10), 3);
/// assert_eq!(policy.action_rate, Some(ActionRate::new(Duration::from_secs(10), 3)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct ActionRate {
    /// The time in which one action may be performed. Zero: there is no limit.
    pub interval: Duration,
    /// How many may be performed at once, at least 1 (0 counts as 1).
    pub burst: u32,
}

impl ActionRate {
    /// `burst` actions at once, and one in each `interval` in the long run.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }
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
        Self { pretimeout: Action::None, pretimeout_before: None, timeout, escalation: None, action_rate: None }
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

    /// The same policy with at most `burst` actions at once, and one in each `interval` in the long run. See [`ActionRate`].
    pub const fn with_action_rate(self, interval: Duration, burst: u32) -> Self {
        Self { action_rate: Some(ActionRate::new(interval, burst)), ..self }
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

    /// The rate, unless it is no limit.
    pub(crate) fn limit(&self) -> Option<ActionRate> {
        self.action_rate.filter(|rate| !rate.interval.is_zero())
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Action::Reset)
    }
}

//! The saved state of a watchdog: versioned, plain data.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::action::Action;
use crate::event::Stage;
use crate::policy::{ActionRate, Escalation, Policy};

/// The saved state of a [`Watchdog`](crate::Watchdog): its device, its policy, and how far the latter has come.
///
/// It holds times that remain or have passed, never instants of a clock. The policy is part of it, for
/// [`restore_with_policy`](crate::Watchdog::restore_with_policy). A VMM names the state of a device by the device's module,
/// such as [`I6300esbState`](crate::i6300esb::I6300esbState). With the feature `serde` it can be written in any format; a
/// file of an unknown version is refused by its first field.
///
/// ```
/// # use vm_watchdog::{Event, VmClock, Watchdog, i6300esb::I6300esb};
/// # let old = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// old.clock().pause();
/// let state = old.save();
///
/// // In another process, perhaps on another host:
/// let clock = VmClock::monotonic_from(state.vm_time());
/// let new = Watchdog::builder("wd", I6300esb::new(Default::default())).clock(clock).build(|_: &Event| Ok(()))?;
/// new.restore(&state)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchdogState<D> {
    /// Version 1.
    V1(WatchdogStateV1<D>),
}

impl<D> WatchdogState<D> {
    /// The VM's time when it was saved, for [`VmClock::monotonic_from`](crate::VmClock::monotonic_from).
    pub fn vm_time(&self) -> VmInstant {
        let Self::V1(state) = self;
        VmInstant::from_nanos(state.vm_time_ns)
    }

    /// The policy of the watchdog that was saved.
    pub fn policy(&self) -> Policy {
        let Self::V1(state) = self;
        state.policy.into()
    }

    /// Whether a timeout or an escalation is still to be delivered.
    pub fn is_pending(&self) -> bool {
        let Self::V1(WatchdogStateV1 { timeout, escalation, grace_remaining_ns, .. }) = self;
        timeout.is_some() || escalation.is_some() || grace_remaining_ns.is_some()
    }

    /// The same device, with nothing to deliver: for a process that takes over a device whose actions are not its own.
    pub fn without_pending(self) -> Self {
        let Self::V1(state) = self;
        Self::V1(WatchdogStateV1 {
            pretimeout: None,
            timeout: None,
            grace_remaining_ns: None,
            escalation: None,
            failures: 0,
            pretimeout_in_ns: None,
            ..state
        })
    }
}

/// Version 1 of [`WatchdogState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct WatchdogStateV1<D> {
    pub(crate) version: Version1,
    /// The VM's time when it was saved.
    pub vm_time_ns: u64,
    /// Which action follows which expiry.
    pub policy: PolicyV1,
    /// A pretimeout that the handler has not performed yet.
    pub pretimeout: Option<DeliveryStateV1>,
    /// A timeout that the handler has not performed yet.
    ///
    /// Files written before the field `escalation` existed hold an escalation here too.
    pub timeout: Option<DeliveryStateV1>,
    /// In files written before the field `escalation` existed: nanoseconds until the escalation, negative if it is
    /// overdue. No longer written.
    #[cfg_attr(feature = "serde", serde(default))]
    pub grace_remaining_ns: Option<i64>,
    /// An escalation that is to come, or that the handler has not performed yet.
    #[cfg_attr(feature = "serde", serde(default))]
    pub escalation: Option<DeliveryStateV1>,
    /// Calls for timeouts since the last heartbeat that failed in a row.
    #[cfg_attr(feature = "serde", serde(default))]
    pub failures: u32,
    /// How many actions count towards the burst of the policy's rate.
    #[cfg_attr(feature = "serde", serde(default))]
    pub actions_spent: u32,
    /// Nanoseconds until one fewer does; 0 if none does.
    #[cfg_attr(feature = "serde", serde(default))]
    pub action_refill_in_ns: u64,
    /// Nanoseconds until the pretimeout action, if the first stage is over.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pretimeout_in_ns: Option<u64>,
    /// Nanoseconds since the guest last started or fed the watchdog, or the watchdog timed out. None: not known.
    #[cfg_attr(feature = "serde", serde(default))]
    pub period_age_ns: Option<u64>,
    /// Nanoseconds of steal time that the guest was compensated for in that period.
    #[cfg_attr(feature = "serde", serde(default))]
    pub compensated_in_period_ns: u64,
    /// The level that the interrupt line was set to. None: the one that the device asserts.
    #[cfg_attr(feature = "serde", serde(default))]
    pub line_level: Option<bool>,
    /// The device.
    pub device: D,
}

/// The version of a [`WatchdogStateV1`]: 1 in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version1;

/// An event on its way to the handler, in a [`WatchdogStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct DeliveryStateV1 {
    /// What happened.
    pub stage: StageV1,
    /// What the policy, or the guest, asks for.
    pub action: ActionV1,
    /// Nanoseconds since it happened; 0 if it is to come.
    pub age_ns: u64,
    /// Nanoseconds until the handler is called.
    pub due_in_ns: u64,
    /// 1 before the first call, one more each time the handler failed.
    pub attempt: u32,
    /// Whether the guest chose the action.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_requested: bool,
    /// Whether the guest has fed the watchdog since.
    #[cfg_attr(feature = "serde", serde(default))]
    pub has_recovered: bool,
    /// For an escalation: whether a heartbeat ends it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ends_with_heartbeat: bool,
    /// For a timeout: whether the policy's rate delays its action.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_delayed: bool,
}

/// A [`Policy`] in a [`WatchdogStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct PolicyV1 {
    /// The pretimeout action.
    pub pretimeout: ActionV1,
    /// How long before the timeout it is due.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pretimeout_before: Option<Duration>,
    /// The action at the timeout.
    pub timeout: ActionV1,
    /// What follows.
    pub escalation: Option<EscalationV1>,
    /// How often actions may be performed.
    #[cfg_attr(feature = "serde", serde(default))]
    pub action_rate: Option<ActionRateV1>,
}

/// An [`ActionRate`] in a [`WatchdogStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct ActionRateV1 {
    /// The time in which one action may be performed, in the VM's time.
    pub interval: Duration,
    /// How many may be performed at once.
    pub burst: u32,
}

/// An [`Escalation`] in a [`WatchdogStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct EscalationV1 {
    /// How long after the timeout's action, in the VM's time.
    pub grace: Duration,
    /// The action.
    pub action: ActionV1,
}

/// Gives a V1 enum the variants of one that may grow, and both conversions.
macro_rules! v1_of {
    ($(#[$documentation:meta])* $name:ident of $current:ident { $($variant:ident),* $(,)? }) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
        #[allow(missing_docs, reason = "each variant is documented where it is defined")]
        pub enum $name {
            $($variant),*
        }

        impl From<$current> for $name {
            fn from(current: $current) -> Self {
                match current {
                    $($current::$variant => Self::$variant),*
                }
            }
        }

        impl From<$name> for $current {
            fn from(saved: $name) -> Self {
                match saved {
                    $($name::$variant => Self::$variant),*
                }
            }
        }
    };
}

v1_of! {
    /// An [`Action`] in a [`WatchdogStateV1`].
    ActionV1 of Action { Reset, Shutdown, Poweroff, Pause, InjectNmi, Dump, None, Debug }
}

v1_of! {
    /// A [`Stage`] in a [`WatchdogStateV1`].
    StageV1 of Stage { Pretimeout, Timeout, Escalation }
}

impl From<Policy> for PolicyV1 {
    fn from(policy: Policy) -> Self {
        let Policy { pretimeout, pretimeout_before, timeout, escalation, action_rate } = policy;
        let action_rate = action_rate.map(|ActionRate { interval, burst }| ActionRateV1 { interval, burst });
        let escalation = escalation.map(|Escalation { grace, action }| EscalationV1 { grace, action: action.into() });
        Self { pretimeout: pretimeout.into(), pretimeout_before, timeout: timeout.into(), escalation, action_rate }
    }
}

impl From<PolicyV1> for Policy {
    fn from(saved: PolicyV1) -> Self {
        let PolicyV1 { pretimeout, pretimeout_before, timeout, escalation, action_rate } = saved;
        let action_rate = action_rate.map(|ActionRateV1 { interval, burst }| ActionRate { interval, burst });
        let escalation = escalation.map(|EscalationV1 { grace, action }| Escalation { grace, action: action.into() });
        Self { pretimeout: pretimeout.into(), pretimeout_before, timeout: timeout.into(), escalation, action_rate }
    }
}

/// The state of the latest version, without a field that names the variant: each version has its number in its first
/// field.
#[cfg(feature = "serde")]
mod serialized {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
    use vm_watchdog_devices::StateError;

    use crate::state::{Version1, WatchdogState, WatchdogStateV1};

    impl<D: Serialize> Serialize for WatchdogState<D> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self::V1(state) = self;
            state.serialize(serializer)
        }
    }

    impl<'de, D: Deserialize<'de>> Deserialize<'de> for WatchdogState<D> {
        fn deserialize<R: Deserializer<'de>>(deserializer: R) -> Result<Self, R::Error> {
            WatchdogStateV1::deserialize(deserializer).map(Self::V1)
        }
    }

    impl Serialize for Version1 {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_u32(1)
        }
    }

    /// Refuses another version before the fields that it does not know.
    impl<'de> Deserialize<'de> for Version1 {
        fn deserialize<R: Deserializer<'de>>(deserializer: R) -> Result<Self, R::Error> {
            let version = u32::deserialize(deserializer)?;
            let check = StateError::unless(version == 1, "version", version, "1");
            check.map(|()| Self).map_err(de::Error::custom)
        }
    }
}

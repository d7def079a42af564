//! Saving a watchdog with its policy's position, and restoring it, here or in another process.

use std::time::Duration;

use vm_watchdog_devices::{Model, StateError};

use crate::delivery::pause_before;
use crate::{Action, Policy, Stage, Watchdog};

/// Version 1 of the saved state of a [`Watchdog`]: its device, its policy, and how far the latter has come.
///
/// It holds times that remain or have passed, never instants of a clock. The policy is part of it, so that a VM
/// that moves keeps the action it was started with; change it here to give it another one. With the feature
/// `serde` it can be written in any format; a file of another version is refused by its first field.
///
/// ```
/// # use vm_watchdog::{Event, VmClock, Watchdog, VmInstant, i6300esb::I6300esb};
/// # let old = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// old.clock().pause();
/// let state = old.save();
///
/// // In another process, perhaps on another host:
/// let clock = VmClock::monotonic_from(VmInstant::from_nanos(state.vm_time_ns));
/// let new = Watchdog::builder("wd", I6300esb::new(Default::default())).clock(clock).build(|_: &Event| Ok(()))?;
/// new.restore(&state)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct WatchdogStateV1<D> {
    /// 1.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "version_1"))]
    pub version: u32,
    /// The VM's time when it was saved, for [`VmClock::monotonic_from`](crate::VmClock::monotonic_from).
    pub vm_time_ns: u64,
    /// Which action follows which expiry.
    pub policy: Policy,
    /// A pretimeout that the handler has not performed yet.
    pub pretimeout: Option<DeliveryStateV1>,
    /// A timeout or its escalation that the handler has not performed yet.
    pub timeout: Option<DeliveryStateV1>,
    /// Nanoseconds until the escalation, if one is to come; negative if it is overdue.
    pub grace_remaining_ns: Option<i64>,
    /// The device.
    pub device: D,
}

/// An event on its way to the handler, in a [`WatchdogStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct DeliveryStateV1 {
    /// What happened.
    pub stage: Stage,
    /// What the policy asks for.
    pub action: Action,
    /// Nanoseconds since it happened.
    pub age_ns: u64,
    /// Nanoseconds until the handler is called, again if it has failed before.
    pub due_in_ns: u64,
    /// 1 before the first call, one more each time the handler failed.
    pub attempt: u32,
}

const ACCEPTED_DUE_IN: &str = "0 before the first call, and then at most the pause after the failures so far";

impl DeliveryStateV1 {
    /// Refuses what no slot of this name can hold: another stage, or a wait that a failing handler does not explain.
    fn validate(&self, fields: [&'static str; 3], is_of_slot: bool, accepted: &'static str) -> Result<(), StateError> {
        let [stage, attempt, due_in] = fields;
        StateError::unless(is_of_slot, stage, self.stage as u8, accepted)?;
        StateError::unless(self.attempt > 0, attempt, self.attempt, "at least 1")?;
        let comes_in_time = Duration::from_nanos(self.due_in_ns) <= pause_before(self.attempt);
        StateError::unless(comes_in_time, due_in, self.due_in_ns, ACCEPTED_DUE_IN)
    }
}

impl<M: Model + Send + 'static> Watchdog<M> {
    /// The whole state. [Pause](crate::VmClock::pause) the VM first, or it is out of date when you get it.
    ///
    /// An action whose handler is being called counts as performed.
    pub fn save(&self) -> WatchdogStateV1<M::State> {
        self.with_core(|core, now| {
            let position = core.deliveries.save(now.vm);
            WatchdogStateV1 {
                version: 1,
                vm_time_ns: now.vm.as_nanos(),
                policy: position.policy,
                pretimeout: position.pretimeout,
                timeout: position.timeout,
                grace_remaining_ns: position.grace_remaining_ns,
                device: core.model.save(now.watchdog),
            }
        })
    }

    /// Puts the watchdog into a saved state; its id, clock, handler and line stay.
    ///
    /// The interrupt line is not called: the VM's interrupt controller has the level in its own saved state.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the first field that holds what no watchdog can be in. Then nothing has changed.
    pub fn restore(&self, state: &WatchdogStateV1<M::State>) -> Result<(), StateError> {
        let WatchdogStateV1 { version, vm_time_ns, policy, pretimeout, timeout, grace_remaining_ns, device } = state;
        StateError::unless(*version == 1, "version", *version, "1")?;
        let is_within_reach = i64::try_from(*vm_time_ns).is_ok();
        StateError::unless(is_within_reach, "vm_time_ns", *vm_time_ns, "at most 2^63 - 1, which is 292 years")?;
        let position = PolicyPosition {
            policy: *policy,
            pretimeout: *pretimeout,
            timeout: *timeout,
            grace_remaining_ns: *grace_remaining_ns,
        };
        position.validate()?;
        self.with_core(|core, now| {
            core.model = core.model.restored(device, now.watchdog)?;
            core.model.set_after_timeout(policy.timeout.after_timeout());
            core.deliveries.restore(&position, now.vm);
            core.line_level = Some(core.model.interrupt_level());
            core.allowance.restart(now.watchdog);
            Ok(())
        })?;
        self.rearm();
        Ok(())
    }
}

/// Where the policy stands: the part of the state that is not the device's.
pub(crate) struct PolicyPosition {
    pub policy: Policy,
    pub pretimeout: Option<DeliveryStateV1>,
    pub timeout: Option<DeliveryStateV1>,
    pub grace_remaining_ns: Option<i64>,
}

impl PolicyPosition {
    fn validate(&self) -> Result<(), StateError> {
        if let Some(delivery) = &self.pretimeout {
            let fields = ["pretimeout.stage", "pretimeout.attempt", "pretimeout.due_in_ns"];
            delivery.validate(fields, delivery.stage == Stage::Pretimeout, "pretimeout")?;
        }
        if let Some(delivery) = &self.timeout {
            let fields = ["timeout.stage", "timeout.attempt", "timeout.due_in_ns"];
            delivery.validate(fields, delivery.stage != Stage::Pretimeout, "timeout or escalation")?;
        }
        if let Some(remaining) = self.grace_remaining_ns {
            let left = Duration::from_nanos(u64::try_from(remaining).unwrap_or(0));
            let possible = self.policy.escalation.is_some_and(|escalation| left <= escalation.grace);
            let accepted = "at most the grace of policy.escalation";
            StateError::unless(possible, "grace_remaining_ns", remaining.unsigned_abs(), accepted)?;
        }
        Ok(())
    }
}

/// Refuses another version before the fields that it does not know.
#[cfg(feature = "serde")]
fn version_1<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = <u32 as serde::Deserialize>::deserialize(deserializer)?;
    let check = StateError::unless(version == 1, "version", version, "1");
    check.map(|()| version).map_err(serde::de::Error::custom)
}

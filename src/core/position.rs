//! Saving the core, and restoring what was saved.

use std::time::Duration;

use vm_watchdog_devices::{Model, StateError, VmInstant};

use super::Core;
use super::delivery::{Deliveries, Delivery, pause_before};
use super::line::Line;
use super::message::Messages;
use super::rate::Budget;
use crate::action::Action;
use crate::policy::{ActionRate, Policy};
use crate::state::{DeliveryStateV1, StageV1, Version1, WatchdogStateV1};

impl<M: Model> Core<M> {
    /// The whole state. A call of the handler in progress counts as performed.
    pub fn save(&mut self, vm_now: VmInstant) -> WatchdogStateV1<M::State> {
        self.note_expired(vm_now);
        // A deadline that no reading of the run delay has looked at has not come: a guest is not saved after its timeout
        // for time that may have been stolen from it.
        let now = self.model_time(vm_now);
        let Deliveries { policy, pretimeout, timeout, escalation, failures, budget, .. } =
            self.deliveries.settled(vm_now);
        let (actions_spent, action_refill_in) = budget.left_of(policy.limit(), vm_now);
        WatchdogStateV1 {
            version: Version1,
            vm_time_ns: vm_now.as_nanos(),
            policy: policy.into(),
            pretimeout: pretimeout.map(|delivery| delivery.save(vm_now)),
            timeout: timeout.map(|delivery| delivery.save(vm_now)),
            grace_remaining_ns: None,
            escalation: escalation.map(|delivery| delivery.save(vm_now)),
            failures,
            actions_spent,
            action_refill_in_ns: u64::try_from(action_refill_in.as_nanos()).unwrap_or(u64::MAX),
            pretimeout_in_ns: self.pretimeout_at.map(|at| nanos_between(now, at)),
            period_age_ns: Some(nanos_between(self.period_began, now)),
            compensated_in_period_ns: self.steal_time.as_ref().map_or(0, |steal_time| {
                u64::try_from(steal_time.compensated_in_period().as_nanos()).unwrap_or(u64::MAX)
            }),
            // A line whose level is not known is set again after a restore.
            line_level: self.line.map(|line| line.driven().unwrap_or(!self.model.interrupt_level())),
            device: self.model.save(now),
        }
    }

    /// Takes over a saved state, or changes nothing.
    pub fn restore(&mut self, state: &WatchdogStateV1<M::State>, vm_now: VmInstant) -> Result<(), StateError> {
        let within_reach = i64::try_from(state.vm_time_ns).is_ok();
        StateError::unless(within_reach, "vm_time_ns", state.vm_time_ns, "at most 2^63 - 1, which is 292 years")?;
        let deliveries = restored_deliveries(state, vm_now)?;
        let now = self.steal_time.as_ref().map_or(vm_now, |steal_time| steal_time.time(vm_now));
        let mut model = self.model.restored(&state.device, now)?;
        model.set_after_timeout(deliveries.policy.timeout.after_timeout());
        let left = model.timeout_at().map_or(0, |timeout_at| nanos_between(now, timeout_at));
        if let Some(pretimeout_in) = state.pretimeout_in_ns {
            StateError::unless(pretimeout_in <= left, "pretimeout_in_ns", pretimeout_in, "at most the time left")?;
        }

        self.deliveries = deliveries.in_place_of(&self.deliveries);
        self.pretimeout_at = state.pretimeout_in_ns.map(|nanos| now + Duration::from_nanos(nanos));
        self.period_began = now - Duration::from_nanos(state.period_age_ns.unwrap_or_default());
        if let Some(steal_time) = &mut self.steal_time {
            let compensated = Duration::from_nanos(state.compensated_in_period_ns);
            steal_time.restore(now, self.period_began, compensated);
        }
        self.has_started = true;
        self.unprotected = None;
        let level = state.line_level.unwrap_or(model.interrupt_level());
        self.line.iter_mut().for_each(|line: &mut Line| line.restore(level));
        self.messages.iter_mut().for_each(Messages::restore);
        self.model = model;
        Ok(())
    }
}

fn restored_deliveries<D>(state: &WatchdogStateV1<D>, now: VmInstant) -> Result<Deliveries, StateError> {
    let policy = Policy::from(state.policy);
    let mut deliveries = Deliveries::new(policy);
    let rate = policy.limit();
    deliveries.budget = restored_budget(state, rate, now)?;
    let grace = policy.escalation.map(|escalation| escalation.grace);
    if let Some(pretimeout) = &state.pretimeout {
        let fields = ["pretimeout.stage", "pretimeout.attempt", "pretimeout.due_in_ns"];
        let is_of_slot = pretimeout.stage == StageV1::Pretimeout;
        pretimeout.validate(fields, is_of_slot, "pretimeout", Duration::ZERO)?;
        deliveries.pretimeout = Some(Delivery::restored(pretimeout, now));
    }
    if let Some(timeout) = &state.timeout {
        let fields = ["timeout.stage", "timeout.attempt", "timeout.due_in_ns"];
        let is_of_slot = timeout.stage != StageV1::Pretimeout;
        let is_delayed = timeout.is_delayed && timeout.stage == StageV1::Timeout;
        let delay = rate.filter(|_| is_delayed).map_or(Duration::ZERO, |rate| rate.interval);
        timeout.validate(fields, is_of_slot, "timeout or escalation", delay)?;
        let delivery = Delivery::restored(timeout, now);
        match timeout.stage {
            StageV1::Escalation => deliveries.escalation = Some(of_an_older_file(delivery, policy)),
            _ => {
                deliveries.timeout = Some(delivery);
                deliveries.failures = timeout.attempt - 1;
            }
        }
    }
    if let Some(remaining) = state.grace_remaining_ns {
        let left = Duration::from_nanos(u64::try_from(remaining).unwrap_or(0));
        let is_possible = grace.is_some_and(|grace| left <= grace);
        let accepted = "at most the grace of policy.escalation";
        StateError::unless(is_possible, "grace_remaining_ns", remaining.unsigned_abs(), accepted)?;
        let distance = Duration::from_nanos(remaining.unsigned_abs());
        let due = if remaining < 0 { now - distance } else { now + distance };
        let action = policy.escalation.map_or(Action::None, |escalation| escalation.action);
        let delivery = Delivery::new(crate::event::Stage::Escalation, action, due);
        deliveries.escalation = Some(of_an_older_file(delivery, policy));
    }
    if let Some(escalation) = &state.escalation {
        let fields = ["escalation.stage", "escalation.attempt", "escalation.due_in_ns"];
        let is_of_slot = escalation.stage == StageV1::Escalation && grace.is_some();
        let accepted = "escalation, with a policy.escalation";
        escalation.validate(fields, is_of_slot, accepted, grace.unwrap_or_default())?;
        deliveries.escalation = Some(Delivery::restored(escalation, now));
    }
    deliveries.failures = deliveries.failures.max(state.failures);
    Ok(deliveries)
}

/// What was left of the rate of the saved policy.
fn restored_budget<D>(
    state: &WatchdogStateV1<D>,
    rate: Option<ActionRate>,
    now: VmInstant,
) -> Result<Budget, StateError> {
    let (spent, refill_in) = (state.actions_spent, state.action_refill_in_ns);
    let (most, interval) = rate.map_or((0, Duration::ZERO), |rate| (rate.burst.max(1), rate.interval));
    StateError::unless(spent <= most, "actions_spent", spent, "at most the burst of policy.action_rate")?;
    let refill = Duration::from_nanos(refill_in);
    let accepted = "at most the interval of policy.action_rate";
    StateError::unless(refill <= interval, "action_refill_in_ns", refill_in, accepted)?;
    Ok(Budget::restored(spent, refill, now))
}

/// An escalation of a file that does not say whether a heartbeat ends it.
fn of_an_older_file(escalation: Delivery, policy: Policy) -> Delivery {
    Delivery { ends_with_heartbeat: policy.timeout.leaves_guest_running(), ..escalation }
}

impl DeliveryStateV1 {
    /// Refuses what no slot of this name can hold: another stage, or a wait that a failing handler does not explain.
    fn validate(
        &self,
        [stage, attempt, due_in]: [&'static str; 3],
        is_of_slot: bool,
        accepted_stage: &'static str,
        longest_wait: Duration,
    ) -> Result<(), StateError> {
        const ACCEPTED_DUE_IN: &str =
            "at most the grace, the interval of the rate if delayed, or after failures the pause that follows them";
        StateError::unless(is_of_slot, stage, self.stage as u8, accepted_stage)?;
        StateError::unless(self.attempt > 0, attempt, self.attempt, "at least 1")?;
        let longest = if self.attempt == 1 { longest_wait } else { pause_before(self.attempt) };
        let comes_in_time = Duration::from_nanos(self.due_in_ns) <= longest;
        StateError::unless(comes_in_time, due_in, self.due_in_ns, ACCEPTED_DUE_IN)
    }
}

impl Delivery {
    fn save(self, now: VmInstant) -> DeliveryStateV1 {
        let Self {
            stage,
            action,
            is_requested,
            deadline,
            due,
            attempt,
            has_recovered,
            ends_with_heartbeat,
            is_delayed,
        } = self;
        DeliveryStateV1 {
            stage: stage.into(),
            action: action.into(),
            age_ns: nanos_between(deadline, now),
            due_in_ns: nanos_between(now, due),
            attempt,
            is_requested,
            has_recovered,
            ends_with_heartbeat,
            is_delayed,
        }
    }

    fn restored(state: &DeliveryStateV1, now: VmInstant) -> Self {
        let DeliveryStateV1 { stage, action, age_ns, due_in_ns, attempt, .. } = *state;
        let DeliveryStateV1 { is_requested, has_recovered, ends_with_heartbeat, is_delayed, .. } = *state;
        let due = now + Duration::from_nanos(due_in_ns);
        let is_delayed = is_delayed && stage == StageV1::Timeout && attempt == 1;
        let is_of_deadline = attempt == 1 && !is_delayed;
        let is_to_come = is_of_deadline && due_in_ns > 0;
        let deadline = if is_to_come { due } else { now - Duration::from_nanos(age_ns) };
        Self {
            stage: stage.into(),
            action: action.into(),
            is_requested,
            deadline,
            due: if is_of_deadline { deadline } else { due },
            attempt,
            has_recovered,
            ends_with_heartbeat,
            is_delayed,
        }
    }
}

/// Nanoseconds from `earlier` to `later`, 0 if they are the other way round.
fn nanos_between(earlier: VmInstant, later: VmInstant) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

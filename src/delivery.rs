//! Where the policy stands: which events are to be delivered, retried, escalated, and when.
//!
//! Pure bookkeeping of a bounded size: one slot for a pretimeout, one for a timeout or its escalation, and one instant
//! at which the grace period ends. It is told the VM's time and the outcome of each call; the locking is the watchdog's.

use std::time::Duration;

use vm_watchdog_devices::Expired;

use crate::state::{DeliveryStateV1, PolicyPosition};
use crate::{Action, MAX_ATTEMPTS, Policy, Stage, VmInstant};

/// The pause after the first failure of a handler; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between two calls of a handler that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deliveries {
    policy: Policy,
    pretimeout: Option<Delivery>,
    timeout: Option<Delivery>,
    grace_ends: Option<VmInstant>,
    /// What the handler is being called with, None again if that has been cancelled meanwhile.
    in_flight: Option<Delivery>,
    /// The guest has fed the watchdog since, and the action lets it go on.
    has_recovered: bool,
}

/// One event on its way to the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub stage: Stage,
    pub action: Action,
    /// When what it reports happened.
    pub deadline: VmInstant,
    /// When to call the handler: at once at first, later after a failure.
    pub due: VmInstant,
    pub attempt: u32,
}

impl Deliveries {
    pub fn new(policy: Policy) -> Self {
        Self { policy, pretimeout: None, timeout: None, grace_ends: None, in_flight: None, has_recovered: false }
    }

    /// When [`take_due`](Self::take_due) next has something to deliver.
    pub fn next_due(&self) -> Option<VmInstant> {
        let due = |slot: &Option<Delivery>| slot.map(|delivery| delivery.due);
        [due(&self.pretimeout), due(&self.timeout), self.grace_ends].into_iter().flatten().min()
    }

    /// Notes what the model found expired, and which action the guest wants in place of the policy's.
    pub fn expired(&mut self, expired: Expired, requested: Option<Action>) {
        if let Some(deadline) = expired.pretimeout {
            let delivery = Delivery::fresh(Stage::Pretimeout, self.policy.pretimeout, deadline);
            self.pretimeout.get_or_insert(delivery);
        }
        if let Some(deadline) = expired.timeout {
            // A warning that could not be delivered is overtaken by what it warned of.
            self.pretimeout = self.pretimeout.filter(|warning| warning.attempt == 1);
            let action = requested.unwrap_or(self.policy.timeout);
            let delivery = Delivery::fresh(Stage::Timeout, action, deadline);
            self.timeout.get_or_insert(delivery);
        }
    }

    /// The guest's heartbeat shows that it has recovered, if the last action, its own or the policy's, let it go on.
    pub fn heartbeat(&mut self, requested: Option<Action>) {
        if requested.unwrap_or(self.policy.timeout).leaves_guest_running() {
            self.grace_ends = None;
            self.timeout = self.timeout.filter(|delivery| delivery.stage != Stage::Escalation);
            self.has_recovered = true;
        }
    }

    /// Forgets everything pending.
    pub fn cancel(&mut self) {
        *self = Self::new(self.policy);
    }

    /// The VMM has dealt with what it was told: no retry, no escalation. What it was not told yet still comes.
    pub fn acknowledge(&mut self) {
        let untold = |slot: Option<Delivery>| {
            slot.filter(|delivery| delivery.attempt == 1 && delivery.stage != Stage::Escalation)
        };
        *self = Self { pretimeout: untold(self.pretimeout), timeout: untold(self.timeout), ..Self::new(self.policy) };
    }

    /// Takes the next delivery that is due, to be handed back with [`finished`](Self::finished) or
    /// [`put_back`](Self::put_back).
    pub fn take_due(&mut self, now: VmInstant) -> Option<Delivery> {
        let is_due = |delivery: &mut Delivery| delivery.due <= now;
        let waiting = self.pretimeout.take_if(is_due).or_else(|| self.timeout.take_if(is_due));
        self.has_recovered = false;
        self.in_flight = waiting.or_else(|| self.take_escalation(now));
        self.in_flight
    }

    fn take_escalation(&mut self, now: VmInstant) -> Option<Delivery> {
        let deadline = self.grace_ends.take_if(|grace_ends| *grace_ends <= now)?;
        let escalation = self.policy.escalation?;
        // Whatever is still being retried for the timeout is overtaken.
        self.timeout = None;
        Some(Delivery::fresh(Stage::Escalation, escalation.action, deadline))
    }

    /// Undoes [`take_due`](Self::take_due): the handler was not called.
    pub fn put_back(&mut self, delivery: Delivery) {
        if self.in_flight.take() == Some(delivery) {
            self.slot(delivery.stage).get_or_insert(delivery);
        }
    }

    /// Notes the outcome of the call.
    pub fn finished(&mut self, delivery: Delivery, performed: bool, now: VmInstant) {
        if self.in_flight != Some(delivery) {
            return;
        }
        self.in_flight = None;
        let escalation = self.policy.escalation.filter(|_| delivery.stage == Stage::Timeout);
        match escalation {
            Some(escalation) if performed && !self.has_recovered => {
                self.grace_ends.get_or_insert(now + escalation.grace);
            }
            _ if performed || self.is_overtaken(delivery.stage) => {}
            Some(_) if delivery.attempt >= MAX_ATTEMPTS => self.grace_ends = Some(now),
            _ => {
                let attempt = delivery.attempt.saturating_add(1);
                let retry = Delivery { due: now + pause_before(attempt), attempt, ..delivery };
                self.slot(delivery.stage).get_or_insert(retry);
            }
        }
    }

    /// Whether what failed need not be tried again.
    fn is_overtaken(&self, stage: Stage) -> bool {
        match stage {
            Stage::Pretimeout => self.timeout.is_some(),
            Stage::Timeout => false,
            Stage::Escalation => self.has_recovered,
        }
    }

    /// Everything at `now`. What the handler is being called with counts as performed.
    pub fn save(&self, now: VmInstant) -> PolicyPosition {
        let mut settled = *self;
        if let Some(delivery) = self.in_flight {
            settled.finished(delivery, true, now);
        }
        let Self { policy, pretimeout, timeout, grace_ends, in_flight: _, has_recovered: _ } = settled;
        PolicyPosition {
            policy,
            pretimeout: pretimeout.map(|delivery| delivery.save(now)),
            timeout: timeout.map(|delivery| delivery.save(now)),
            grace_remaining_ns: grace_ends.map(|ends| signed_nanos(ends, now)),
        }
    }

    /// Takes over a validated position.
    pub fn restore(&mut self, position: &PolicyPosition, now: VmInstant) {
        let PolicyPosition { policy, pretimeout, timeout, grace_remaining_ns } = position;
        let restored = |state: &DeliveryStateV1| Delivery::restored(state, now);
        *self = Self {
            policy: *policy,
            pretimeout: pretimeout.as_ref().map(restored),
            timeout: timeout.as_ref().map(restored),
            grace_ends: grace_remaining_ns.map(|nanos| after_signed_nanos(now, nanos)),
            in_flight: None,
            has_recovered: false,
        };
    }

    fn slot(&mut self, stage: Stage) -> &mut Option<Delivery> {
        match stage {
            Stage::Pretimeout => &mut self.pretimeout,
            Stage::Timeout | Stage::Escalation => &mut self.timeout,
        }
    }
}

impl Delivery {
    fn fresh(stage: Stage, action: Action, deadline: VmInstant) -> Self {
        Self { stage, action, deadline, due: deadline, attempt: 1 }
    }

    fn save(self, now: VmInstant) -> DeliveryStateV1 {
        let Self { stage, action, deadline, due, attempt } = self;
        let age_ns = remaining_nanos(now, deadline);
        DeliveryStateV1 { stage, action, age_ns, due_in_ns: remaining_nanos(due, now), attempt }
    }

    fn restored(state: &DeliveryStateV1, now: VmInstant) -> Self {
        let DeliveryStateV1 { stage, action, age_ns, due_in_ns, attempt } = *state;
        let deadline = now - Duration::from_nanos(age_ns);
        let due = now + Duration::from_nanos(due_in_ns);
        Self { stage, action, deadline, due, attempt }
    }
}

/// Nanoseconds from `earlier` to `later`.
fn remaining_nanos(later: VmInstant, earlier: VmInstant) -> u64 {
    later.as_nanos().saturating_sub(earlier.as_nanos())
}

/// Nanoseconds from `earlier` to `later`, negative where they are the other way round.
fn signed_nanos(later: VmInstant, earlier: VmInstant) -> i64 {
    let bounded = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
    bounded(remaining_nanos(later, earlier)) - bounded(remaining_nanos(earlier, later))
}

fn after_signed_nanos(now: VmInstant, nanos: i64) -> VmInstant {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 { now - distance } else { now + distance }
}

/// How long an attempt waits for its turn after the one before.
pub(crate) fn pause_before(attempt: u32) -> Duration {
    match attempt.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => (FIRST_RETRY * (1 << doublings.min(16))).min(LONGEST_RETRY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> VmInstant {
        VmInstant::ZERO + SECOND * seconds as u32
    }

    fn timeout(seconds: u64) -> Expired {
        Expired { timeout: Some(at(seconds)), ..Expired::default() }
    }

    fn pretimeout(seconds: u64) -> Expired {
        Expired { pretimeout: Some(at(seconds)), ..Expired::default() }
    }

    #[test]
    fn a_failing_handler_is_called_again_after_pauses_that_double() {
        let mut deliveries = Deliveries::new(Policy::default());
        deliveries.expired(timeout(1), None);
        let mut now = at(1);
        for pause in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let delivery = deliveries.take_due(now).expect("due");
            deliveries.finished(delivery, false, now);
            let next = now + Duration::from_millis(pause);
            assert_eq!(deliveries.next_due(), Some(next));
            assert_eq!(deliveries.take_due(next - Duration::from_nanos(1)), None);
            now = next;
        }
        let delivery = deliveries.take_due(now).expect("due");
        assert_eq!((delivery.attempt, delivery.deadline), (10, at(1)));
        deliveries.finished(delivery, true, now);
        assert_eq!(deliveries.next_due(), None);
    }

    #[test]
    fn escalation_follows_after_the_grace_period_and_once() {
        let mut deliveries =
            Deliveries::new(Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Poweroff));
        deliveries.expired(timeout(1), None);
        let delivery = deliveries.take_due(at(2)).expect("due");
        deliveries.finished(delivery, true, at(3));
        assert_eq!(deliveries.next_due(), Some(at(33)));
        assert_eq!(deliveries.take_due(at(32)), None);
        let escalated = deliveries.take_due(at(34)).expect("due");
        assert_eq!((escalated.stage, escalated.action), (Stage::Escalation, Action::Poweroff));
        assert_eq!(escalated.deadline, at(33));
        deliveries.finished(escalated, true, at(34));
        assert_eq!(deliveries.next_due(), None);
    }

    #[test]
    fn an_action_that_cannot_be_done_is_escalated_without_waiting_for_the_grace_period() {
        let mut deliveries = Deliveries::new(Policy::new(Action::Reset).with_escalation(SECOND * 30, Action::Poweroff));
        deliveries.expired(timeout(1), None);
        let mut now = at(1);
        for _ in 0..MAX_ATTEMPTS {
            now = now.max(deliveries.next_due().expect("a retry"));
            let delivery = deliveries.take_due(now).expect("due");
            assert_eq!(delivery.stage, Stage::Timeout);
            deliveries.finished(delivery, false, now);
        }
        assert_eq!(deliveries.take_due(now).map(|delivery| delivery.action), Some(Action::Poweroff));
    }

    #[test]
    fn a_heartbeat_drops_the_escalation_only_after_an_action_that_lets_the_guest_go_on() {
        for (action, dropped) in [(Action::InjectNmi, true), (Action::Shutdown, false)] {
            let mut deliveries = Deliveries::new(Policy::new(action).with_escalation(SECOND, Action::Poweroff));
            deliveries.expired(timeout(1), None);
            let delivery = deliveries.take_due(at(1)).expect("due");
            deliveries.finished(delivery, true, at(1));
            deliveries.heartbeat(None);
            assert_eq!(deliveries.next_due().is_none(), dropped, "{action}");
        }
    }

    #[test]
    fn a_warning_comes_before_the_timeout_it_warns_of_and_is_not_retried_after_it() {
        let mut deliveries = Deliveries::new(Policy::default());
        deliveries.expired(Expired { pretimeout: Some(at(1)), timeout: Some(at(2)) }, None);
        let warning = deliveries.take_due(at(3)).expect("due");
        assert_eq!(warning.stage, Stage::Pretimeout);
        let bite = deliveries.take_due(at(3)).expect("due");
        assert_eq!(bite.stage, Stage::Timeout);
        deliveries.finished(bite, true, at(3));

        deliveries.expired(pretimeout(4), None);
        let warning = deliveries.take_due(at(4)).expect("due");
        deliveries.finished(warning, false, at(4));
        deliveries.expired(timeout(5), None);
        assert_eq!(deliveries.take_due(at(5)).map(|delivery| delivery.stage), Some(Stage::Timeout));
        assert_eq!(deliveries.take_due(at(9)), None);
    }

    #[test]
    fn the_outcome_of_a_call_that_a_reset_overtook_changes_nothing() {
        for performed in [false, true] {
            let mut deliveries = Deliveries::new(Policy::default().with_escalation(SECOND, Action::Poweroff));
            deliveries.expired(timeout(1), None);
            let delivery = deliveries.take_due(at(1)).expect("due");
            deliveries.cancel();
            deliveries.finished(delivery, performed, at(1));
            deliveries.put_back(delivery);
            assert_eq!(deliveries.next_due(), None);
        }
    }

    #[test]
    fn a_delivery_put_back_is_due_again() {
        let mut deliveries = Deliveries::new(Policy::default().with_escalation(SECOND, Action::Poweroff));
        deliveries.expired(timeout(1), None);
        let delivery = deliveries.take_due(at(1)).expect("due");
        deliveries.put_back(delivery);
        assert_eq!(deliveries.take_due(at(1)), Some(delivery));
    }
}

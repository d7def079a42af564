//! Deliveries: which events the handler is to be told of, retried with, or escalated to, and when.
//!
//! Bookkeeping of a bounded size: one slot each for a pretimeout, a timeout and an escalation. It is told the VM's time
//! and the outcome of each call.
//!
//! An *episode* runs from one heartbeat to the next, and a delivery belongs to the episode whose deadline passed. The
//! next heartbeat shows that the guest runs. It therefore ends
//!
//! - the pretimeout of its episode, delivered or not: the timeout that it announces does not come;
//! - retries of the timeout: the action was not performed, and the guest has recovered without it. This holds for
//!   reset and poweroff too: to reset a guest that has been healthy for an hour because a call failed before that
//!   hour would turn a fault of the host into an outage of the guest;
//! - the escalation, unless an action that ends the guest (reset, shutdown, poweroff) has been performed. A guest
//!   that is shutting down may feed its watchdog to the end.
//!
//! A timeout that the handler has not been called with yet is still delivered.
//!
//! A policy with a rate withholds actions beyond it: that of a pretimeout for good, that of a timeout until the rate permits
//! it. Such a timeout has been told of and waits in its slot, and covers those that come until then.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use super::rate::Budget;
use crate::action::Action;
use crate::event::{MAX_ATTEMPTS, Stage};
use crate::policy::{ActionRate, Policy};
use crate::stats::count;

/// The pause after the first failure of a handler; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between two calls of a handler that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The slots, and the policy that fills them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deliveries {
    pub policy: Policy,
    pub pretimeout: Option<Delivery>,
    pub timeout: Option<Delivery>,
    pub escalation: Option<Delivery>,
    /// What the handler is being called with. None again once that has been cancelled.
    in_flight: Option<Due>,
    /// The handler is being called.
    is_calling: bool,
    /// Calls for timeouts of this episode that failed in a row.
    pub failures: u32,
    /// What is left of the policy's rate.
    pub budget: Budget,
    /// The same before the call in progress.
    budget_before: Budget,
    /// Actions of timeouts that the rate has delayed.
    pub delayed_actions: u64,
    /// Actions that were left out, by the rate or because an earlier timeout covers theirs.
    pub suppressed_actions: u64,
}

/// A delivery that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The handler is to perform its action.
    Perform(Delivery),
    /// The handler is to be told that the rate withholds its action: until this instant, or for good.
    Withhold(Delivery, Option<VmInstant>),
}

/// One event on its way to the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub stage: Stage,
    pub action: Action,
    /// The guest chose the action, so that a change of the policy does not apply to it.
    pub is_requested: bool,
    /// When what it reports happened.
    pub deadline: VmInstant,
    /// When to call the handler: at once at first, later after a failure.
    pub due: VmInstant,
    pub attempt: u32,
    /// A heartbeat has come since the deadline.
    pub has_recovered: bool,
    /// For an escalation: a heartbeat ends it.
    pub ends_with_heartbeat: bool,
    /// For a timeout: the rate delays its action, and the handler has been told.
    pub is_delayed: bool,
}

impl Deliveries {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            pretimeout: None,
            timeout: None,
            escalation: None,
            in_flight: None,
            is_calling: false,
            failures: 0,
            budget: Budget::default(),
            budget_before: Budget::default(),
            delayed_actions: 0,
            suppressed_actions: 0,
        }
    }

    /// When [`take_due`](Self::take_due) next has something to deliver; None while the handler is being called.
    #[inline]
    pub fn next_due(&self) -> Option<VmInstant> {
        if self.is_calling {
            return None;
        }
        let due = |slot: &Option<Delivery>| slot.as_ref().map(|delivery| delivery.due);
        earlier(due(&self.pretimeout), earlier(due(&self.timeout), due(&self.escalation)))
    }

    /// Notes that the pretimeout action is due.
    pub fn pretimeout(&mut self, deadline: VmInstant) {
        if self.policy.pretimeout != Action::None {
            self.pretimeout = Some(Delivery::new(Stage::Pretimeout, self.policy.pretimeout, deadline));
        }
    }

    /// Notes a timeout, and which action the guest wants in place of the policy's.
    ///
    /// It takes the place of an older timeout that is being retried. One that the handler was not called with yet
    /// stays, and covers both.
    pub fn timeout(&mut self, deadline: VmInstant, requested: Option<Action>) {
        // A pretimeout that failed is overtaken by the timeout that it announced.
        self.pretimeout = self.pretimeout.filter(|pretimeout| pretimeout.attempt == 1);
        let action = requested.unwrap_or(self.policy.timeout);
        let fresh = Delivery { is_requested: requested.is_some(), ..Delivery::new(Stage::Timeout, action, deadline) };
        let undelivered = self.timeout.filter(|timeout| timeout.attempt == 1);
        self.timeout = Some(match undelivered {
            None => fresh,
            Some(delayed) if delayed.is_delayed => self.covered(delayed, fresh),
            Some(first) => {
                if first.action != Action::None {
                    count(&mut self.suppressed_actions);
                }
                Delivery { has_recovered: false, ..first }
            }
        });
    }

    /// A delayed timeout that covers a later one, whose action counts: the guest may have chosen another.
    fn covered(&mut self, delayed: Delivery, later: Delivery) -> Delivery {
        count(&mut self.suppressed_actions);
        let Delivery { action, is_requested, has_recovered, .. } = later;
        Delivery { action, is_requested, has_recovered, ..delayed }
    }

    /// Ends the episode: the guest has fed the watchdog, or has started it anew.
    #[inline]
    pub fn heartbeat(&mut self) {
        let Self { pretimeout, timeout, escalation, in_flight, failures, .. } = self;
        *pretimeout = None;
        *timeout = timeout.filter(|timeout| timeout.attempt == 1);
        *escalation = escalation.filter(|escalation| !escalation.ends_with_heartbeat);
        *failures = 0;
        for delivery in timeout.iter_mut().chain(in_flight.as_mut().map(Due::delivery)) {
            delivery.has_recovered = true;
        }
    }

    /// Forgets everything pending. The outcome of a call in progress changes nothing.
    pub fn cancel(&mut self) {
        if let Some(Due::Withhold(_, until)) = self.in_flight.take() {
            self.delayed_actions = self.delayed_actions.saturating_add(until.is_some().into());
            count(&mut self.suppressed_actions);
        }
        if self.timeout.is_some_and(|timeout| timeout.is_delayed) {
            count(&mut self.suppressed_actions);
        }
        *self = Self::new(self.policy).in_place_of(self);
    }

    /// The VMM has dealt with what it was told: no retry, no escalation, no delayed action. What it was not told yet still
    /// comes.
    pub fn acknowledge(&mut self) {
        let untold = |slot: Option<Delivery>| slot.filter(|delivery| delivery.attempt == 1 && !delivery.is_delayed);
        let (pretimeout, timeout) = (untold(self.pretimeout), untold(self.timeout));
        self.cancel();
        *self = Self { pretimeout, timeout, ..*self };
    }

    /// Replaces the policy. What is pending follows the new one, except for an action that the guest chose; a grace
    /// period that runs, or a delay, does not last longer than the new one.
    pub fn set_policy(&mut self, policy: Policy, now: VmInstant) {
        self.policy = policy;
        self.budget.limit_to(policy.limit(), now);
        self.follow_policy(now);
    }

    fn follow_policy(&mut self, now: VmInstant) {
        let Self { policy, pretimeout, timeout, escalation, .. } = self;
        let with = |slot: &mut Option<Delivery>, action: Option<Action>| {
            *slot = slot.and_then(|delivery| {
                let action = if delivery.is_requested { Some(delivery.action) } else { action };
                action.map(|action| Delivery { action, ..delivery })
            });
        };
        with(pretimeout, Some(policy.pretimeout).filter(|action| *action != Action::None));
        with(timeout, Some(policy.timeout));
        with(escalation, policy.escalation.map(|escalation| escalation.action));
        let latest = now + self.grace();
        if let Some(first) = self.escalation.as_mut().filter(|escalation| escalation.attempt == 1) {
            first.due = first.due.min(latest);
            first.deadline = first.due;
        }
        if let Some(delayed) = self.timeout.as_mut().filter(|timeout| timeout.is_delayed) {
            let limit = self.policy.limit().filter(|_| delayed.action != Action::None);
            delayed.due = delayed.due.min(now + limit.map_or(Duration::ZERO, |rate| rate.interval));
        }
    }

    /// Takes the next delivery that is due, to be handed back with [`finished`](Self::finished) or
    /// [`put_back`](Self::put_back). There is none while another one is with the handler.
    pub fn take_due(&mut self, now: VmInstant) -> Option<Due> {
        if self.is_calling {
            return None;
        }
        self.budget_before = self.budget;
        let first_stages = self.take_first_stage(now);
        self.in_flight = first_stages.or_else(|| self.take_escalation(now).map(Due::Perform));
        self.is_calling = self.in_flight.is_some();
        self.in_flight
    }

    fn take_first_stage(&mut self, now: VmInstant) -> Option<Due> {
        let is_due = |delivery: &mut Delivery| delivery.due <= now;
        let delivery = self.pretimeout.take_if(is_due).or_else(|| self.timeout.take_if(is_due))?;
        match self.policy.limit() {
            Some(rate) if delivery.attempt == 1 && delivery.action != Action::None => {
                self.within_rate(delivery, rate, now)
            }
            _ => Some(Due::Perform(delivery)),
        }
    }

    fn within_rate(&mut self, delivery: Delivery, rate: ActionRate, now: VmInstant) -> Option<Due> {
        let is_pretimeout = delivery.stage == Stage::Pretimeout;
        if self.budget.take(rate, is_pretimeout.into(), now) {
            return Some(Due::Perform(delivery));
        }
        let until = self.budget.refill_at();
        if delivery.is_delayed {
            self.timeout = Some(Delivery { due: until, ..delivery });
            return None;
        }
        Some(Due::Withhold(delivery, (!is_pretimeout).then_some(until)))
    }

    fn take_escalation(&mut self, now: VmInstant) -> Option<Delivery> {
        let escalation = self.escalation.take_if(|escalation| escalation.due <= now)?;
        // It takes the place of a timeout that is still being retried.
        self.timeout = self.timeout.filter(|timeout| timeout.is_delayed);
        Some(escalation)
    }

    /// Undoes [`take_due`](Self::take_due): the handler was not called.
    pub fn put_back(&mut self) {
        self.is_calling = false;
        if let Some(mut due) = self.in_flight.take() {
            self.budget = self.budget_before;
            let delivery = *due.delivery();
            self.slot(delivery.stage).get_or_insert(delivery);
        }
    }

    /// Notes the outcome of the call.
    pub fn finished(&mut self, performed: bool, now: VmInstant) {
        self.is_calling = false;
        match self.in_flight.take() {
            None => {}
            Some(Due::Perform(delivery)) => self.called(delivery, performed, now),
            Some(Due::Withhold(_, None)) => count(&mut self.suppressed_actions),
            Some(Due::Withhold(timeout, Some(until))) => self.delay(timeout, until, now),
        }
    }

    fn delay(&mut self, timeout: Delivery, until: VmInstant, now: VmInstant) {
        count(&mut self.delayed_actions);
        let delayed = Delivery { is_delayed: true, due: until, ..timeout };
        // Another one may have come during the call.
        self.timeout = Some(match self.timeout.take() {
            None => delayed,
            Some(later) => self.covered(delayed, later),
        });
        self.follow_policy(now);
    }

    fn called(&mut self, delivery: Delivery, performed: bool, now: VmInstant) {
        let Delivery { stage, action, has_recovered, ends_with_heartbeat, .. } = delivery;
        match (stage, performed) {
            (Stage::Timeout, true) => {
                self.failures = 0;
                if !(has_recovered && action.leaves_guest_running()) {
                    self.escalate_after(self.grace(), action.leaves_guest_running(), now);
                }
            }
            (Stage::Pretimeout | Stage::Escalation, true) => {}
            (Stage::Timeout, false) if has_recovered => {}
            (Stage::Timeout, false) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= MAX_ATTEMPTS && self.policy.escalation.is_some() {
                    self.escalate_after(Duration::ZERO, true, now);
                } else {
                    self.retry(delivery, now);
                }
            }
            (Stage::Pretimeout, false) if has_recovered || self.timeout.is_some() => {}
            (Stage::Escalation, false) if has_recovered && ends_with_heartbeat => {}
            (Stage::Pretimeout | Stage::Escalation, false) => self.retry(delivery, now),
        }
    }

    fn grace(&self) -> Duration {
        self.policy.escalation.map_or(Duration::ZERO, |escalation| escalation.grace)
    }

    /// Has the escalation come after `pause`, if the policy has one. One that is pending is not put off.
    fn escalate_after(&mut self, pause: Duration, ends_with_heartbeat: bool, now: VmInstant) {
        let Some(escalation) = self.policy.escalation else {
            return;
        };
        let fresh =
            Delivery { ends_with_heartbeat, ..Delivery::new(Stage::Escalation, escalation.action, now + pause) };
        self.escalation = Some(match self.escalation {
            None => fresh,
            Some(pending) => {
                let first = if fresh.due < pending.due { fresh } else { pending };
                Delivery { ends_with_heartbeat: ends_with_heartbeat && pending.ends_with_heartbeat, ..first }
            }
        });
    }

    /// Has the handler called again, unless a newer event of the stage is waiting.
    fn retry(&mut self, failed: Delivery, now: VmInstant) {
        let attempt = failed.attempt.saturating_add(1);
        let retry = Delivery { due: now + pause_before(attempt), attempt, is_delayed: false, ..failed };
        self.slot(failed.stage).get_or_insert(retry);
    }

    /// The deliveries if the handler returned now and had performed its action.
    pub fn settled(&self, now: VmInstant) -> Self {
        let mut settled = *self;
        settled.finished(true, now);
        settled
    }

    /// The same in place of `other`, whose call of the handler may be in progress: its outcome changes nothing. What `other`
    /// has spent of the rate stays spent.
    pub fn in_place_of(self, other: &Self) -> Self {
        let Self { is_calling, delayed_actions, suppressed_actions, .. } = *other;
        Self { is_calling, budget: self.budget.lesser(other.budget), delayed_actions, suppressed_actions, ..self }
    }

    fn slot(&mut self, stage: Stage) -> &mut Option<Delivery> {
        match stage {
            Stage::Pretimeout => &mut self.pretimeout,
            Stage::Timeout => &mut self.timeout,
            Stage::Escalation => &mut self.escalation,
        }
    }
}

impl Due {
    fn delivery(&mut self) -> &mut Delivery {
        match self {
            Self::Perform(delivery) | Self::Withhold(delivery, _) => delivery,
        }
    }
}

impl Delivery {
    pub fn new(stage: Stage, action: Action, deadline: VmInstant) -> Self {
        Self {
            stage,
            action,
            is_requested: false,
            deadline,
            due: deadline,
            attempt: 1,
            has_recovered: false,
            ends_with_heartbeat: false,
            is_delayed: false,
        }
    }
}

/// The earlier of two instants that may be missing.
#[inline]
pub(super) fn earlier(one: Option<VmInstant>, other: Option<VmInstant>) -> Option<VmInstant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// How long an attempt waits after the one before.
pub(crate) fn pause_before(attempt: u32) -> Duration {
    match attempt.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => (FIRST_RETRY * (1 << doublings.min(16))).min(LONGEST_RETRY),
    }
}

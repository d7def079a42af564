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

use std::time::Duration;

use crate::action::Action;
use crate::event::{MAX_ATTEMPTS, Stage};
use crate::policy::Policy;
use vm_watchdog_devices::VmInstant;

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
    in_flight: Option<Delivery>,
    /// The handler is being called.
    is_calling: bool,
    /// Calls for timeouts of this episode that failed in a row.
    pub failures: u32,
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
    /// stays, and stands for both.
    pub fn timeout(&mut self, deadline: VmInstant, requested: Option<Action>) {
        // A pretimeout that failed is overtaken by the timeout that it announced.
        self.pretimeout = self.pretimeout.filter(|pretimeout| pretimeout.attempt == 1);
        let action = requested.unwrap_or(self.policy.timeout);
        let fresh = Delivery { is_requested: requested.is_some(), ..Delivery::new(Stage::Timeout, action, deadline) };
        let undelivered = self.timeout.filter(|timeout| timeout.attempt == 1);
        self.timeout = Some(undelivered.map_or(fresh, |first| Delivery { has_recovered: false, ..first }));
    }

    /// Ends the episode: the guest has fed the watchdog, or has started it anew.
    #[inline]
    pub fn heartbeat(&mut self) {
        let Self { policy: _, pretimeout, timeout, escalation, in_flight, is_calling: _, failures } = self;
        *pretimeout = None;
        *timeout = timeout.filter(|timeout| timeout.attempt == 1);
        *escalation = escalation.filter(|escalation| !escalation.ends_with_heartbeat);
        *failures = 0;
        for delivery in timeout.iter_mut().chain(in_flight) {
            delivery.has_recovered = true;
        }
    }

    /// Forgets everything pending. The outcome of a call in progress changes nothing.
    pub fn cancel(&mut self) {
        *self = Self::new(self.policy).in_place_of(self);
    }

    /// The VMM has dealt with what it was told: no retry, no escalation. What it was not told yet still comes.
    pub fn acknowledge(&mut self) {
        let untold = |slot: Option<Delivery>| slot.filter(|delivery| delivery.attempt == 1);
        let (pretimeout, timeout) = (untold(self.pretimeout), untold(self.timeout));
        self.cancel();
        *self = Self { pretimeout, timeout, ..*self };
    }

    /// Replaces the policy. What is pending follows the new one, except for an action that the guest chose; a grace
    /// period that runs does not last longer than the new one.
    pub fn set_policy(&mut self, policy: Policy, now: VmInstant) {
        let Self { policy: old, pretimeout, timeout, escalation, .. } = self;
        *old = policy;
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
    }

    /// Takes the next delivery that is due, to be handed back with [`finished`](Self::finished) or
    /// [`put_back`](Self::put_back). There is none while another one is with the handler.
    pub fn take_due(&mut self, now: VmInstant) -> Option<Delivery> {
        if self.is_calling {
            return None;
        }
        let is_due = |delivery: &mut Delivery| delivery.due <= now;
        let first_stages = self.pretimeout.take_if(is_due).or_else(|| self.timeout.take_if(is_due));
        self.in_flight = first_stages.or_else(|| self.take_escalation(now));
        self.is_calling = self.in_flight.is_some();
        self.in_flight
    }

    fn take_escalation(&mut self, now: VmInstant) -> Option<Delivery> {
        let escalation = self.escalation.take_if(|escalation| escalation.due <= now)?;
        // It takes the place of a timeout that is still being retried.
        self.timeout = None;
        Some(escalation)
    }

    /// Undoes [`take_due`](Self::take_due): the handler was not called.
    pub fn put_back(&mut self) {
        self.is_calling = false;
        if let Some(delivery) = self.in_flight.take() {
            self.slot(delivery.stage).get_or_insert(delivery);
        }
    }

    /// Notes the outcome of the call.
    pub fn finished(&mut self, performed: bool, now: VmInstant) {
        self.is_calling = false;
        let Some(delivery) = self.in_flight.take() else {
            return;
        };
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
        let retry = Delivery { due: now + pause_before(attempt), attempt, ..failed };
        self.slot(failed.stage).get_or_insert(retry);
    }

    /// The deliveries if the handler returned now and had performed its action.
    pub fn settled(&self, now: VmInstant) -> Self {
        let mut settled = *self;
        settled.finished(true, now);
        settled
    }

    /// The same in place of `other`, whose call of the handler may be in progress: its outcome changes nothing.
    pub fn in_place_of(self, other: &Self) -> Self {
        Self { is_calling: other.is_calling, ..self }
    }

    fn slot(&mut self, stage: Stage) -> &mut Option<Delivery> {
        match stage {
            Stage::Pretimeout => &mut self.pretimeout,
            Stage::Timeout => &mut self.timeout,
            Stage::Escalation => &mut self.escalation,
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

//! What a watchdog decides: what has expired, which call is due, which level the interrupt line is to have, and when to
//! look again.
//!
//! A state machine without clock, timer, lock or calls. It is told the VM's time, a guest's access, that the timer went
//! off, and the outcome of each call; it answers with the next [`Call`] to make and with [`next_wake`](Core::next_wake).
//! `runtime.rs` makes the calls, and makes none while the VM is paused.

mod delivery;
mod expiry;
mod line;
mod message;
mod position;
mod rate;
mod report;
mod steal_time;
#[cfg(test)]
mod tests;
mod unprotected;

use std::time::Duration;

use vm_watchdog_devices::{Access, Model, MsiMessage, VmInstant};

use crate::action::Action;
use crate::policy::Policy;
use crate::run_delay::VcpuDelay;
use crate::stats::count;
pub(crate) use delivery::Delivery;
use delivery::{Deliveries, Due, earlier};
use line::Line;
use message::Messages;
use report::Counters;
use steal_time::StealTime;
pub(crate) use unprotected::Notice;
use unprotected::Unprotected;

/// The least time between two wakes of the host for one watchdog, whatever its guest programs: 1 ms, so that there are
/// at most 1,000 wakes a second. Expiries that come faster are reported together.
pub const MIN_WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// A call of the host's code that is due. Its outcome has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Read the run delay. [`Core::run_delay`] takes it.
    ReadRunDelay,
    /// Set the interrupt line. [`Core::line_set`] takes the outcome.
    SetLine(bool),
    /// Send the interrupt message. [`Core::message_sent`] takes the outcome.
    SendMessage(MsiMessage),
    /// Have the handler perform an action. [`Core::performed`] takes the outcome.
    Perform(Delivery),
    /// Tell the handler that the policy's rate withholds an action: until this instant, or for good. [`Core::told`] follows.
    Withhold(Delivery, Option<VmInstant>),
}

/// A model with what is pending for it.
#[derive(Clone, Debug)]
pub(crate) struct Core<M> {
    model: M,
    deliveries: Deliveries,
    /// When the pretimeout action is due, on the watchdog's time.
    pretimeout_at: Option<VmInstant>,
    /// When the guest last started or fed the watchdog, or the watchdog timed out, on the watchdog's time.
    period_began: VmInstant,
    /// None if the watchdog's time is the VM's. Boxed, because few watchdogs have one.
    steal_time: Option<Box<StealTime>>,
    /// The guest has started the watchdog, and a reading of the run delay has to say what came before.
    has_started: bool,
    /// The timer went off: a good moment for a reading of the run delay.
    was_woken: bool,
    /// None if the interrupt is not connected.
    line: Option<Line>,
    /// None if the VMM sends no interrupt messages.
    messages: Option<Messages>,
    /// The timer does not wake the host before this.
    not_before: VmInstant,
    /// The serving thread was woken before that, by a guest that moved its deadline. It looks again at `not_before`, so
    /// that the guest wakes nothing until then.
    was_woken_early: bool,
    last_heartbeat: Option<VmInstant>,
    /// Whether a guest that does not know of a reset gets its watchdog back.
    rearms: bool,
    /// The heartbeats of the disarmed watchdog since the last reset, if there are any.
    unprotected: Option<Unprotected>,
    notice: Option<Notice>,
    counters: Counters,
}

/// What the host connects to a watchdog.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Connections {
    pub has_line: bool,
    pub sends_messages: bool,
    /// How many times the timeout steal time may make a period last.
    pub steal_limit: Option<u32>,
    /// Whether a guest that does not know of a reset gets its watchdog back.
    pub rearms: bool,
}

impl<M: Model> Core<M> {
    pub fn new(mut model: M, policy: Policy, connections: Connections) -> Self {
        model.set_after_timeout(policy.timeout.after_timeout());
        Self {
            deliveries: Deliveries::new(policy),
            pretimeout_at: None,
            period_began: VmInstant::ZERO,
            steal_time: connections.steal_limit.map(StealTime::new).map(Box::new),
            has_started: false,
            was_woken: false,
            line: connections.has_line.then(|| Line::at(model.interrupt_level())),
            messages: connections.sends_messages.then(Messages::default),
            not_before: VmInstant::ZERO,
            was_woken_early: false,
            last_heartbeat: None,
            rearms: connections.rearms,
            unprotected: None,
            notice: None,
            counters: Counters::default(),
            model,
        }
    }

    pub fn model(&self) -> &M {
        &self.model
    }

    pub fn policy(&self) -> Policy {
        self.deliveries.policy
    }

    pub fn last_heartbeat(&self) -> Option<VmInstant> {
        self.last_heartbeat
    }

    /// Gives a guest's access to the model. What has expired before is noted first. Also gives what it was in the end.
    pub fn access<R>(
        &mut self,
        vm_now: VmInstant,
        access: impl FnOnce(&mut M, VmInstant) -> (Access, R),
    ) -> (Access, R) {
        self.note_expired(vm_now);
        let now = self.model_time(vm_now);
        let was_running = self.model.poll_at().is_some();
        let (mut kind, outcome) = access(&mut self.model, now);
        if kind == Access::HeartbeatWhileDisarmed {
            kind = self.heartbeat_while_disarmed(vm_now, now);
        } else if self.unprotected.is_some() && !self.model.guest_may_predate_reset() {
            self.unprotected = None;
        }
        let starts = !was_running && self.model.poll_at().is_some();
        self.try_interrupt_again();
        if kind == Access::Heartbeat || starts {
            self.begin_episode(vm_now, now);
            // What is stolen from the guest from here on is told by what comes after this reading.
            self.has_started |= starts;
        } else if let Some(steal_time) = &mut self.steal_time {
            steal_time.see(now);
        }
        match kind {
            Access::Ignored => count(&mut self.counters.ignored_accesses),
            Access::Heartbeat => {
                count(&mut self.counters.heartbeats);
                self.last_heartbeat = Some(vm_now);
            }
            _ => {}
        }
        self.keep_pretimeout_before_timeout();
        (kind, outcome)
    }

    /// Gives the model an access that does not depend on time and changes nothing that does: no deadline, no interrupt.
    pub fn access_without_time(&mut self, access: impl FnOnce(&mut M) -> Access) -> Access {
        let kind = access(&mut self.model);
        if kind == Access::Ignored {
            count(&mut self.counters.ignored_accesses);
        }
        kind
    }

    /// What there is to log about the last access.
    #[inline]
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notice.take()
    }

    /// The guest has started or fed the watchdog: it runs, and has a whole period.
    fn begin_episode(&mut self, vm_now: VmInstant, now: VmInstant) {
        self.pretimeout_at = None;
        self.period_began = now;
        if let Some(steal_time) = &mut self.steal_time {
            steal_time.restart(vm_now, now);
        }
        self.deliveries.heartbeat();
    }

    /// The serving thread was woken, by the timer or by another thread.
    pub fn wake(&mut self, vm_now: VmInstant) {
        count(&mut self.counters.wakes);
        // Not twice in succession: time may stand still.
        self.was_woken_early = vm_now < self.not_before && !self.was_woken_early;
        // A guest that keeps moving its deadline causes two wakes in this time: this one, and the next by the timer.
        self.not_before = vm_now + MIN_WAKE_INTERVAL * if self.was_woken_early { 2 } else { 1 };
        self.was_woken = true;
    }

    /// The next call to make, by whichever thread serves the timer. Its outcome has to be told.
    pub fn next_call(&mut self, vm_now: VmInstant) -> Option<Call> {
        self.has_started |= std::mem::take(&mut self.was_woken);
        if let Some(reading) = self.reading(vm_now) {
            return Some(reading);
        }
        self.note_expired(vm_now);
        self.interrupt().or_else(|| {
            self.deliveries.take_due(vm_now).map(|due| match due {
                Due::Perform(delivery) => Call::Perform(delivery),
                Due::Withhold(delivery, until) => Call::Withhold(delivery, until),
            })
        })
    }

    /// The reading to take before or after an access, if one is due.
    #[inline]
    pub fn reading(&mut self, vm_now: VmInstant) -> Option<Call> {
        self.steal_time.as_ref()?;
        self.begins_reading(vm_now).then_some(Call::ReadRunDelay)
    }

    /// The change of the interrupt line to make, or the interrupt message to send, after an access or a reset.
    #[inline]
    pub fn interrupt(&mut self) -> Option<Call> {
        self.line_change().or_else(|| self.message_to_send())
    }

    #[inline]
    fn line_change(&mut self) -> Option<Call> {
        let line = self.line.as_mut()?;
        let wanted = self.model.interrupt_level();
        if !line.needs(wanted) {
            return None;
        }
        line.begin(wanted);
        Some(Call::SetLine(wanted))
    }

    #[inline]
    fn message_to_send(&mut self) -> Option<Call> {
        let messages = self.messages.as_mut().filter(|messages| messages.is_free())?;
        let message = self.model.message()?;
        self.model.take_message();
        messages.begin();
        Some(Call::SendMessage(message))
    }

    /// The VM was paused before the call could be made.
    pub fn put_back(&mut self, call: Call) {
        match call {
            Call::ReadRunDelay => {
                self.has_started = true;
                self.steal_time.iter_mut().for_each(|steal_time| steal_time.put_back_reading());
            }
            Call::SetLine(_) => self.line.iter_mut().for_each(Line::put_back),
            Call::SendMessage(_) => {
                if self.messages.as_mut().is_some_and(Messages::put_back) {
                    self.model.put_back_message();
                }
            }
            Call::Perform(_) | Call::Withhold(..) => self.deliveries.put_back(),
        }
    }

    /// Notes the outcome of [`Call::ReadRunDelay`], which was begun at `begun`; None if it failed.
    pub fn run_delay(&mut self, reading: Option<Vec<VcpuDelay>>, begun: VmInstant) {
        let timeout_at = self.model.timeout_at();
        let Some(steal_time) = &mut self.steal_time else {
            return;
        };
        match reading {
            Some(delays) => steal_time.grant(delays, begun, timeout_at),
            None => {
                count(&mut self.counters.run_delay_failures);
                steal_time.grant_nothing(begun);
            }
        }
    }

    /// Notes the outcome of [`Call::SetLine`].
    pub fn line_set(&mut self, is_set: bool) {
        if let Some(line) = &mut self.line {
            line.finished(is_set);
        }
        if !is_set {
            count(&mut self.counters.interrupt_failures);
        }
    }

    /// Notes the outcome of [`Call::SendMessage`].
    pub fn message_sent(&mut self, is_sent: bool) {
        if self.messages.as_mut().is_some_and(|messages| messages.finished(is_sent)) {
            self.model.put_back_message();
        }
        if !is_sent {
            count(&mut self.counters.interrupt_failures);
        }
    }

    /// Notes the outcome of [`Call::Perform`].
    pub fn performed(&mut self, is_performed: bool, vm_now: VmInstant) {
        let Counters { actions, action_failures, .. } = &mut self.counters;
        count(if is_performed { actions } else { action_failures });
        self.deliveries.finished(is_performed, vm_now);
    }

    /// Notes the end of [`Call::Withhold`].
    pub fn told(&mut self, vm_now: VmInstant) {
        self.deliveries.finished(true, vm_now);
    }

    /// When there is something to do, on the VM's time. What another thread is about does not count.
    pub fn next_wake(&self) -> Option<VmInstant> {
        if self.was_woken_early {
            return Some(self.not_before);
        }
        let deadline = match &self.steal_time {
            None => earlier(self.next_expiry_to_note(), self.pretimeout_at),
            Some(steal_time) => self.deadline().map(|deadline| steal_time.wake_for(deadline, self.model.timeout_at())),
        };
        let interrupt = (self.is_line_stale() || self.has_message_to_send()).then_some(VmInstant::ZERO);
        let first = earlier(deadline, earlier(self.deliveries.next_due(), interrupt));
        first.map(|due| due.max(self.not_before))
    }

    /// The platform resets: everything pending is cancelled. The outcome of a call in progress changes nothing.
    pub fn reset(&mut self) {
        self.model.reset();
        self.deliveries.cancel();
        self.pretimeout_at = None;
        self.unprotected = None;
        self.try_interrupt_again();
    }

    /// The VMM has dealt with what it was told: no retry, no escalation.
    pub fn acknowledge(&mut self) {
        self.deliveries.acknowledge();
    }

    /// Replaces the policy, for what is pending too.
    pub fn set_policy(&mut self, policy: Policy, vm_now: VmInstant) {
        if self.has_unnoted_first_stage(vm_now) {
            // It has ended under the old policy.
            self.note_expired(vm_now);
        }
        self.model.set_after_timeout(policy.timeout.after_timeout());
        self.deliveries.set_policy(policy, vm_now);
        if policy.pretimeout == Action::None {
            self.pretimeout_at = None;
        }
    }

    /// The end of an interrupt has lowered the line, which the device may still assert.
    pub fn resample_interrupt(&mut self) {
        if self.model.interrupt_level() {
            self.line.iter_mut().for_each(Line::forget_level);
        }
    }

    fn is_line_stale(&self) -> bool {
        self.line.is_some_and(|line| line.needs(self.model.interrupt_level()))
    }

    fn has_message_to_send(&self) -> bool {
        self.messages.is_some_and(|messages| messages.is_free()) && self.model.message().is_some()
    }

    /// Something has happened: tries the line and the message again if they have failed.
    fn try_interrupt_again(&mut self) {
        self.line.iter_mut().for_each(Line::try_again);
        self.messages.iter_mut().for_each(Messages::try_again);
    }

    /// When to look at the model without an access. The end of a first stage that has no action and raises no
    /// interrupt is noted later, with the next access or the timeout.
    fn next_expiry_to_note(&self) -> Option<VmInstant> {
        match self.policy().pretimeout {
            Action::None => self.model.next_effect_at(),
            _ => self.model.poll_at(),
        }
    }

    /// The next instant at which something expires, on the watchdog's time.
    fn deadline(&self) -> Option<VmInstant> {
        earlier(self.model.poll_at(), self.pretimeout_at)
    }

    /// The time to tell the model.
    fn model_time(&self, vm_now: VmInstant) -> VmInstant {
        match &self.steal_time {
            None => vm_now,
            Some(steal_time) => steal_time.model_time(vm_now, self.deadline(), self.model.timeout_at()),
        }
    }

    fn vm_time(&self, now: VmInstant) -> VmInstant {
        self.steal_time.as_ref().map_or(now, |steal_time| steal_time.vm_time(now))
    }

    #[inline(never)]
    fn begins_reading(&mut self, vm_now: VmInstant) -> bool {
        let deadline = self.deadline();
        let timeout_at = self.model.timeout_at();
        let Some(steal_time) = &mut self.steal_time else {
            return false;
        };
        let has_started = std::mem::take(&mut self.has_started);
        let is_wanted = has_started || steal_time.has_unread(vm_now, deadline, timeout_at);
        is_wanted && timeout_at.is_some() && steal_time.begin_reading(vm_now)
    }

    /// Notes what has expired, if a deadline has come.
    #[inline]
    fn note_expired(&mut self, vm_now: VmInstant) {
        if self.deadline().is_some_and(|deadline| deadline <= vm_now) {
            self.note_what_has_expired(vm_now);
        }
    }

    #[cold]
    fn note_what_has_expired(&mut self, vm_now: VmInstant) {
        let now = self.model_time(vm_now);
        if self.model.poll_at().is_some_and(|poll_at| poll_at <= now) {
            if let Some(steal_time) = &mut self.steal_time {
                steal_time.see(now);
            }
            let expired = self.model.poll(now);
            self.note(expired);
        }
        self.keep_pretimeout_before_timeout();
        if let Some(pretimeout_at) = self.pretimeout_at.take_if(|pretimeout_at| *pretimeout_at <= now) {
            self.deliveries.pretimeout(self.vm_time(pretimeout_at));
        }
    }

    /// The guest may have moved the timeout, or stopped the watchdog so that there is none to announce.
    fn keep_pretimeout_before_timeout(&mut self) {
        if let Some(pretimeout_at) = self.pretimeout_at {
            self.pretimeout_at = match self.model.timeout_at() {
                Some(timeout_at) => Some(pretimeout_at.min(timeout_at)),
                None => Some(pretimeout_at).filter(|_| self.model.poll_at().is_some()),
            };
        }
    }
}

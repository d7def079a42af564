//! What follows from an expiry: which deliveries are due, and when.

use vm_watchdog_devices::{Expired, Model, VmInstant};

use super::Core;
use crate::action::Action;
use crate::stats::count;

impl<M: Model> Core<M> {
    /// Notes what the model has reported.
    pub(super) fn note(&mut self, expired: Expired) {
        self.try_interrupt_again();
        // A free running watchdog may have timed out before the first stage of its next cycle ended.
        let is_of_next_cycle =
            |first_stage_ended: &VmInstant| expired.timeout.is_some_and(|at| at < *first_stage_ended);
        let (of_next, of_this) = match expired.pretimeout {
            Some(at) if is_of_next_cycle(&at) => (Some(at), None),
            at => (None, at),
        };
        if let Some(first_stage_ended) = of_this {
            self.note_first_stage(first_stage_ended, expired.timeout);
        }
        if let Some(timeout) = expired.timeout {
            self.note_timeout(timeout);
        }
        if let Some(first_stage_ended) = of_next {
            self.note_first_stage(first_stage_ended, None);
        }
    }

    fn note_first_stage(&mut self, ended: VmInstant, timeout: Option<VmInstant>) {
        count(&mut self.counters.pretimeouts);
        self.pretimeout_at = self.pretimeout_action_at(ended, timeout);
    }

    fn note_timeout(&mut self, timeout: VmInstant) {
        count(&mut self.counters.expiries);
        if let Some(pretimeout_at) = self.pretimeout_at.take_if(|pretimeout_at| *pretimeout_at <= timeout) {
            self.deliveries.pretimeout(self.vm_time(pretimeout_at));
        }
        let requested = self.model.timeout_request().map(Action::from);
        self.deliveries.timeout(self.vm_time(timeout), requested);
        self.period_began = timeout;
        if let Some(steal_time) = &mut self.steal_time {
            steal_time.begin_period(timeout);
        }
    }

    /// When the policy's pretimeout action is due: a margin before the timeout, and not before the end of stage 1.
    fn pretimeout_action_at(&self, first_stage_ended: VmInstant, timeout: Option<VmInstant>) -> Option<VmInstant> {
        let policy = self.deliveries.policy;
        if policy.pretimeout == Action::None {
            return None;
        }
        let timeout = timeout.or(self.model.timeout_at());
        let margin_begins = timeout.map(|timeout| {
            let period = timeout.saturating_duration_since(self.period_began);
            timeout - policy.pretimeout_margin(period)
        });
        Some(first_stage_ended.max(margin_begins.unwrap_or_default()))
    }
}

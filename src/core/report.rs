//! What a watchdog has counted, for [`Stats`].

use std::time::Duration;

use vm_watchdog_devices::{Model, VmInstant};

use super::Core;
use crate::stats::Stats;

/// The counters of [`Stats`] that are kept. The rest of it is found out when it is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub heartbeats: u64,
    pub heartbeats_while_disarmed: u64,
    pub found_unprotected: u64,
    pub rearmed: u64,
    pub pretimeouts: u64,
    pub expiries: u64,
    pub ignored_accesses: u64,
    pub actions: u64,
    pub action_failures: u64,
    pub interrupt_failures: u64,
    pub run_delay_failures: u64,
    pub wakes: u64,
}

impl<M: Model> Core<M> {
    pub fn stats(&self, vm_now: VmInstant) -> Stats {
        let now = self.steal_time.as_ref().map_or(vm_now, |steal_time| steal_time.time(vm_now));
        let Counters {
            heartbeats,
            heartbeats_while_disarmed,
            found_unprotected,
            rearmed,
            pretimeouts,
            expiries,
            ignored_accesses,
            actions,
            action_failures,
            interrupt_failures,
            run_delay_failures,
            wakes,
        } = self.counters;
        Stats {
            now: vm_now,
            armed: self.model.is_armed(),
            time_left: self.model.timeout_at().map(|timeout_at| timeout_at.saturating_duration_since(now)),
            heartbeats,
            last_heartbeat: self.last_heartbeat,
            heartbeats_while_disarmed,
            unprotected: self.unprotected.is_some_and(|unprotected| unprotected.is_recognized()),
            found_unprotected,
            rearmed,
            pretimeouts: pretimeouts.saturating_add(self.has_unnoted_first_stage(vm_now).into()),
            expiries,
            ignored_accesses,
            actions,
            action_failures,
            delayed_actions: self.deliveries.delayed_actions,
            suppressed_actions: self.deliveries.suppressed_actions,
            interrupt_failures,
            starved: self.steal_time.as_ref().map_or(Duration::ZERO, |steal_time| steal_time.compensated),
            run_delay_failures,
            wakes,
        }
    }

    /// Whether a first stage has ended that is not noted yet, and need not be.
    pub(super) fn has_unnoted_first_stage(&self, vm_now: VmInstant) -> bool {
        let ended = self.model.poll_at().filter(|ended| *ended <= vm_now && self.steal_time.is_none());
        ended.is_some() && self.model.next_effect_at() > ended
    }
}

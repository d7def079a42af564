//! Recognizes a guest that feeds a watchdog which is disarmed: it believes that it is protected.
//!
//! A VMM may reset the device although its guest runs on, as QEMU 11.1 does after it has loaded a snapshot. A single
//! heartbeat proves nothing, because drivers send some before they arm the watchdog. Several over a time do, if the guest
//! has neither armed nor disarmed the watchdog since the reset: every known driver does that when it attaches.

use std::time::Duration;

use vm_watchdog_devices::{Access, Model, VmInstant};

use super::Core;
use crate::stats::count;

/// The least heartbeats of a guest that believes that it is protected.
const LEAST_HEARTBEATS: u32 = 3;
/// The least time from the first of them to the last.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// The heartbeats of a disarmed watchdog since its last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unprotected {
    heartbeats: u32,
    first: VmInstant,
    last: VmInstant,
    longest_gap: Duration,
    is_recognized: bool,
}

/// What a guest's heartbeats of a disarmed watchdog have led to, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The guest believes that it is protected, and is not.
    Unprotected,
    /// The watchdog is armed again as before the reset, with this timeout.
    Rearmed(Duration),
}

/// What a heartbeat of a disarmed watchdog shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// Nothing, or nothing new.
    Nothing,
    /// The guest believes that it is protected. It has fed the watchdog at least once in this time.
    BelievesProtected { fed_within: Duration },
}

impl Unprotected {
    /// Notes a heartbeat at `now`, on the VM's time.
    fn heartbeat(&mut self, now: VmInstant) -> Finding {
        if self.heartbeats == 0 {
            (self.first, self.last) = (now, now);
        }
        self.heartbeats = self.heartbeats.saturating_add(1);
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last));
        self.last = self.last.max(now);
        let shows_it =
            self.heartbeats >= LEAST_HEARTBEATS && self.last.saturating_duration_since(self.first) >= LEAST_TIME;
        if self.is_recognized || !shows_it {
            return Finding::Nothing;
        }
        self.is_recognized = true;
        Finding::BelievesProtected { fed_within: self.longest_gap }
    }

    /// Whether the guest believes that it is protected.
    pub fn is_recognized(&self) -> bool {
        self.is_recognized
    }
}

impl<M: Model> Core<M> {
    /// A heartbeat that the model has ignored. Gives what it is in the end: one that the watchdog is armed by counts.
    #[cold]
    pub(super) fn heartbeat_while_disarmed(&mut self, vm_now: VmInstant, now: VmInstant) -> Access {
        count(&mut self.counters.heartbeats_while_disarmed);
        if !self.model.guest_may_predate_reset() {
            return Access::HeartbeatWhileDisarmed;
        }
        let Finding::BelievesProtected { fed_within } = self.unprotected.get_or_insert_default().heartbeat(vm_now)
        else {
            return Access::HeartbeatWhileDisarmed;
        };
        // A guest that feeds more slowly has set another timeout than the one that is known.
        let timeout = self.model.rearm_timeout().filter(|timeout| self.rearms && fed_within < *timeout);
        if let Some(timeout) = timeout.filter(|_| self.model.rearm(now)) {
            count(&mut self.counters.rearmed);
            self.unprotected = None;
            self.notice = Some(Notice::Rearmed(timeout));
            return Access::Heartbeat;
        }
        count(&mut self.counters.found_unprotected);
        self.notice = Some(Notice::Unprotected);
        Access::HeartbeatWhileDisarmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time of the recognition and the longest gap until then, for heartbeats at these milliseconds.
    fn recognized(heartbeats: &[u64]) -> Vec<(u64, u64)> {
        let mut unprotected = Unprotected::default();
        let mut findings = Vec::new();
        for &millis in heartbeats {
            let now = VmInstant::ZERO + Duration::from_millis(millis);
            if let Finding::BelievesProtected { fed_within } = unprotected.heartbeat(now) {
                findings.push((millis, fed_within.as_millis() as u64));
            }
        }
        assert_eq!(unprotected.is_recognized(), !findings.is_empty());
        findings
    }

    #[test]
    fn three_heartbeats_over_a_second_show_it_once() {
        for (heartbeats, expected) in [
            (&[][..], None),
            (&[5000], None),
            (&[5000, 9000], None),
            (&[5000, 5001, 5999], None),
            (&[5000, 5001, 5999, 6000], Some((6000, 998))),
            (&[5000, 5000, 6000], Some((6000, 1000))),
            (&[5000, 35_000, 65_000, 65_001, 95_000, 1_000_000], Some((65_000, 30_000))),
            // An earlier instant does no harm.
            (&[5000, 4000, 6000, 6001], Some((6000, 1000))),
        ] {
            assert_eq!(recognized(heartbeats), expected.into_iter().collect::<Vec<_>>(), "{heartbeats:?}");
        }
    }
}

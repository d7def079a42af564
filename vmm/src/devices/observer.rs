//! What a guest does with its watchdog, for the timeline. A VMM without a timeline needs none of it.

use std::sync::Arc;

use vm_watchdog::{AnyWatchdog, Stats};

use crate::timeline::{Entry, Timeline};

/// Records what a guest does with a watchdog of any model.
pub struct Observer {
    watchdog: AnyWatchdog,
    timeline: Arc<Timeline>,
    seen: Stats,
}

impl Observer {
    /// Records what happens from now on.
    pub fn new(watchdog: AnyWatchdog, timeline: Arc<Timeline>) -> Self {
        Self { seen: watchdog.stats(), watchdog, timeline }
    }

    /// Records what a write of the guest has changed.
    pub fn after_write(&mut self) {
        let stats = self.watchdog.stats();
        let id = || self.watchdog.id().to_owned();
        if stats.armed != self.seen.armed {
            self.timeline.record(if stats.armed { Entry::Armed { id: id() } } else { Entry::Disarmed { id: id() } });
        }
        if stats.heartbeats != self.seen.heartbeats {
            self.timeline.record(Entry::Heartbeat {
                id: id(),
                heartbeats: stats.heartbeats,
                last_heartbeat_ns: stats.last_heartbeat.map(|at| at.as_nanos()),
            });
        }
        self.seen = stats;
    }

    /// Takes over what a reset has changed, which is not the guest's doing.
    pub fn after_reset(&mut self) {
        self.seen = self.watchdog.stats();
    }
}

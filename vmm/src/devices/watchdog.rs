//! The library's 6300ESB as a function on our PCI bus. All of it but the entries in the timeline is what any VMM needs.

use std::sync::Arc;

use vm_watchdog::i6300esb::{BAR0_SIZE, BarMove, I6300esb, I6300esbStateV1};
use vm_watchdog::{StateError, Stats, Watchdog, WatchdogState};

use crate::devices::pci::PciFunction;
use crate::timeline::{Entry, Timeline};

/// A watchdog on the PCI bus.
pub struct WatchdogFunction {
    watchdog: Watchdog<I6300esb>,
    /// Where BAR0 decodes.
    bar0: Option<u32>,
    timeline: Arc<Timeline>,
    seen: Stats,
}

impl WatchdogFunction {
    /// A function of this watchdog.
    pub fn new(watchdog: Watchdog<I6300esb>, timeline: Arc<Timeline>) -> Self {
        Self { seen: watchdog.stats(), bar0: watchdog.bar0(), watchdog, timeline }
    }

    /// Puts the function into a saved state, with BAR0 where it was.
    pub fn restore(&mut self, state: &WatchdogState<I6300esbStateV1>) -> Result<(), StateError> {
        self.watchdog.restore(state)?;
        self.look();
        Ok(())
    }

    /// Takes over what a reset or a restored state has changed.
    fn look(&mut self) {
        self.bar0 = self.watchdog.bar0();
        self.seen = self.watchdog.stats();
    }

    /// The offset in BAR0 of an access that lies all in it.
    fn decode(&self, address: u64, length: usize) -> Option<u64> {
        let offset = address.checked_sub(self.bar0?.into())?;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= BAR0_SIZE.into()).then_some(offset)
    }

    /// Records in the timeline what a write has changed.
    fn observe(&mut self) {
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
}

impl PciFunction for WatchdogFunction {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.watchdog.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some(BarMove { to, .. }) = self.watchdog.write_config(offset, data) {
            self.bar0 = to;
        }
        self.observe();
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> bool {
        let offset = self.decode(address, data.len());
        if let Some(offset) = offset {
            self.watchdog.read_bar(offset, data);
        }
        offset.is_some()
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> bool {
        let offset = self.decode(address, data.len());
        if let Some(offset) = offset {
            self.watchdog.write_bar(offset, data);
            self.observe();
        }
        offset.is_some()
    }

    /// A platform reset: the device keeps WDT_TIMEOUT, and has the resources that firmware assigns.
    fn reset(&mut self) {
        self.watchdog.reset();
        self.look();
    }
}

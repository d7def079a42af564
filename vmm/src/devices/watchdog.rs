//! The library's 6300ESB as a function on our PCI bus. All of it but the entries in the timeline is what any VMM needs.

use std::sync::Arc;

use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbStateV1};
use vm_watchdog::{StateError, Stats, Watchdog, WatchdogState};

use crate::devices::pci::PciFunction;
use crate::timeline::{Entry, Timeline};

const BASE_ADDRESS_0: u16 = 0x10;
const INTERRUPT_LINE: u16 = 0x3C;

/// A watchdog on the PCI bus.
pub struct WatchdogFunction {
    watchdog: Watchdog<I6300esb>,
    resources: Resources,
    timeline: Arc<Timeline>,
    seen: Stats,
}

/// The resources that the firmware of a PC assigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The address of BAR0.
    pub base: u32,
    /// The interrupt that the interrupt line register names; the ACPI tables name none.
    pub interrupt: Option<u8>,
}

impl WatchdogFunction {
    /// A function with its resources assigned.
    pub fn new(watchdog: Watchdog<I6300esb>, resources: Resources, timeline: Arc<Timeline>) -> Self {
        let function = Self { seen: watchdog.stats(), watchdog, resources, timeline };
        function.assign_resources();
        function
    }

    /// Puts the function into a saved state, its resources included.
    pub fn restore(&mut self, state: &WatchdogState<I6300esbStateV1>) -> Result<(), StateError> {
        self.watchdog.restore(state)?;
        self.seen = self.watchdog.stats();
        Ok(())
    }

    fn assign_resources(&self) {
        self.watchdog.write_config(BASE_ADDRESS_0, &self.resources.base.to_le_bytes());
        if let Some(interrupt) = self.resources.interrupt {
            self.watchdog.write_config(INTERRUPT_LINE, &[interrupt]);
        }
    }

    /// The offset in BAR0 of an access that lies all in it.
    fn decode(&self, address: u64, length: usize) -> Option<u64> {
        let offset = address.checked_sub(self.watchdog.bar0()?.into())?;
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
        self.watchdog.write_config(offset, data);
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

    /// A platform reset: the library keeps WDT_TIMEOUT, and firmware assigns the resources again.
    fn reset(&mut self) {
        self.watchdog.reset();
        self.assign_resources();
        self.seen = self.watchdog.stats();
    }
}

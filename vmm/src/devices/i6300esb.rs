//! The library's 6300ESB as a function on our PCI bus. All of it but the observer is what any VMM needs.

use std::sync::Arc;

use vm_watchdog::i6300esb::{BAR0_SIZE, BarMove, I6300esb};
use vm_watchdog::{Access, Watchdog};

use crate::devices::observer::Observer;
use crate::devices::pci::PciFunction;
use crate::timeline::Timeline;

/// A watchdog on the PCI bus.
pub struct I6300esbFunction {
    watchdog: Watchdog<I6300esb>,
    /// Where BAR0 decodes.
    bar0: Option<u32>,
    observer: Observer,
}

impl I6300esbFunction {
    /// A function of this watchdog, which is new or restored.
    pub fn new(watchdog: Watchdog<I6300esb>, timeline: Arc<Timeline>) -> Self {
        let observer = Observer::new(watchdog.clone().into(), timeline);
        Self { bar0: watchdog.bar0(), watchdog, observer }
    }

    /// The offset in BAR0 of an access that lies all in it.
    fn decode(&self, address: u64, length: usize) -> Option<u64> {
        let offset = address.checked_sub(self.bar0?.into())?;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= BAR0_SIZE.into()).then_some(offset)
    }
}

impl PciFunction for I6300esbFunction {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.watchdog.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some(BarMove { to, .. }) = self.watchdog.write_config(offset, data) {
            self.bar0 = to;
        }
        self.observer.after_write();
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
            // BAR0 has no register that arms or disarms.
            if self.watchdog.write_bar(offset, data) == Access::Heartbeat {
                self.observer.after_write();
            }
        }
        offset.is_some()
    }

    /// A platform reset: the device keeps WDT_TIMEOUT, and has the resources that firmware assigns.
    fn reset(&mut self) {
        self.watchdog.reset();
        self.bar0 = self.watchdog.bar0();
        self.observer.after_reset();
    }
}

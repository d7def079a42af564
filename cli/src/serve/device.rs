//! The watchdog as a device of the vfio-user server. It uses public items of libraries only, because the fuzz target
//! `vfio_user` compiles this file too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_watchdog::Watchdog;
use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb};
use vm_watchdog_vfio_user::{BARS, Intx, Msi, PciDevice};

/// The register of BAR0 in configuration space.
const BAR0: u16 = 0x10;

/// A watchdog, and the line and the message of its interrupt if it has them.
pub struct WatchdogDevice {
    pub watchdog: Watchdog<I6300esb>,
    pub intx: Option<Arc<Intx>>,
    pub msi: Option<Arc<Msi>>,
    /// Whether the guest has reached BAR0 since the last reset, or has asked for its size, as every guest does that boots.
    pub is_in_reach: Arc<AtomicBool>,
}

impl PciDevice for WatchdogDevice {
    fn bar_sizes(&self) -> [u64; BARS] {
        [BAR0_SIZE.into(), 0, 0, 0, 0, 0]
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        self.is_in_reach.store(true, Ordering::Relaxed);
        self.watchdog.read_bar(offset, data);
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        self.is_in_reach.store(true, Ordering::Relaxed);
        self.watchdog.write_bar(offset, data);
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.watchdog.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if (offset, data) == (BAR0, &[0xFF; 4]) {
            self.is_in_reach.store(true, Ordering::Relaxed);
        }
        // The client has BAR0 where its own header says.
        self.watchdog.write_config(offset, data);
    }

    fn reset(&mut self) {
        self.is_in_reach.store(false, Ordering::Relaxed);
        self.watchdog.reset();
    }

    fn intx(&self) -> Option<&Intx> {
        self.intx.as_deref()
    }

    fn msi(&self) -> Option<&Msi> {
        self.msi.as_deref()
    }
}

//! The Intel 6300ESB watchdog: the model, and the methods for a VMM's PCI bus.

pub use vm_watchdog_devices::i6300esb::*;

use crate::state::WatchdogState;
use crate::watchdog::Watchdog;

/// The saved state of a [`Watchdog<I6300esb>`].
pub type I6300esbState = WatchdogState<I6300esbStateV1>;

/// Guest accesses. Every length and offset is valid; data is in guest byte order (little-endian).
impl Watchdog<I6300esb> {
    /// Reads configuration space at `offset` (0 to 255; all ones beyond).
    pub fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.access(|device, now| (device.read_config(offset, data, now), ()));
    }

    /// Writes configuration space at `offset`.
    pub fn write_config(&self, offset: u16, data: &[u8]) {
        self.access(|device, now| (device.write_config(offset, data, now), ()));
    }

    /// Reads BAR0 at `offset` (0 to 15; all ones beyond).
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.access(|device, now| (device.read_bar(offset, data, now), ()));
    }

    /// Writes BAR0 at `offset`.
    pub fn write_bar(&self, offset: u64, data: &[u8]) {
        self.access(|device, now| (device.write_bar(offset, data, now), ()));
    }

    /// The guest-physical address at which BAR0 decodes; `None` while memory decoding is off.
    pub fn bar0(&self) -> Option<u32> {
        self.inspect(I6300esb::bar0)
    }

    /// WDT_TIMEOUT: whether the watchdog has timed out since a guest last cleared the bit. A reset does not clear it.
    pub fn timed_out(&self) -> bool {
        self.inspect(I6300esb::timed_out)
    }
}

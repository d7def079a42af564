//! BAR0 on a `vm-device` bus.

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::i6300esb::I6300esb;
use crate::watchdog::Watchdog;

/// BAR0. Configuration space belongs to the VMM's PCI root, for which `vm-device` has no trait.
impl DeviceMmio for Watchdog<I6300esb> {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read_bar(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write_bar(offset, data);
    }
}

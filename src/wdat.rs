//! The watchdog behind the ACPI watchdog table: the model, its table, and the methods for a VMM's bus.

pub use vm_watchdog_devices::wdat::*;

use crate::state::WatchdogState;
use crate::watchdog::Watchdog;

/// The saved state of a [`Watchdog<Wdat>`].
pub type WdatState = WatchdogState<WdatStateV1>;

/// Guest accesses. Every length and offset is valid; data is in guest byte order (little-endian).
impl Watchdog<Wdat> {
    /// Reads the registers at `offset` (0 to 15; all ones beyond).
    ///
    /// ```
    /// use vm_watchdog::wdat::{REGISTERS_SIZE, RegisterAddress, Wdat, WdatConfig, WdatTable};
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// /// Outside RAM and the windows of PCI.
    /// const REGISTERS: u64 = 0xFED8_0000;
    ///
    /// let config = WdatConfig::default();
    /// let watchdog = Watchdog::builder("wd", Wdat::new(config)).build(|_: &Event| Ok(()))?;
    /// // When the VMM writes its ACPI tables:
    /// let table = WdatTable::new(RegisterAddress::Memory(REGISTERS), &config);
    /// let bytes: &[u8] = table.as_bytes(); // into guest memory, and its address into the XSDT
    /// # assert_eq!(&bytes[..4], b"WDAT");
    ///
    /// // On an access of the guest outside RAM, from any vCPU thread:
    /// let read = |address: u64, data: &mut [u8]| match address.checked_sub(REGISTERS) {
    ///     Some(offset @ 0..REGISTERS_SIZE) => watchdog.read(offset, data),
    ///     _ => data.fill(0xFF),
    /// };
    /// let mut countdown = [0; 4];
    /// read(REGISTERS, &mut countdown);
    /// assert_eq!(u32::from_le_bytes(countdown), 60_000);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.access(|device, now| (device.read(offset, data, now), ()));
    }

    /// Writes the registers at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.access(|device, now| (device.write(offset, data, now), ()));
    }

    /// Whether the watchdog has timed out since a guest last cleared that. A reset does not clear it.
    pub fn timed_out(&self) -> bool {
        self.inspect(Wdat::timed_out)
    }
}

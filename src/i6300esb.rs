//! The Intel 6300ESB watchdog: the model, and the methods for a VMM's PCI bus.

pub use vm_watchdog_devices::i6300esb::*;

use vm_watchdog_devices::Access;

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

    /// Completes a read of configuration space in a VMM that owns the PCI header itself, as crosvm, Firecracker and alioth do
    /// for all their devices.
    ///
    /// Such a VMM answers each read from its header first and passes the bytes here, and passes each write to both. Then the
    /// device has its registers at 60h to 6Bh, shows a pending interrupt in the VMM's status register, and sees what a
    /// guest writes to the command register: INTx disable lowers the interrupt line. Everything else in `data` stays as
    /// the VMM has it. With [MSI](I6300esbConfig::with_msi) the capability and the pointer to it are the device's too, and
    /// the VMM's header has no other capability.
    ///
    /// [`bar0`](Self::bar0) and the [`BarMove`]s mean nothing to this VMM: its header says where BAR0 is. What its header has in the
    /// command register after a reset goes into [`with_command`](I6300esbConfig::with_command).
    ///
    /// ```
    /// use vm_watchdog::i6300esb::{
    ///     BAR0_SIZE, CLASS_CODE, DEVICE_ID, I6300esb, I6300esbConfig, InterruptPin, REVISION_ID, VENDOR_ID,
    /// };
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// # /// A header that only reads.
    /// # struct Header([u8; 0x40]);
    /// # impl Header {
    /// #     fn new(vendor: u16, device: u16, revision: u8, class: u32, bar0_size: u32, pin: u8) -> Self {
    /// #         let mut header = [0; 0x40];
    /// #         header[..2].copy_from_slice(&vendor.to_le_bytes());
    /// #         header[2..4].copy_from_slice(&device.to_le_bytes());
    /// #         header[8..12].copy_from_slice(&(class << 8 | u32::from(revision)).to_le_bytes());
    /// #         assert_eq!(bar0_size, 16);
    /// #         header[0x3D] = pin;
    /// #         Self(header)
    /// #     }
    /// #     fn read(&self, offset: u16, data: &mut [u8]) {
    /// #         let bytes = self.0.iter().chain(std::iter::repeat(&0)).skip(offset.into());
    /// #         data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    /// #     }
    /// #     fn write(&mut self, _offset: u16, _data: &[u8]) {}
    /// # }
    /// struct Function {
    ///     header: Header, // the VMM's own, with BAR0
    ///     watchdog: Watchdog<I6300esb>,
    /// }
    ///
    /// impl Function {
    ///     fn read_config(&self, offset: u16, data: &mut [u8]) {
    ///         self.header.read(offset, data);
    ///         self.watchdog.complete_config_read(offset, data);
    ///     }
    ///
    ///     fn write_config(&mut self, offset: u16, data: &[u8]) {
    ///         self.header.write(offset, data);
    ///         self.watchdog.write_config(offset, data);
    ///     }
    /// }
    ///
    /// let pin = InterruptPin::IntA;
    /// let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(pin));
    /// let mut function = Function {
    ///     header: Header::new(VENDOR_ID, DEVICE_ID, REVISION_ID, CLASS_CODE, BAR0_SIZE, pin.register()),
    ///     watchdog: Watchdog::builder("wd", device).build(|_: &Event| Ok(()))?,
    /// };
    /// let mut id = [0; 4];
    /// function.read_config(0x00, &mut id);
    /// assert_eq!(id, [0x86, 0x80, 0xAB, 0x25]);
    /// function.write_config(0x60, &[0x03, 0x00]);
    /// let mut configuration = [0; 2];
    /// function.read_config(0x60, &mut configuration);
    /// assert_eq!(configuration, [0x03, 0x00]);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn complete_config_read(&self, offset: u16, data: &mut [u8]) {
        self.access(|device, now| (device.complete_config_read(offset, data, now), ()));
    }

    /// Writes configuration space at `offset`, and returns where BAR0 has moved, if the write moves it.
    ///
    /// A VMM that maps BAR0 into an address space, instead of asking [`bar0`](Self::bar0) at each access, follows the
    /// moves. Each begins where the last one ended. A guest that sizes BAR0 (writes all ones, reads, writes the address
    /// back) causes none. A [reset](Watchdog::reset) and a [restore](Watchdog::restore) may move BAR0 too: compare with
    /// [`BarMove::between`]. If several vCPUs can write configuration space at the same time (ECAM), the VMM holds a lock
    /// of its own from the write until the move is applied, so that moves are applied in order.
    ///
    /// ```
    /// use vm_watchdog::i6300esb::{BarMove, I6300esb, I6300esbConfig, MEMORY_ENABLE};
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// let config = I6300esbConfig::default().with_bar0(0xFEB0_0000); // what firmware assigns
    /// let watchdog = Watchdog::builder("wd", I6300esb::new(config)).build(|_: &Event| Ok(()))?;
    /// let mut mapped = watchdog.bar0(); // the VMM's address space
    /// let mut apply = |moved: Option<BarMove>| {
    ///     if let Some(BarMove { from, to, .. }) = moved {
    ///         assert_eq!(from, mapped); // unmap here
    ///         mapped = to; // and map there
    ///     }
    ///     mapped
    /// };
    ///
    /// // The guest enables memory decoding, sizes BAR0, and assigns another address.
    /// assert_eq!(apply(watchdog.write_config(0x04, &MEMORY_ENABLE.to_le_bytes())), Some(0xFEB0_0000));
    /// assert_eq!(apply(watchdog.write_config(0x10, &[0xFF; 4])), Some(0xFEB0_0000));
    /// assert_eq!(apply(watchdog.write_config(0x10, &0xC000_0000_u32.to_le_bytes())), Some(0xC000_0000));
    ///
    /// // The platform resets, with all vCPUs stopped.
    /// let before = watchdog.bar0();
    /// watchdog.reset();
    /// assert_eq!(apply(BarMove::between(before, watchdog.bar0())), None);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn write_config(&self, offset: u16, data: &[u8]) -> Option<BarMove> {
        self.access(|device, now| {
            let before = device.bar0();
            let access = device.write_config(offset, data, now);
            (access, BarMove::between(before, device.bar0()))
        })
    }

    /// Reads BAR0 at `offset` (0 to 15; all ones beyond).
    pub fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.access(|device, now| (device.read_bar(offset, data, now), ()));
    }

    /// Writes BAR0 at `offset`, and returns what the write was: [`Access::Heartbeat`] if it has fed the watchdog.
    pub fn write_bar(&self, offset: u64, data: &[u8]) -> Access {
        match I6300esb::unlock_key(offset, data) {
            Some(key) => self.runtime().access_without_time(|device| device.write_unlock_key(key)),
            None => self.runtime().access(|device, now| (device.write_bar(offset, data, now), ())).0,
        }
    }

    /// The guest-physical address at which BAR0 decodes; `None` while memory decoding is off, or no address is assigned.
    ///
    /// Never the pattern that a guest reads while it sizes BAR0.
    pub fn bar0(&self) -> Option<u32> {
        self.inspect(I6300esb::bar0)
    }

    /// WDT_TIMEOUT: whether the watchdog has timed out since a guest last cleared the bit. A reset does not clear it.
    pub fn timed_out(&self) -> bool {
        self.inspect(I6300esb::timed_out)
    }
}

//! Interrupts by message.

/// An interrupt by message (MSI): a write of `data` to `address` by the device.
///
/// Address and data are what the guest has programmed, and may be anything. A VMM gives them to its interrupt
/// controller (KVM: `KVM_SIGNAL_MSI`, or a route of an irqfd).
///
/// ```
/// use vm_watchdog_devices::MsiMessage;
///
/// let message = MsiMessage::new(0xFEE0_0000, 0x41);
/// assert_eq!((message.address, message.data), (0xFEE0_0000, 0x41));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MsiMessage {
    /// Where the message is written to: the guest-physical address of an interrupt controller.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

impl MsiMessage {
    /// A message.
    pub const fn new(address: u64, data: u32) -> Self {
        Self { address, data }
    }
}

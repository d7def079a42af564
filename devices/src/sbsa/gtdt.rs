//! The watchdog in an ACPI table.

/// The guest-physical addresses of the two frames, each a page of [`FRAME_SIZE`](super::FRAME_SIZE) bytes outside RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameAddresses {
    /// Of the control frame.
    pub control: u64,
    /// Of the refresh frame.
    pub refresh: u64,
}

/// The structure "Arm Generic Watchdog" of the ACPI table GTDT, which describes an [`Sbsa`](super::Sbsa) to the guest.
///
/// A VMM adds the bytes to the platform timer structures of its GTDT, and counts one more there (ACPI 6.5, section
/// 5.2.25). The watchdog is not secure, and its interrupt WS0 is level triggered and active high.
///
/// ```
/// use vm_watchdog_devices::sbsa::{FrameAddresses, GtdtWatchdog};
///
/// let addresses = FrameAddresses { control: 0x0905_0000, refresh: 0x0906_0000 };
/// let structure = GtdtWatchdog::new(addresses, 48);
/// assert_eq!(structure.as_bytes().len(), 28);
/// assert_eq!(structure.as_bytes()[..3], [1, 28, 0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GtdtWatchdog([u8; Self::LENGTH]);

impl GtdtWatchdog {
    /// Length of the structure in bytes.
    pub const LENGTH: usize = 28;
    /// Its type among the platform timer structures.
    const TYPE: u8 = 1;
    /// Level triggered (bit 0 clear), active high (bit 1 clear), not secure (bit 2 clear).
    const FLAGS: u32 = 0;

    /// The structure for frames at these addresses, and WS0 at this GSIV: the number of the interrupt at the GIC, 32 or
    /// more for a shared peripheral interrupt.
    pub fn new(addresses: FrameAddresses, gsiv: u32) -> Self {
        let FrameAddresses { control, refresh } = addresses;
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = Self::TYPE;
        bytes[1..3].copy_from_slice(&(Self::LENGTH as u16).to_le_bytes());
        bytes[4..12].copy_from_slice(&refresh.to_le_bytes());
        bytes[12..20].copy_from_slice(&control.to_le_bytes());
        bytes[20..24].copy_from_slice(&gsiv.to_le_bytes());
        bytes[24..28].copy_from_slice(&Self::FLAGS.to_le_bytes());
        Self(bytes)
    }

    /// The bytes, as they stand in the table.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

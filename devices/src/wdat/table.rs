//! The ACPI table.

use super::spec::{action, instruction, register};
use super::{TimerPeriod, WdatConfig};

/// Where the VMM has placed the registers: 16 bytes from a multiple of four, all of them in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegisterAddress {
    /// At this guest-physical address, outside RAM and the windows of PCI.
    Memory(u64),
    /// At this port of x86. Linux makes no device if a register is at one of the ports 70h to 73h.
    Port(u16),
}

/// The ACPI watchdog action table, `WDAT`, that describes a [`Wdat`](super::Wdat) to the guest.
///
/// A VMM writes the bytes to the guest's memory, and lists their address in the XSDT. A VM has one such table at most.
/// Linux makes no device of it with the parameter `acpi_no_watchdog`, or if the registers are in RAM of its memory map.
///
/// ```
/// use vm_watchdog_devices::wdat::{RegisterAddress, WdatConfig, WdatTable};
///
/// let table = WdatTable::new(RegisterAddress::Memory(0xFED8_0000), &WdatConfig::default());
/// assert_eq!(&table.as_bytes()[..4], b"WDAT");
/// assert_eq!(table.as_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WdatTable([u8; Self::LENGTH]);

/// Length of the header of every ACPI table.
const ACPI_HEADER: usize = 36;
/// Length of the header of a WDAT, which follows.
const HEADER: usize = 32;
const ENTRY: usize = 24;
/// Offsets in the header of every ACPI table.
const CHECKSUM: usize = 9;
const OEM_ID: usize = 10;
const OEM_TABLE_ID: usize = 16;
const OEM_REVISION: usize = 24;

/// Action, instruction, register, value, mask.
const ENTRIES: [(u8, u8, u64, u32, u32); 10] = [
    (action::RESET, instruction::WRITE_VALUE, register::COUNT, 1, 1),
    (action::QUERY_CURRENT_COUNTDOWN, instruction::READ_COUNTDOWN, register::COUNT, 0, !0),
    (action::QUERY_COUNTDOWN, instruction::READ_COUNTDOWN, register::RELOAD, 0, !0),
    (action::SET_COUNTDOWN, instruction::WRITE_COUNTDOWN, register::RELOAD, 0, !0),
    (action::QUERY_RUNNING, instruction::READ_VALUE, register::CONTROL, 1, 1),
    (action::SET_RUNNING, instruction::WRITE_VALUE, register::CONTROL, 1, 1),
    (action::QUERY_STOPPED, instruction::READ_VALUE, register::CONTROL, 0, 1),
    (action::SET_STOPPED, instruction::WRITE_VALUE, register::CONTROL, 0, 1),
    (action::QUERY_STATUS, instruction::READ_VALUE, register::STATUS, 1, 1),
    (action::SET_STATUS, instruction::WRITE_VALUE, register::STATUS, 1, 1),
];

impl WdatTable {
    /// Length of the table in bytes.
    pub const LENGTH: usize = ACPI_HEADER + HEADER + ENTRIES.len() * ENTRY;

    /// The table for registers at this address, of a device with this configuration.
    pub fn new(address: RegisterAddress, config: &WdatConfig) -> Self {
        let mut table = Self([0; Self::LENGTH]);
        let mut rest = table.0.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            let (place, after) = core::mem::take(&mut rest).split_at_mut(bytes.len());
            place.copy_from_slice(bytes);
            rest = after;
        };
        put(b"WDAT");
        put(&(Self::LENGTH as u32).to_le_bytes());
        put(&[1, 0]); // Revision, and the checksum, which comes last.
        put(b"VMWDOG");
        put(b"VMWDWDAT");
        put(&1u32.to_le_bytes()); // OEM revision
        put(b"VMWD"); // Creator, and its revision.
        put(&1u32.to_le_bytes());

        let period: TimerPeriod = config.period;
        put(&(HEADER as u32).to_le_bytes());
        // It is no PCI device. Linux makes no device for the segments 0 and FFFFh.
        put(&0x00FF_u16.to_le_bytes());
        put(&[0xFF, 0xFF, 0xFF, 0, 0, 0]);
        put(&period.as_millis().to_le_bytes());
        put(&period.max_count().to_le_bytes());
        put(&period.min_count().to_le_bytes());
        put(&[0x81, 0, 0, 0]); // Enabled; stops while the guest sleeps.
        put(&(ENTRIES.len() as u32).to_le_bytes());

        let (space, base) = match address {
            RegisterAddress::Memory(address) => (0, address),
            RegisterAddress::Port(port) => (1, port.into()),
        };
        for (action, instruction, offset, value, mask) in ENTRIES {
            put(&[action, instruction, 0, 0]);
            put(&[space, 32, 0, 3]); // Address space, 32 bits from bit 0, access by dwords.
            put(&base.wrapping_add(offset).to_le_bytes());
            put(&value.to_le_bytes());
            put(&mask.to_le_bytes());
        }
        table.with_checksum()
    }

    /// The same table with the identification of the VMM, for guests that know tables by it.
    pub fn with_oem(mut self, id: [u8; 6], table_id: [u8; 8], revision: u32) -> Self {
        self.0[OEM_ID..][..6].copy_from_slice(&id);
        self.0[OEM_TABLE_ID..][..8].copy_from_slice(&table_id);
        self.0[OEM_REVISION..][..4].copy_from_slice(&revision.to_le_bytes());
        self.with_checksum()
    }

    /// The bytes, as they stand in the guest's memory.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn with_checksum(mut self) -> Self {
        self.0[CHECKSUM] = 0;
        let sum = self.0.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.0[CHECKSUM] = sum.wrapping_neg();
        self
    }
}

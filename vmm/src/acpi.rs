//! The ACPI tables of a Linux guest: enough for its power button, for powering off, for finding the PCI bus, and for the
//! watchdog of a table, if it has one.
//!
//! There is no MADT, so that Linux uses the interrupt controllers and interrupts of a PC without ACPI.
//! Source: ACPI Specification 6.5, chapter 5.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vm_watchdog::wdat::WdatTable;

use crate::devices::pci::{CONFIG_ADDRESS, CONFIG_DATA_END};
use crate::devices::power;
use crate::memory::{GuestMemory, MMIO_HOLE};

/// Where the root pointer lies: at the start of the range in which guests look for it.
pub const ROOT_POINTER: u64 = 0xE_0000;
/// The tables follow, each aligned as the FACS has to be, whose alignment is the largest.
const FIRST_TABLE: u64 = ROOT_POINTER + ALIGNMENT;
const ALIGNMENT: u64 = 64;

const OEM: [u8; 6] = *b"VMWDOG";
const OEM_TABLE: [u8; 8] = *b"VMWATCHD";
const OEM_REVISION: u32 = 1;
const DSDT_HEADER: u32 = 36;
const DSDT_REVISION: u8 = 2;

/// Boot architecture flags: no VGA, no real-time clock, and, by bit 1 that is clear, no keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
const EVENT_BLOCK_LENGTH: u8 = 4;
const CONTROL_BLOCK_LENGTH: u8 = 2;
/// The end of the addresses that PCI devices may decode: the I/O APIC comes next.
const PCI_MEMORY_END: u32 = 0xFEBF_FFFF;

/// Writes the tables into memory below 1 MiB that a PC reserves for firmware.
pub fn write(memory: &GuestMemory, wdat: Option<&WdatTable>) -> Result<(), GuestMemoryError> {
    let mut next = FIRST_TABLE;
    let mut place = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = next;
        next = (address + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        memory.write_slice(&bytes, GuestAddress(address)).map(|()| address)
    };
    let facs = place(&FACS::new())?;
    let dsdt = place(&Table(dsdt().as_slice()))?;
    // All of this lies below 1 MiB.
    let fadt = place(&fadt(facs as u32, dsdt as u32).finalize())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    if let Some(wdat) = wdat {
        xsdt.add_entry(place(&Table(wdat.as_bytes()))?);
    }
    let xsdt = place(&xsdt)?;
    let mut root_pointer = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root_pointer);
    memory.write_slice(&root_pointer, GuestAddress(ROOT_POINTER))
}

/// The fixed hardware: a power button that the PM1 registers show.
fn fadt(facs: u32, dsdt: u32) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION);
    fadt.sci_int = u16::from(power::INTERRUPT).into();
    fadt.pm1a_evt_blk = u32::from(power::EVENT_BLOCK).into();
    fadt.pm1_evt_len = EVENT_BLOCK_LENGTH;
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL_BLOCK).into();
    fadt.pm1_cnt_len = CONTROL_BLOCK_LENGTH;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    // The sleep button and the clock's wake-up are not fixed hardware; for the power button, no flag means that it is.
    let fadt = fadt.flag(Flags::Wbinvd).flag(Flags::SlpButton).flag(Flags::FixRtc);
    fadt.firmware_ctrl_32(facs).dsdt_32(dsdt)
}

/// The sleep type of S5, and the PCI bus with what it decodes.
fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", DSDT_HEADER, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let off = power::SLEEP_TYPE_OFF;
    Name::new(Path::new("_S5_"), &Package::new(vec![&off, &off, &off, &off])).to_aml_bytes(&mut dsdt);

    let buses = AddressSpace::new_bus_number(0_u16, 0);
    let config = IO::new(CONFIG_ADDRESS, CONFIG_ADDRESS, 1, (CONFIG_DATA_END - CONFIG_ADDRESS + 1) as u8);
    let ports_below = AddressSpace::new_io(0_u16, CONFIG_ADDRESS - 1, None);
    let ports_above = AddressSpace::new_io(CONFIG_DATA_END + 1, u16::MAX, None);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(uncached, true, MMIO_HOLE as u32, PCI_MEMORY_END, None);
    let resources = ResourceTemplate::new(vec![&buses, &config, &ports_below, &ports_above, &memory]);
    let name = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let resources = Name::new(Path::new("_CRS"), &resources);
    let bus = Device::new(Path::new("PCI0"), vec![&name, &resources]);
    Scope::new(Path::new("\\_SB_"), vec![&bus]).to_aml_bytes(&mut dsdt);
    dsdt.update_checksum();
    dsdt
}

/// A table in its final form, as bytes.
struct Table<'a>(&'a [u8]);

impl Aml for Table<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

#[cfg(test)]
mod tests {
    use vm_watchdog::wdat::WdatConfig;

    use super::*;
    use crate::devices::wdat;
    use crate::memory::allocate;
    use crate::memory_size::MemorySize;

    fn tables(wdat: Option<&WdatTable>) -> GuestMemory {
        let memory = allocate(MemorySize::mib(16)).unwrap();
        write(&memory, wdat).unwrap();
        memory
    }

    /// A table, checked as a guest would.
    fn table(memory: &GuestMemory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length.try_into().unwrap()];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        assert_eq!(&bytes[..4], signature);
        if signature != b"FACS" {
            assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        }
        bytes
    }

    fn long(bytes: &[u8], offset: usize) -> u64 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap()).into()
    }

    #[test]
    fn the_root_pointer_leads_to_the_power_button() {
        let memory = tables(None);
        let mut root = [0_u8; 36];
        memory.read_slice(&mut root, GuestAddress(0xE_0000)).unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!(root[..20].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(root.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&memory, long(&root, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 8, "one table");
        let fadt = table(&memory, long(&xsdt, 36), b"FACP");
        assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9, "SCI_INT");
        assert_eq!((long(&fadt, 56), fadt[88]), (0x600, 4), "PM1a_EVT_BLK");
        assert_eq!((long(&fadt, 64), fadt[89]), (0x604, 2), "PM1a_CNT_BLK");
        assert_eq!(long(&fadt, 48), 0, "SMI_CMD: always in ACPI mode");
        assert_eq!(long(&fadt, 112) & 1 << 4, 0, "PWR_BUTTON: fixed hardware");
        assert_eq!(long(&fadt, 112) & 1 << 20, 0, "HW_REDUCED_ACPI");
        let facs = long(&fadt, 36);
        assert_eq!((facs % 64, table(&memory, facs, b"FACS").len()), (0, 64));
        let dsdt = table(&memory, long(&fadt, 40), b"DSDT");
        let soft_off = [b"\x08_S5_\x12".as_slice(), &[0x06, 0x04, 0x00, 0x00, 0x00, 0x00]].concat();
        assert!(dsdt.windows(soft_off.len()).any(|window| window == soft_off), "{dsdt:x?}");
        assert!(dsdt.windows(4).any(|window| window == b"PCI0"));
    }

    #[test]
    fn a_watchdog_has_its_table_with_its_ports() {
        let expected = wdat::table(&WdatConfig::default());
        let memory = tables(Some(&expected));
        let xsdt: u64 = memory.read_obj(GuestAddress(ROOT_POINTER + 24)).unwrap();
        let xsdt = table(&memory, xsdt, b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8, "two tables");
        table(&memory, long(&xsdt, 36), b"FACP");
        let found = table(&memory, long(&xsdt, 44), b"WDAT");
        assert_eq!(found, expected.as_bytes());
        // The first entry: the heartbeat.
        assert_eq!((found[68], found[72], long(&found, 76)), (1, 1, 0x624), "action, I/O space, port");
    }

    #[test]
    fn the_tables_lie_outside_the_memory_map() {
        let memory = tables(Some(&wdat::table(&WdatConfig::default())));
        for address in (0..0xE_0000).chain(0x10_0000..0x20_0000).step_by(8) {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(address)).unwrap(), 0, "{address:#x}");
        }
    }
}

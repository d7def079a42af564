//! The watchdog in a GTDT as ACPICA's disassembler reads it: Debian's `iasl -d`.

use vm_watchdog::sbsa::{FrameAddresses, GtdtWatchdog};
use vm_watchdog_test_support::acpica::Acpica;
use vm_watchdog_test_support::skip;

/// Length of the GTDT before the platform timer structures, in revision 2 (ACPI 5.1).
const HEADER: usize = 96;

/// A GTDT with this watchdog, and timers that no test looks at.
fn table(watchdog: &GtdtWatchdog) -> Vec<u8> {
    let length = HEADER + GtdtWatchdog::LENGTH;
    let mut bytes = b"GTDT".to_vec();
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend([2, 0]);
    bytes.extend(b"VMWDOGVMWDGTDT");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"VMWD");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes()); // Counter control block: none.
    bytes.extend(0u32.to_le_bytes());
    for interrupt in [29u32, 30, 27, 26] {
        bytes.extend(interrupt.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes.extend(u64::MAX.to_le_bytes()); // Counter read block: none.
    bytes.extend(1u32.to_le_bytes()); // Platform timers, and where they are.
    bytes.extend((HEADER as u32).to_le_bytes());
    assert_eq!(bytes.len(), HEADER);
    bytes.extend(watchdog.as_bytes());
    bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    bytes
}

#[test]
fn the_disassembler_reads_the_fields_without_error_or_warning() {
    let iasl = match Acpica::fetch() {
        Ok(iasl) => iasl,
        Err(why) => return skip::loudly(&skip::this_test(), &why),
    };
    let addresses = FrameAddresses { control: 0x0905_0000, refresh: 0x2_0906_0000 };
    let bytes = table(&GtdtWatchdog::new(addresses, 48));
    let read = iasl.disassemble("gtdt", &bytes).unwrap();
    assert_eq!(read.complaints, [""; 0]);
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text:?} is no number"));
    let all = |name: &str| read.all(name).into_iter().map(number).collect::<Vec<_>>();
    assert_eq!(all("Platform Timer Count"), [1]);
    assert_eq!((all("Subtable Type"), all("Length")), (vec![1], vec![28]));
    assert_eq!(all("Refresh Frame Address"), [0x2_0906_0000]);
    assert_eq!(all("Control Frame Address"), [0x0905_0000]);
    assert_eq!(all("Timer Interrupt"), [48]);
    assert_eq!(all("Timer Flags (decoded below)"), [0], "level triggered, active high, not secure");
    // It does complain of a table that is cut off.
    assert!(!iasl.disassemble("gtdt", &bytes[..bytes.len() - 4]).unwrap().complaints.is_empty());
}

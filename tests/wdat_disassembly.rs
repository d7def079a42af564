//! The ACPI watchdog table as ACPICA's disassembler reads it: Debian's `iasl -d`.

use vm_watchdog::wdat::{RegisterAddress, TimerPeriod, WdatConfig, WdatTable};
use vm_watchdog_test_support::acpica::Acpica;
use vm_watchdog_test_support::skip;

/// Action, instruction, offset of the register, value, mask.
const ENTRIES: [[u64; 5]; 10] = [
    [0x01, 2, 0x4, 1, 1],
    [0x04, 1, 0x4, 0, 0xFFFF_FFFF],
    [0x05, 1, 0x0, 0, 0xFFFF_FFFF],
    [0x06, 3, 0x0, 0, 0xFFFF_FFFF],
    [0x08, 0, 0x8, 1, 1],
    [0x09, 2, 0x8, 1, 1],
    [0x0A, 0, 0x8, 0, 1],
    [0x0B, 2, 0x8, 0, 1],
    [0x20, 0, 0xC, 1, 1],
    [0x21, 2, 0xC, 1, 1],
];

#[test]
fn the_disassembler_reads_the_fields_without_error_or_warning() {
    let iasl = match Acpica::fetch() {
        Ok(iasl) => iasl,
        Err(why) => return skip::loudly(&skip::this_test(), &why),
    };
    let seconds = WdatConfig::default().with_period(TimerPeriod::OneSecond);
    // The registers; their address space and address; period, maximum, minimum.
    let cases = [
        (RegisterAddress::Port(0x620), WdatConfig::default(), 1, 0x620, [1, 0xFF_FFFF, 1_000]),
        (RegisterAddress::Memory(0x2_0900_0000), seconds, 0, 0x2_0900_0000, [1_000, 65_535, 5]),
    ];
    for (address, config, space, base, limits) in cases {
        let table = WdatTable::new(address, &config).with_oem(*b"CLOUDH", *b"CHWDAT  ", 7);
        let read = iasl.disassemble("wdat", table.as_bytes()).unwrap();
        assert_eq!(read.complaints, [""; 0], "{address:?}");

        let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text:?} is no number"));
        let all = |name: &str| read.all(name).into_iter().map(number).collect::<Vec<_>>();
        assert_eq!(read.all("Signature"), ["WDAT"]);
        assert_eq!(read.all("Oem ID"), ["CLOUDH"]);
        assert_eq!(all("Table Length"), [308]);
        assert_eq!(all("Header Length"), [0x20]);
        assert_eq!([all("PCI Segment"), all("PCI Bus"), all("PCI Device"), all("PCI Function")].concat(), [0xFF; 4]);
        assert_eq!([all("Timer Period"), all("Max Count"), all("Min Count")].concat(), limits, "{address:?}");
        assert_eq!(all("Flags (decoded below)"), [0x81], "enabled, stopped in sleep");
        assert_eq!(all("Watchdog Entry Count"), [10]);
        let column = |index: usize| ENTRIES.map(|entry| entry[index]);
        assert_eq!(all("Watchdog Action"), column(0));
        assert_eq!(all("Instruction"), column(1));
        assert_eq!(all("Address"), column(2).map(|offset| base + offset));
        assert_eq!((all("Value"), all("Register Mask")), (column(3).to_vec(), column(4).to_vec()));
        assert_eq!((all("Space ID"), all("Bit Width")), (vec![space; 10], vec![32; 10]));
        assert_eq!((all("Bit Offset"), all("Encoded Access Width")), (vec![0; 10], vec![3; 10]), "dwords");
    }
    // It does complain of a table that is wrong.
    let mut damaged = WdatTable::new(RegisterAddress::Port(0x620), &WdatConfig::default()).as_bytes().to_vec();
    damaged[9] ^= 1;
    assert!(!iasl.disassemble("wdat", &damaged).unwrap().complaints.is_empty());
    assert!(!iasl.disassemble("wdat", &damaged[..300]).unwrap().complaints.is_empty());
}

//! The ACPI table of the watchdog, byte by byte.

use vm_watchdog_devices::wdat::{RegisterAddress, TimerPeriod, WdatConfig, WdatTable};

/// Action, instruction, register, value, mask.
const ENTRIES: [(u8, u8, u64, u32, u32); 10] = [
    (0x01, 2, 0x4, 1, 1),
    (0x04, 1, 0x4, 0, 0xFFFF_FFFF),
    (0x05, 1, 0x0, 0, 0xFFFF_FFFF),
    (0x06, 3, 0x0, 0, 0xFFFF_FFFF),
    (0x08, 0, 0x8, 1, 1),
    (0x09, 2, 0x8, 1, 1),
    (0x0A, 0, 0x8, 0, 1),
    (0x0B, 2, 0x8, 0, 1),
    (0x20, 0, 0xC, 1, 1),
    (0x21, 2, 0xC, 1, 1),
];

/// The table as the specification has it, without its checksum.
fn expected(space: u8, base: u64, period: u32, max: u32, min: u32) -> Vec<u8> {
    let mut bytes = b"WDAT".to_vec();
    bytes.extend(308u32.to_le_bytes());
    bytes.extend([1, 0]);
    bytes.extend(b"VMWDOGVMWDWDAT");
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(b"VMWD");
    bytes.extend([1, 0, 0, 0]);
    bytes.extend([0x20, 0, 0, 0, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0]);
    for number in [period, max, min] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0x81, 0, 0, 0, 10, 0, 0, 0]);
    for (action, instruction, register, value, mask) in ENTRIES {
        bytes.extend([action, instruction, 0, 0, space, 32, 0, 3]);
        bytes.extend((base + register).to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes.extend(mask.to_le_bytes());
    }
    bytes
}

#[test]
fn every_byte_is_that_of_the_specification() {
    let seconds = WdatConfig::default().with_period(TimerPeriod::OneSecond);
    let cases = [
        (RegisterAddress::Memory(0xFED8_0000), WdatConfig::default(), expected(0, 0xFED8_0000, 1, 0xFF_FFFF, 1000)),
        (RegisterAddress::Memory(0x2_0900_0000), WdatConfig::default(), expected(0, 0x2_0900_0000, 1, 0xFF_FFFF, 1000)),
        (RegisterAddress::Port(0x620), seconds, expected(1, 0x620, 1000, 65_535, 5)),
    ];
    for (address, config, expected) in cases {
        let table = WdatTable::new(address, &config);
        let mut bytes = table.as_bytes().to_vec();
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum of {address:?}");
        bytes[9] = 0;
        assert_eq!(bytes, expected, "{address:?}");
    }
}

#[test]
fn a_vmm_has_its_own_identification() {
    let table = WdatTable::new(RegisterAddress::Port(0x620), &WdatConfig::default());
    let own = table.with_oem(*b"CLOUDH", *b"CHWDAT  ", 7);
    let bytes = own.as_bytes();
    assert_eq!(&bytes[10..28], b"CLOUDHCHWDAT  \x07\0\0\0");
    assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(bytes[28..], table.as_bytes()[28..]);
}

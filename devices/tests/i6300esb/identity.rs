//! The device as a PCI core sees it: identity, header, BAR sizing, and reads of every width at every offset.

use vm_watchdog_devices::i6300esb::{I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Model, VmInstant};

use crate::guest::{Guest, KHZ, PRELOAD1, SECOND};

#[test]
fn the_function_is_an_intel_6300esb_watchdog() {
    let mut guest = Guest::new();
    assert_eq!(guest.config16(0x00), 0x8086, "vendor");
    assert_eq!(guest.config16(0x02), 0x25AB, "device");
    assert_eq!(guest.config8(0x08), 0x00, "revision");
    assert_eq!(guest.read_config(0x09), [0x00, 0x80, 0x08], "programming interface, subclass, class");
    assert_eq!(guest.config8(0x0E), 0x00, "header type: general, one function");
    assert_eq!(guest.config32(0x10), 0x0000_0000, "BAR0: 32-bit memory, not prefetchable, unassigned");
    assert_eq!(guest.config16(0x2C), 0x0000, "subsystem vendor");
    assert_eq!(guest.config16(0x2E), 0x0000, "subsystem");
    assert_eq!(guest.config8(0x34), 0x00, "no capabilities");
    assert_eq!(guest.config8(0x3C), 0x00, "interrupt line");
    assert_eq!(guest.config8(0x3D), 0x00, "no interrupt pin");
    assert_eq!(guest.config16(0x04), 0x0000, "command");
    assert_eq!(guest.config16(0x06), 0x0000, "status: no capability list, nothing pending");
}

#[test]
fn the_vmm_sets_subsystem_ids_and_interrupt_pin() {
    let config = I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_subsystem(0x1AF4, 0x1100);
    let mut guest = Guest::with_config(config);
    assert_eq!(guest.config32(0x2C), 0x1100_1AF4);
    assert_eq!(guest.config8(0x3D), 0x01);
    guest.device.reset();
    assert_eq!(guest.config32(0x2C), 0x1100_1AF4);
    assert_eq!(guest.config8(0x3D), 0x01);
}

#[test]
fn bar0_sizes_as_sixteen_bytes_of_memory() {
    let mut guest = Guest::new();
    assert_eq!(guest.set_config32(0x10, 0xFFFF_FFFF), Access::Accepted);
    assert_eq!(guest.config32(0x10), 0xFFFF_FFF0);
    guest.set_config32(0x10, 0xFEBF_100F);
    assert_eq!(guest.config32(0x10), 0xFEBF_1000, "the type bits are read-only");
    for lane in 0..4 {
        guest.set_config8(0x10 + lane, 0xFF);
    }
    assert_eq!(guest.config32(0x10), 0xFFFF_FFF0, "byte by byte");
    guest.set_config16(0x12, 0xE000);
    assert_eq!(guest.config32(0x10), 0xE000_FFF0, "half by half");
}

#[test]
fn the_other_bars_and_the_rom_do_not_exist() {
    for register in [0x14, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x30] {
        let mut guest = Guest::new();
        assert_eq!(guest.set_config32(register, 0xFFFF_FFFF), Access::Ignored);
        assert_eq!(guest.config32(register), 0, "{register:x}");
    }
}

#[test]
fn bar0_decodes_while_memory_is_enabled() {
    let mut guest = Guest::new();
    guest.set_config32(0x10, 0xFEBF_1000);
    assert_eq!(guest.device.bar0(), None);
    guest.set_config16(0x04, 0x0002);
    assert_eq!(guest.device.bar0(), Some(0xFEBF_1000));
    guest.set_config32(0x10, 0xFEBF_2000);
    assert_eq!(guest.device.bar0(), Some(0xFEBF_2000));
    guest.set_config16(0x04, 0x0505);
    assert_eq!(guest.device.bar0(), None);
}

#[test]
fn header_registers_keep_their_writable_bits_and_reset_clears_them() {
    // Offset and writable bits; everything else in the header is read-only.
    let writable = [
        (0x04, 0x07),
        (0x05, 0x05),
        (0x0C, 0xFF),
        (0x0D, 0xFF),
        (0x10, 0xF0),
        (0x11, 0xFF),
        (0x12, 0xFF),
        (0x13, 0xFF),
        (0x3C, 0xFF),
    ];
    for offset in 0x00..0x40 {
        let mut guest = Guest::new();
        let at_reset = guest.config8(offset);
        guest.set_config8(offset, 0xFF);
        let mask = writable.iter().find(|&&(register, _)| register == offset).map_or(0, |&(_, mask)| mask);
        assert_eq!(guest.config8(offset), at_reset | mask, "{offset:x}");
        guest.set_config8(offset, 0x00);
        assert_eq!(guest.config8(offset), at_reset & !mask, "{offset:x}");
        guest.set_config8(offset, 0xFF);
        guest.device.reset();
        assert_eq!(guest.config8(offset), at_reset, "{offset:x} after a reset");
    }
}

#[test]
fn writes_to_read_only_registers_count_as_ignored() {
    let ignored =
        [0x00, 0x02, 0x06, 0x07, 0x08, 0x0B, 0x0E, 0x0F, 0x14, 0x2C, 0x34, 0x3D, 0x3E, 0x40, 0x62, 0x64, 0x69];
    for offset in ignored {
        assert_eq!(Guest::new().set_config8(offset, 0xFF), Access::Ignored, "{offset:x}");
    }
    let accepted = [0x04, 0x0C, 0x0D, 0x10, 0x13, 0x3C, 0x60, 0x68];
    for offset in accepted {
        assert_eq!(Guest::new().set_config8(offset, 0xFF), Access::Accepted, "{offset:x}");
    }
    assert_eq!(Guest::new().set_config32(0x3E, 0xFFFF_FFFF), Access::Ignored, "beside a writable register");
    assert_eq!(Guest::new().set_config32(0x0D, 0xFFFF_FFFF), Access::Accepted, "one writable byte is enough");
}

/// A device in its second stage with a non-zero value in every register.
fn lively() -> Guest {
    let mut guest = Guest::with_config(
        I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_subsystem(0x1234, 0x5678),
    );
    guest.enumerate();
    guest.set_config32(0x0C, 0x0000_4010);
    guest.set_config8(0x3C, 0x0B);
    guest.preload(1, 1);
    guest.enable();
    guest.sleep(SECOND);
    guest.preload(0x1_2345, 0xA_BCDE);
    guest.reload();
    guest.sleep(0x1_2345 * KHZ + SECOND);
    guest
}

#[test]
fn a_read_of_any_width_returns_the_bytes_that_it_covers() {
    let mut guest = lively();
    let now = guest.at();
    let config: Vec<u8> = (0..0x100).map(|offset| guest.config8(offset)).collect();
    let bar: Vec<u8> = (0..0x10).map(|offset| guest.read_bar::<1>(offset)[0]).collect();
    assert_eq!(config[0x64..0x68], (0xA_BCDE_u32 - 1018).to_le_bytes(), "the live counter");
    assert_eq!(bar[0x04..], [0xDE, 0xBC, 0x0A, 0, 1, 0, 0, 0, 0, 0x12, 0, 0]);

    for length in 0..=9 {
        for offset in 0..0x110_u16 {
            let mut data = vec![0x5A; length];
            let access = guest.device.read_config(offset, &mut data, now);
            let expected = (0..length).map(|i| config.get(usize::from(offset) + i).copied().unwrap_or(0xFF));
            assert!(data.iter().copied().eq(expected), "{length} bytes of configuration space at {offset:x}");
            assert_eq!(access == Access::Ignored, length == 0 || offset >= 0x100);
        }
        for offset in 0..0x20_u16 {
            let mut data = vec![0x5A; length];
            let access = guest.device.read_bar(offset.into(), &mut data, now);
            let expected = (0..length).map(|i| bar.get(usize::from(offset) + i).copied().unwrap_or(0xFF));
            assert!(data.iter().copied().eq(expected), "{length} bytes of BAR0 at {offset:x}");
            assert_eq!(access == Access::Ignored, length == 0 || offset >= 0x10);
        }
    }
}

#[test]
fn a_read_changes_nothing() {
    let mut guest = lively();
    let before = format!("{:?}", guest.device);
    let now = guest.at();
    for offset in 0..0x110_u16 {
        guest.device.read_config(offset, &mut [0; 4], now);
        guest.device.read_bar(offset.into(), &mut [0; 4], now);
    }
    assert_eq!(format!("{:?}", guest.device), before);

    // A read does not use up an unlock and does not interrupt the unlock sequence.
    guest.device.write_bar(0x0C, &[0x80], now);
    guest.device.read_bar(0x0C, &mut [0; 2], now);
    guest.device.write_bar(0x0C, &[0x86], now);
    guest.device.read_bar(0x0C, &mut [0; 2], now);
    guest.device.read_config(0x68, &mut [0; 1], now);
    guest.set_bar32(PRELOAD1, 7);
    assert_eq!(guest.bar32(PRELOAD1), 7);
}

#[test]
fn a_configuration_write_of_any_width_equals_its_byte_writes() {
    let bytes: Vec<u8> = (0..9).map(|i: u8| i.wrapping_mul(0x3B) ^ 0xC6).collect();
    let image = |guest: &mut Guest| {
        let config: Vec<u8> = (0..0x100).map(|offset| guest.config8(offset)).collect();
        (config, guest.device.poll_at(), guest.device.interrupt_level(), guest.device.bar0())
    };
    for flip in [0x00, 0xFF] {
        let bytes: Vec<u8> = bytes.iter().map(|byte| byte ^ flip).collect();
        for length in 0..=bytes.len() {
            for offset in 0..0x104_u16 {
                let (mut whole, mut split) = (lively(), lively());
                let access = whole.write_config(offset, &bytes[..length]);
                let accesses = (offset..).zip(&bytes[..length]).map(|(at, &byte)| split.set_config8(at, byte));
                assert_eq!(access, accesses.max().unwrap_or(Access::Ignored), "{length} bytes at {offset:x}");
                assert_eq!(image(&mut whole), image(&mut split), "{length} bytes at {offset:x}");
            }
        }
    }
}

#[test]
fn accesses_of_any_length_at_any_offset_are_safe() {
    let offsets = [0, 1, 3, 7, 12, 13, 15, 16, 17, 0xFF, 0x100, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF];
    let far = [1 << 16, 1 << 32, (1 << 32) + 0x0C, u64::MAX - 15, u64::MAX - 8, u64::MAX - 3, u64::MAX - 1, u64::MAX];
    for length in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 64, 255, 256, 257, 70_000] {
        for fill in [0x00, 0x80, 0x86, 0xFF] {
            let mut guest = lively();
            let now = guest.at();
            let mut data = vec![fill; length];
            for offset in offsets {
                guest.device.write_config(offset, &data, now);
                guest.device.read_config(offset, &mut data, now);
                if offset >= 0x100 {
                    assert!(data.iter().all(|&byte| byte == 0xFF));
                }
                data.fill(fill);
            }
            for offset in offsets.map(u64::from).into_iter().chain(far) {
                guest.device.write_bar(offset, &data, now);
                guest.device.read_bar(offset, &mut data, now);
                if offset >= 0x10 {
                    assert!(data.iter().all(|&byte| byte == 0xFF));
                    assert_eq!(guest.device.write_bar(offset, &data, now), Access::Ignored);
                }
                data.fill(fill);
            }
        }
    }
}

#[test]
fn an_access_outside_bar0_changes_no_register() {
    for offset in [0x10, 0x1C, 0x10C, (1 << 32) + 0x0C, u64::MAX - 3] {
        let mut guest = Guest::new();
        guest.set_bar16(offset, 0x80);
        guest.set_bar16(offset, 0x86);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Ignored, "keys at {offset:x} do not unlock");

        guest.unlock();
        assert_eq!(guest.set_bar32(offset, 7), Access::Ignored);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Accepted, "a write at {offset:x} does not use the unlock up");
    }
    assert_eq!(Guest::new().device.read_bar(0x10, &mut [0; 4], VmInstant::ZERO), Access::Ignored);
}

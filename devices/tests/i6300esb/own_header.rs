//! A VMM that owns the PCI header, and a guest that cannot tell.

use vm_watchdog_devices::Model;
use vm_watchdog_devices::i6300esb::{
    BAR0_SIZE, CLASS_CODE, DEVICE_ID, I6300esbConfig, InterruptPin, MSI_CAPABILITY, REVISION_ID, VENDOR_ID,
};

use crate::guest::{CONFIGURATION, GINTSR, Guest, KHZ, LOCK};

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;

/// A VMM that has the header in 64 bytes of its own, as it has for each of its devices.
struct Vmm {
    header: [u8; 0x40],
    guest: Guest,
}

impl Vmm {
    fn new(config: I6300esbConfig) -> Self {
        let mut header = [0; 0x40];
        header[0x00..0x02].copy_from_slice(&VENDOR_ID.to_le_bytes());
        header[0x02..0x04].copy_from_slice(&DEVICE_ID.to_le_bytes());
        header[0x08..0x0C].copy_from_slice(&(CLASS_CODE << 8 | u32::from(REVISION_ID)).to_le_bytes());
        header[0x3D] = config.interrupt_pin.register();
        Self { header, guest: Guest::with_config(config) }
    }

    fn read<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        let own = self.header.iter().copied().chain(std::iter::repeat(0)).skip(offset.into());
        data.iter_mut().zip(own).for_each(|(to, from)| *to = from);
        let now = self.guest.at();
        self.guest.device.complete_config_read(offset, &mut data, now);
        data
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        let writable = |offset| match offset {
            0x04 => 0x07,
            0x05 => 0x05,
            0x0C | 0x0D | 0x11..=0x13 | 0x3C => 0xFF,
            0x10 => !(BAR0_SIZE - 1) as u8,
            _ => 0x00,
        };
        for (offset, byte) in (usize::from(offset)..0x40).zip(data) {
            self.header[offset] = self.header[offset] & !writable(offset) | byte & writable(offset);
        }
        self.guest.write_config(offset, data);
    }

    /// Arms the watchdog and lets its first stage end.
    fn interrupt(&mut self) {
        self.guest.preload(512, 512);
        self.write(LOCK, &[0x02]);
        self.guest.sleep(512 * KHZ);
    }
}

fn configs() -> [I6300esbConfig; 4] {
    let with_pin = I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA);
    [I6300esbConfig::default(), with_pin, with_pin.with_msi(), I6300esbConfig::default().with_msi()]
}

/// Byte by byte, so that the test says nothing of widths.
#[test]
fn a_guest_sees_the_function_that_it_sees_of_a_device_with_a_header() {
    for config in configs() {
        let mut vmm = Vmm::new(config);
        let mut whole = Guest::with_config(config);
        let image = |vmm: &mut Vmm, whole: &mut Guest, when: &str| {
            for offset in 0..0x100 {
                assert_eq!(vmm.read(offset), [whole.config8(offset)], "{config:?}: {offset:x} {when}");
            }
        };
        image(&mut vmm, &mut whole, "at power-on");
        for offset in 0..0x100 {
            vmm.write(offset, &[0xFF]);
            whole.set_config8(offset, 0xFF);
        }
        image(&mut vmm, &mut whole, "with all bits set");
        for (offset, byte) in [(0x04, 0x06), (0x05, 0x00), (0x60, 0x00), (0x43, 0x00), (0x42, 0x00)] {
            vmm.write(offset, &[byte]);
            whole.set_config8(offset, byte);
        }
        vmm.guest.reload();
        whole.reload();
        vmm.guest.sleep(0xF_FFFF * KHZ);
        whole.sleep(0xF_FFFF * KHZ);
        image(&mut vmm, &mut whole, "after stage 1");
    }
}

#[test]
fn reads_of_every_width_complete_what_the_header_answers() {
    for config in configs() {
        let mut vmm = Vmm::new(config.with_subsystem(0x1234, 0x5678));
        vmm.header[0x2C..0x30].copy_from_slice(&[1, 2, 3, 4]);
        vmm.interrupt();
        let bytes: Vec<u8> = (0..0x100).map(|offset| vmm.read::<1>(offset)[0]).collect();
        assert_eq!(bytes[0x2C..0x30], [1, 2, 3, 4], "the VMM's header has the last word");
        for offset in 0..0xFC {
            assert_eq!(vmm.read::<2>(offset), bytes[usize::from(offset)..][..2], "{offset:x}");
            assert_eq!(vmm.read::<4>(offset), bytes[usize::from(offset)..][..4], "{offset:x}");
        }
    }
}

#[test]
fn what_is_not_the_devices_stays_as_the_vmm_has_it() {
    let mut vmm = Vmm::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
    let now = vmm.guest.at();
    let mut data = [0x5A; 0x200];
    vmm.guest.device.complete_config_read(0, &mut data, now);
    for (offset, byte) in data.iter().enumerate() {
        match offset {
            0x06 => assert_eq!(*byte, 0x5A & !0x08),
            0x60..0x6C => assert_eq!(*byte, 0x00, "{offset:x}"),
            _ => assert_eq!(*byte, 0x5A, "{offset:x}"),
        }
    }
    let mut data = [0x5A; 9];
    for offset in [0xFF, 0x100, 0x160, 0xFFF8, 0xFFFF] {
        vmm.guest.device.complete_config_read(offset, &mut data, now);
        assert_eq!(data, [0x5A; 9], "{offset:x}");
    }
}

#[test]
fn the_status_and_command_registers_of_the_header_show_and_mask_the_interrupt() {
    let mut vmm = Vmm::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
    assert_eq!(vmm.read(STATUS), [0x00, 0x00]);
    vmm.interrupt();
    assert_eq!(vmm.read(STATUS), [0x08, 0x00]);
    assert!(vmm.guest.device.interrupt_level());
    vmm.write(COMMAND, &[0x06, 0x04]);
    assert!(!vmm.guest.device.interrupt_level(), "INTx disable");
    assert_eq!(vmm.read(COMMAND), [0x06, 0x04, 0x08, 0x00], "still pending");
    vmm.write(COMMAND, &[0x06, 0x00]);
    assert!(vmm.guest.device.interrupt_level());
    vmm.guest.set_bar32(GINTSR, 1);
    assert_eq!(vmm.read(STATUS), [0x00, 0x00]);
}

#[test]
fn msi_works_behind_a_header_without_capabilities() {
    let mut vmm = Vmm::new(I6300esbConfig::default().with_msi());
    assert_eq!(vmm.read(STATUS), [0x10, 0x00]);
    assert_eq!(vmm.read(0x34), [MSI_CAPABILITY]);
    vmm.write(COMMAND, &[0x06, 0x00]);
    vmm.write(0x44, &0xFEE0_0000_u64.to_le_bytes());
    vmm.write(0x4C, &[0x41, 0x00]);
    vmm.write(0x42, &[0x01, 0x00]);
    assert_eq!(vmm.read(0x40), [0x05, 0x00, 0x81, 0x00, 0x00, 0x00, 0xE0, 0xFE]);
    vmm.write(CONFIGURATION, &[0x00]);
    vmm.interrupt();
    assert!(vmm.guest.device.message().is_some());
}

//! The MSI capability: how a guest finds and programs it, and the message that it leads to.

use vm_watchdog_devices::i6300esb::{I6300esbConfig, I6300esbStateV1, InterruptPin, MsiStateV1};
use vm_watchdog_devices::{Access, Model, MsiMessage};

use crate::guest::{CONFIGURATION, GINTSR, Guest, KHZ, LOCK, SECOND};

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
/// Memory and bus master enable.
const ENABLED: u16 = 0x0006;
const CONTROL: u16 = 0x42;
const ADDRESS: u16 = 0x44;
const DATA: u16 = 0x4C;
const ADDRESS_OF_CPU_0: u64 = 0xFEE0_0000;
const MESSAGE: MsiMessage = MsiMessage::new(ADDRESS_OF_CPU_0, 0x4041);

/// A guest on a device with MSI, with a pin too.
fn guest() -> Guest {
    Guest::with_config(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_msi())
}

/// The accesses of a driver that enables MSI.
fn enable(guest: &mut Guest) {
    let command = guest.config16(COMMAND);
    guest.set_config16(COMMAND, command | ENABLED);
    assert_eq!(guest.config16(STATUS) & 0x10, 0x10, "a capability list");
    let capability = u16::from(guest.config8(0x34));
    assert_eq!(guest.config8(capability), 0x05, "MSI");
    assert_eq!(guest.config8(capability + 1), 0x00, "the last one");
    let control = guest.config16(capability + 2);
    assert_eq!(control, 0x0080, "one message, a 64-bit address, no mask, disabled");
    guest.set_config32(capability + 4, MESSAGE.address as u32);
    guest.set_config32(capability + 8, (MESSAGE.address >> 32) as u32);
    guest.set_config16(capability + 12, MESSAGE.data as u16);
    guest.set_config16(capability + 2, control | 1);
}

fn arm(guest: &mut Guest) {
    guest.preload(512, 512);
    guest.enable();
}

/// A guest whose stage 1 has just ended.
fn interrupted() -> Guest {
    let mut guest = guest();
    enable(&mut guest);
    arm(&mut guest);
    guest.sleep(512 * KHZ);
    guest
}

/// What a VMM does: it takes the message that is due.
fn take(guest: &mut Guest) -> Option<MsiMessage> {
    let message = guest.device.message();
    guest.device.take_message();
    message
}

#[test]
fn without_the_option_there_is_no_capability() {
    let mut guest = Guest::with_interrupt_line();
    assert_eq!((guest.config16(STATUS), guest.config8(0x34)), (0, 0));
    for offset in 0x40..0x50 {
        assert_eq!(guest.set_config8(offset, 0xFF), Access::Ignored);
        assert_eq!(guest.config8(offset), 0);
    }
    guest.set_config16(COMMAND, ENABLED);
    arm(&mut guest);
    guest.sleep(512 * KHZ);
    assert_eq!(guest.device.message(), None);
    assert!(guest.device.interrupt_level());
}

#[test]
fn the_capability_keeps_its_writable_bits_and_reset_clears_them() {
    // Offset, value at reset, writable bits.
    let bytes = [
        (0x40, 0x05, 0x00),
        (0x41, 0x00, 0x00),
        (0x42, 0x80, 0x01),
        (0x43, 0x00, 0x00),
        (0x44, 0x00, 0xFC),
        (0x45, 0x00, 0xFF),
        (0x46, 0x00, 0xFF),
        (0x47, 0x00, 0xFF),
        (0x48, 0x00, 0xFF),
        (0x49, 0x00, 0xFF),
        (0x4A, 0x00, 0xFF),
        (0x4B, 0x00, 0xFF),
        (0x4C, 0x00, 0xFF),
        (0x4D, 0x00, 0xFF),
        (0x4E, 0x00, 0x00),
        (0x4F, 0x00, 0x00),
        (0x50, 0x00, 0x00),
    ];
    for (offset, at_reset, writable) in bytes {
        let mut guest = guest();
        assert_eq!(guest.config8(offset), at_reset, "{offset:x}");
        guest.set_config8(offset, 0xFF);
        assert_eq!(guest.config8(offset), at_reset | writable, "{offset:x}");
        let around: Vec<u8> = (0x40..0x51).filter(|at| *at != offset).map(|at| guest.config8(at)).collect();
        let expected: Vec<u8> = bytes.iter().filter(|(at, ..)| *at != offset).map(|(_, value, _)| *value).collect();
        assert_eq!(around, expected, "beside {offset:x}");
        guest.set_config8(offset, 0x00);
        assert_eq!(guest.config8(offset), at_reset, "{offset:x}");
        guest.set_config8(offset, 0xFF);
        guest.device.reset();
        assert_eq!(guest.config8(offset), at_reset, "{offset:x} after a reset");
    }
}

#[test]
fn the_end_of_stage_one_is_one_message_and_no_level() {
    let mut guest = guest();
    enable(&mut guest);
    arm(&mut guest);
    guest.sleep(512 * KHZ - 1);
    assert_eq!(guest.device.message(), None, "not early");
    guest.sleep(1);
    assert_eq!(take(&mut guest), Some(MESSAGE));
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.config16(STATUS) & 0x08, 0, "INTx has no interrupt");
    guest.sleep(SECOND);
    guest.reload();
    guest.sleep(512 * KHZ);
    assert_eq!(guest.device.message(), None, "the guest has not cleared the last interrupt");
    guest.set_bar32(GINTSR, 1);
    assert_eq!(guest.device.message(), None);
    guest.reload();
    guest.sleep(512 * KHZ);
    assert_eq!(take(&mut guest), Some(MESSAGE), "the next interrupt");
}

#[test]
fn other_interrupt_types_send_nothing() {
    for configuration in [0x01, 0x02, 0x03] {
        let mut guest = guest();
        enable(&mut guest);
        guest.set_config8(CONFIGURATION, configuration);
        arm(&mut guest);
        guest.sleep(512 * KHZ);
        assert_eq!(guest.bar32(GINTSR), 1);
        assert_eq!(guest.device.message(), None, "60h = {configuration:x}");
    }
}

#[test]
fn a_guest_that_has_not_enabled_msi_gets_its_level() {
    for command in [0x0002, 0x0006] {
        let mut guest = guest();
        enable(&mut guest);
        guest.set_config16(CONTROL, 0x0000);
        guest.set_config16(COMMAND, command);
        arm(&mut guest);
        guest.sleep(512 * KHZ);
        assert_eq!(guest.device.message(), None);
        assert!(guest.device.interrupt_level());
        assert_eq!(guest.config16(STATUS) & 0x08, 0x08);
    }
}

#[test]
fn intx_disable_does_not_affect_messages() {
    let mut guest = interrupted();
    guest.set_config16(COMMAND, 0x0406);
    assert_eq!(take(&mut guest), Some(MESSAGE));
    assert!(!guest.device.interrupt_level());
}

#[test]
fn an_interrupt_that_msi_is_enabled_for_later_is_sent_then() {
    let mut guest = guest();
    arm(&mut guest);
    guest.sleep(512 * KHZ);
    assert!(guest.device.interrupt_level());
    enable(&mut guest);
    assert!(!guest.device.interrupt_level(), "the pin is not used");
    assert_eq!(take(&mut guest), Some(MESSAGE));
    guest.set_config16(CONTROL, 0x0000);
    assert!(guest.device.interrupt_level(), "back to the pin");
    assert_eq!(guest.device.message(), None);
}

#[test]
fn a_device_that_is_no_bus_master_sends_nothing_and_uses_no_pin() {
    let mut guest = interrupted();
    guest.set_config16(COMMAND, 0x0002);
    assert_eq!(guest.device.message(), None);
    assert!(!guest.device.interrupt_level());
    guest.set_config16(COMMAND, 0x0006);
    assert_eq!(take(&mut guest), Some(MESSAGE));
}

#[test]
fn a_message_goes_to_the_address_that_the_guest_has_programmed_last() {
    let mut guest = interrupted();
    guest.set_config32(ADDRESS, 0xFEE0_1003);
    guest.set_config32(ADDRESS + 4, 0x0000_0001);
    guest.set_config32(DATA, 0xFFFF_1234);
    assert_eq!(take(&mut guest), Some(MsiMessage::new(0x1_FEE0_1000, 0x1234)));
}

#[test]
fn a_message_that_could_not_be_sent_is_due_again_unless_the_guest_has_cleared_its_cause() {
    let mut guest = interrupted();
    assert_eq!(take(&mut guest), Some(MESSAGE));
    guest.device.put_back_message();
    assert_eq!(take(&mut guest), Some(MESSAGE));
    guest.set_bar32(GINTSR, 1);
    guest.device.put_back_message();
    assert_eq!(guest.device.message(), None);

    let mut guest = interrupted();
    guest.set_bar32(GINTSR, 1);
    assert_eq!(guest.device.message(), None, "cleared before it was sent");
    guest.device.put_back_message();
    assert_eq!(guest.device.message(), None, "and never taken");
}

#[test]
fn each_interrupt_of_a_stage_without_length_has_its_own_message() {
    let mut guest = guest();
    enable(&mut guest);
    guest.preload(0, 0);
    guest.enable();
    assert_eq!(take(&mut guest), Some(MESSAGE));
    guest.reload();
    assert_eq!(guest.device.message(), None, "the guest has not cleared the last interrupt");
    guest.set_bar32(GINTSR, 1);
    guest.reload();
    assert_eq!(take(&mut guest), Some(MESSAGE));
}

#[test]
fn a_reset_withdraws_the_message_and_disables_msi() {
    let mut guest = interrupted();
    guest.device.reset();
    assert_eq!(guest.device.message(), None);
    assert_eq!(guest.config16(CONTROL), 0x0080);
    guest.device.put_back_message();
    assert_eq!(guest.device.message(), None);
}

#[test]
fn a_message_that_is_due_is_saved_and_one_that_was_sent_is_not_sent_again() {
    for is_taken in [false, true] {
        let mut source = interrupted();
        if is_taken {
            source.device.take_message();
        }
        let state = source.device.save(source.at());
        assert_eq!(state.msi.map(|msi| msi.is_message_due), Some(!is_taken));
        let mut target = guest();
        target.device = target.device.restored(&state, target.at()).expect("a state that a device was in");
        assert_eq!(target.device.message(), (!is_taken).then_some(MESSAGE));
        assert_eq!(target.config16(CONTROL), 0x0081);
        target.set_bar32(GINTSR, 1);
        target.reload();
        target.sleep(512 * KHZ);
        assert_eq!(take(&mut target), Some(MESSAGE), "the next interrupt");
    }
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    let mut source = interrupted();
    let possible = source.device.save(source.at());
    let msi = possible.msi.expect("a device with MSI");
    let with = |msi: MsiStateV1| I6300esbStateV1 { msi: Some(msi), ..possible };
    let refused = [
        (with(MsiStateV1 { address: 2, ..msi }), "msi.address"),
        (with(MsiStateV1 { enabled: false, ..msi }), "msi.is_message_due"),
        (I6300esbStateV1 { command: 0x0002, ..possible }, "msi.is_message_due"),
        (I6300esbStateV1 { wdt_int_act: false, ..possible }, "msi.is_message_due"),
        (I6300esbStateV1 { wdt_configuration: 0x03, ..possible }, "msi.is_message_due"),
    ];
    for (state, field) in refused {
        let error = source.device.restored(&state, source.at()).expect_err(field);
        assert_eq!(error.field, field);
    }
    let error = Guest::with_interrupt_line().device.restored(&possible, source.at()).expect_err("no capability");
    assert_eq!(error.field, "msi");
    let older = I6300esbStateV1 { msi: None, ..possible };
    let restored = source.device.restored(&older, source.at()).expect("of a version without MSI");
    assert_eq!(restored.message(), None);
    assert!(restored.interrupt_level());
}

#[test]
fn a_locked_watchdog_still_interrupts() {
    let mut guest = guest();
    enable(&mut guest);
    guest.preload(512, 512);
    guest.set_config8(LOCK, 0x03);
    guest.sleep(512 * KHZ);
    assert_eq!(take(&mut guest), Some(MESSAGE));
}

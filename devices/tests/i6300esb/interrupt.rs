//! The pretimeout at the end of stage one: WDT_INT_ACT, the interrupt line and the pending bit in the PCI status.

use vm_watchdog_devices::{Access, Model};

use crate::guest::{CONFIGURATION, GINTSR, Guest, KHZ, SECOND};

/// Bit 3 of the PCI status register.
const PENDING: u16 = 1 << 3;

fn warned(mut guest: Guest, configuration: u8) -> Guest {
    guest.set_config8(CONFIGURATION, configuration);
    guest.preload(512, 512);
    guest.enable();
    guest.sleep(512 * if configuration & 0x04 == 0 { KHZ } else { 960 });
    guest
}

#[test]
fn stage_one_sets_int_act_with_every_interrupt_type() {
    for configuration in [0x00, 0x01, 0x02, 0x03, 0x04, 0x20, 0x23, 0x27] {
        let mut guest = warned(Guest::new(), configuration);
        assert_eq!(guest.bar32(GINTSR), 1, "60h = {configuration:x}");
    }
}

#[test]
fn only_the_interrupt_type_irq_raises_the_line() {
    for (configuration, level) in
        [(0x00, true), (0x04, true), (0x20, true), (0x01, false), (0x02, false), (0x03, false)]
    {
        let mut guest = warned(Guest::with_interrupt_line(), configuration);
        assert_eq!(guest.device.interrupt_level(), level, "60h = {configuration:x}");
        assert_eq!(guest.config16(0x06), if level { PENDING } else { 0 }, "60h = {configuration:x}");
        let events = guest.sleep(SECOND);
        assert_eq!(events.len(), usize::from(configuration & 0x20 == 0), "a timeout unless the output is disabled");
    }
}

#[test]
fn a_device_without_a_pin_has_no_line_and_no_pending_bit() {
    let mut guest = warned(Guest::new(), 0x00);
    assert_eq!(guest.bar32(GINTSR), 1);
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.config16(0x06), 0);
}

#[test]
fn the_line_stays_asserted_until_the_guest_clears_int_act() {
    let mut guest = warned(Guest::with_interrupt_line(), 0x00);
    let acts: [fn(&mut Guest) -> Access; 5] = [
        Guest::reload,
        |guest| guest.set_bar32(GINTSR, 0),
        |guest| guest.set_bar32(GINTSR, 0xFFFF_FFFE),
        |guest| guest.set_bar8(GINTSR + 1, 0x01),
        Guest::disable,
    ];
    for act in acts {
        act(&mut guest);
        guest.sleep(SECOND);
        assert_eq!(guest.bar32(GINTSR), 1);
        assert!(guest.device.interrupt_level());
        assert_eq!(guest.config16(0x06), PENDING);
    }
    assert_eq!(guest.set_bar32(GINTSR, 1), Access::Accepted);
    assert_eq!(guest.bar32(GINTSR), 0);
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.config16(0x06), 0);
}

#[test]
fn int_act_is_cleared_at_every_width_without_an_unlock() {
    let writes: [(u64, &[u8]); 5] =
        [(8, &[1]), (8, &[1, 0]), (8, &[0xFF; 4]), (7, &[0, 1]), (8, &[1, 0, 0, 0, 0, 0, 0, 0])];
    for (offset, data) in writes {
        let mut guest = warned(Guest::with_interrupt_line(), 0x00);
        assert_eq!(guest.write_bar(offset, data), Access::Accepted);
        assert!(!guest.device.interrupt_level(), "{data:x?} at {offset:x}");
    }
}

#[test]
fn int_act_is_set_again_by_the_next_stage_one() {
    let mut guest = warned(Guest::with_interrupt_line(), 0x00);
    guest.set_bar32(GINTSR, 1);
    guest.reload();
    guest.sleep(512 * KHZ - 1);
    assert!(!guest.device.interrupt_level());
    guest.sleep(1);
    assert!(guest.device.interrupt_level());
}

#[test]
fn stage_two_does_not_set_int_act() {
    let mut guest = warned(Guest::with_interrupt_line(), 0x00);
    guest.set_bar32(GINTSR, 1);
    assert_eq!(guest.sleep(SECOND).len(), 1);
    assert_eq!(guest.bar32(GINTSR), 0);
}

#[test]
fn intx_disable_masks_the_line_but_not_the_pending_bit() {
    let mut guest = warned(Guest::with_interrupt_line(), 0x00);
    guest.set_config16(0x04, 0x0402);
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.config16(0x06), PENDING);
    assert_eq!(guest.config32(0x04), 0x0008_0402);
    guest.set_config16(0x04, 0x0002);
    assert!(guest.device.interrupt_level(), "unmasked while pending");
    guest.set_bar32(GINTSR, 1);
    assert_eq!(guest.config16(0x06), 0);
}

#[test]
fn a_late_poll_raises_the_level() {
    let mut guest = Guest::with_interrupt_line();
    guest.preload(512, 512);
    guest.enable();
    guest.sleep_unpolled(2 * SECOND);
    assert_eq!(guest.poll().len(), 2);
    assert!(guest.device.interrupt_level());
}

/// The runtime reads the line after each access, without a poll or a register read in between.
#[test]
fn a_write_that_starts_a_stage_of_zero_length_raises_the_line() {
    for is_running in [false, true] {
        let mut guest = Guest::with_interrupt_line();
        if is_running {
            guest.enable();
        }
        guest.preload(0, 0);
        assert!(!guest.device.interrupt_level());
        let access = if is_running { guest.reload() } else { guest.enable() };
        assert_ne!(access, Access::Ignored);
        assert!(guest.device.interrupt_level());
        assert!(guest.device.timed_out());
        assert_eq!(guest.device.timeout_at(), None, "the counter is stopped");
    }
}

//! Intended differences from QEMU 11.1's device, in the order of the table in the contract.
//!
//! The oracle test of the root package shows that QEMU differs.

use vm_watchdog_devices::{Access, Model};

use crate::guest::{CONFIGURATION, Event, GINTSR, Guest, KHZ, LOCK, PRELOAD1, PRELOAD2, RELOAD, SECOND};

/// Enables the watchdog and waits for one timeout.
fn time_out(guest: &mut Guest) {
    guest.preload(512, 512);
    guest.enable();
    assert_eq!(guest.sleep(2 * SECOND).len(), 2);
}

#[test]
fn the_configuration_register_takes_effect_at_every_width() {
    let writes: [(u16, &[u8]); 5] = [
        (0x60, &[0x27]),
        (0x60, &[0x27, 0]),
        (0x60, &[0x27, 0, 0, 0]),
        (0x5F, &[0xFF, 0x27]),
        (0x5D, &[0xFF, 0xFF, 0xFF, 0x27]),
    ];
    for (offset, data) in writes {
        let mut guest = Guest::new();
        assert_eq!(guest.write_config(offset, data), Access::Accepted);
        assert_eq!(guest.config8(CONFIGURATION), 0x27);
        assert_eq!(guest.config16(CONFIGURATION), 0x27);
        assert_eq!(guest.config32(CONFIGURATION), 0x27);
        guest.preload(1, 1);
        guest.enable();
        assert_eq!(guest.deadline(), Some(guest.now + 960), "the prescaler acts after {data:x?} at {offset:x}");
    }
}

#[test]
fn the_lock_register_takes_effect_at_every_width() {
    let writes: [(u16, &[u8]); 5] = [
        (0x68, &[0x03]),
        (0x68, &[0x03, 0xFF]),
        (0x68, &[0x03, 0xFF, 0xFF, 0xFF]),
        (0x67, &[0xFF, 0x03]),
        (0x65, &[0xFF, 0xFF, 0xFF, 0x03]),
    ];
    for (offset, data) in writes {
        let mut guest = Guest::new();
        assert_eq!(guest.write_config(offset, data), Access::Accepted);
        assert!(guest.deadline().is_some(), "{data:x?} at {offset:x} enables");
        assert_eq!(guest.config8(LOCK), 0x03);
        assert_eq!(guest.config16(LOCK), 0x03);
        assert_eq!(guest.config32(LOCK), 0x03);
    }
}

#[test]
fn the_reload_status_reads_at_every_width() {
    let mut guest = Guest::new();
    time_out(&mut guest);
    assert_eq!(guest.read_bar(0x0C), [0x00]);
    assert_eq!(guest.read_bar(0x0D), [0x12]);
    assert_eq!(guest.read_bar(0x0C), [0x00, 0x12]);
    assert_eq!(guest.read_bar(0x0D), [0x12, 0x00]);
    assert_eq!(guest.read_bar(0x0C), [0x00, 0x12, 0x00, 0x00]);
    assert_eq!(guest.read_bar(0x08), [0x01, 0, 0, 0, 0x00, 0x12, 0x00, 0x00]);
}

#[test]
fn a_reload_takes_effect_at_every_width() {
    let writes: [(u64, &[u8]); 6] = [
        (0x0D, &[0x01]),
        (0x0C, &[0x00, 0x01]),
        (0x0D, &[0x01, 0x00]),
        (0x0C, &[0x00, 0x01, 0x00]),
        (0x0D, &[0x01, 0x00, 0x00]),
        (0x0C, &[0x00, 0x01, 0x00, 0x00]),
    ];
    for (offset, data) in writes {
        let mut guest = Guest::new();
        guest.preload(512, 512);
        guest.enable();
        guest.sleep(100 * KHZ);
        guest.unlock();
        assert_eq!(guest.write_bar(offset, data), Access::Heartbeat, "{data:x?} at {offset:x}");
        assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ));
    }
}

#[test]
fn a_preload_is_written_at_every_width() {
    for register in [PRELOAD1, PRELOAD2] {
        let writes: [(u64, &[u8], u32); 6] = [
            (0, &[0x11], 0xF_FF11),
            (1, &[0x22], 0xF_22FF),
            (2, &[0x33], 0x3_FFFF),
            (0, &[0x11, 0x22], 0xF_2211),
            (1, &[0x22, 0x33], 0x3_22FF),
            (0, &[0x11, 0x22, 0x33, 0x44], 0x3_2211),
        ];
        for (lane, data, expected) in writes {
            let mut guest = Guest::new();
            guest.unlock();
            assert_eq!(guest.write_bar(register + lane, data), Access::Accepted);
            assert_eq!(guest.bar32(register), expected, "{data:x?} in lane {lane} of {register:x}");
        }
    }
}

#[test]
fn preloads_read_back_and_gintsr_shows_the_pretimeout() {
    let mut guest = Guest::new();
    guest.preload(0x1_2345, 0xA_BCDE);
    assert_eq!(guest.bar32(PRELOAD1), 0x1_2345);
    assert_eq!(guest.bar32(PRELOAD2), 0xA_BCDE);
    guest.enable();
    guest.sleep(0x1_2345 * KHZ - 1);
    assert_eq!(guest.bar32(GINTSR), 0);
    guest.sleep(1);
    assert_eq!(guest.bar32(GINTSR), 1);
}

#[test]
fn the_end_of_stage_one_raises_the_line_and_is_polled() {
    let mut guest = Guest::with_interrupt_line();
    guest.preload(512, 512);
    guest.enable();
    let end = guest.now + 512 * KHZ;
    guest.sleep(512 * KHZ - 1);
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.sleep(1), [Event::Pretimeout(end)]);
    assert!(guest.device.interrupt_level());
}

#[test]
fn a_guest_that_recovers_after_the_timeout_is_protected_again() {
    let mut guest = Guest::new();
    guest.preload(512, 512);
    guest.set_config8(LOCK, 0x03);
    assert_eq!(guest.sleep(2 * SECOND).len(), 2);

    // The action is pause, none or inject-nmi: the host does not reset the device.
    assert!(guest.device.is_armed());
    assert_eq!(guest.config8(LOCK), 0x03, "enabled and locked as the guest left it");
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (512, 512));
    assert_eq!(guest.deadline(), None);
    assert_eq!(guest.sleep(3600 * SECOND), [], "one event");

    assert_eq!(guest.reload(), Access::Heartbeat);
    let deadline = guest.now + 1024 * KHZ;
    assert_eq!(guest.sleep(2 * SECOND).last(), Some(&Event::Timeout(deadline)));
}

#[test]
fn with_output_disabled_the_guest_sees_the_timeout_and_the_host_does_not() {
    let mut guest = Guest::new();
    guest.set_config16(CONFIGURATION, 0x0020);
    guest.preload(512, 512);
    guest.enable();
    let started = guest.now;
    let stage1 = Event::Pretimeout(started + 512 * KHZ);
    assert_eq!(guest.sleep(1024 * KHZ - 1), [stage1]);
    assert_eq!(guest.bar16(RELOAD), 0x0000);
    assert_eq!(guest.sleep(1), []);
    assert_eq!(guest.bar16(RELOAD), 0x1200);
    assert!(guest.device.timed_out());
    assert!(guest.device.is_armed());
    assert_eq!(guest.config8(LOCK), 0x02);
    assert_eq!(guest.sleep(3600 * SECOND), []);

    assert_eq!(guest.reload(), Access::Heartbeat);
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ));
}

#[test]
fn undefined_configuration_offsets_read_zero_and_ignore_writes() {
    let defined = |offset: u16| offset < 0x40 || matches!(offset, 0x60..=0x61 | 0x64..=0x68);
    for offset in (0..0x100).filter(|&offset| !defined(offset)) {
        let mut guest = Guest::new();
        assert_eq!(guest.config8(offset), 0, "{offset:x}");
        assert_eq!(guest.set_config8(offset, 0xFF), Access::Ignored, "{offset:x}");
        assert_eq!(guest.config8(offset), 0, "{offset:x}");
    }
}

#[test]
fn bit_12_mirrors_the_timeout_and_writing_either_clears_both() {
    for (clear, expected) in [(0x0200, 0x0000), (0x1000, 0x0000), (0x1200, 0x0000), (0x0400, 0x1200), (0x2800, 0x1200)]
    {
        let mut guest = Guest::new();
        assert_eq!(guest.bar16(RELOAD), 0x0000);
        time_out(&mut guest);
        assert_eq!(guest.bar16(RELOAD), 0x1200);
        guest.unlock();
        guest.set_bar16(RELOAD, clear);
        assert_eq!(guest.bar16(RELOAD), expected, "after writing {clear:x}");
        assert_eq!(guest.device.timed_out(), expected != 0);
    }
}

//! The registers, by every width and at every offset, and the structure that describes them.

use vm_watchdog_devices::sbsa::{COMPATIBLE, FRAME_SIZE, Frame, FrameAddresses, GtdtWatchdog};
use vm_watchdog_devices::{Access, LastReset, Model};

use crate::guest::*;

const FRAMES: [Frame; 2] = [Frame::Control, Frame::Refresh];

#[test]
fn the_registers_have_their_reset_values() {
    let mut guest = Guest::new();
    for offset in (0..0x1000).step_by(4) {
        for frame in FRAMES {
            let expected = if offset == 0xFCC { 0x0001_0000 } else { 0 };
            assert_eq!(guest.read_frame(frame, offset), expected, "{frame:?} {offset:X}");
        }
    }
    assert_eq!(guest.device.config().clock_frequency.get(), HZ);
    assert_eq!((COMPATIBLE, FRAME_SIZE), ("arm,sbsa-gwdt", 4096));
}

#[test]
fn an_offset_has_48_bits() {
    let mut guest = Guest::new();
    guest.set_offset(u64::MAX);
    assert_eq!(guest.wor(), 0xFFFF_FFFF_FFFF);
    guest.start();
    assert_eq!(guest.wcv(), 0xFFFF_FFFF_FFFF);
    assert_eq!(guest.poll_at(), Some((1 << 48) * TICK));
    // A driver of version 0 writes the lower half alone.
    guest.write(WOR_LOW, 7);
    assert_eq!(guest.wor(), 0xFFFF_0000_0007);
    guest.write(WOR_HIGH, 0x0001_0000);
    assert_eq!((guest.wor(), guest.poll_at()), (7, Some(8 * TICK)));
}

#[test]
fn the_signals_and_the_identification_cannot_be_written() {
    let mut guest = Guest::new();
    assert_eq!(guest.write(WCS, !EN), Access::Accepted);
    assert_eq!(guest.read(WCS), 0);
    guest.set_offset(100);
    guest.write(WCS, !0);
    assert_eq!(guest.read(WCS), EN);
    for frame in FRAMES {
        assert_eq!(guest.device.write(frame, 0xFCC, &[0xFF; 4], at(0)), Access::Ignored);
        assert_eq!(guest.read_frame(frame, 0xFCC), 0x0001_0000);
    }
}

#[test]
fn the_end_of_the_first_period_loads_the_compare_value_and_that_of_the_second_keeps_it() {
    let mut guest = Guest::started(10);
    assert_eq!(guest.at(10 * TICK).wcv(), 10);
    assert_eq!(guest.at(11 * TICK).wcv(), 21, "11, the counter, and the offset");
    guest.at(21 * TICK).wcv();
    assert_eq!(guest.read(WCS), EN | WS0);
    assert_eq!(guest.at(22 * TICK).wcv(), 21);
    assert_eq!(guest.read(WCS), EN | WS0 | WS1);
    assert_eq!(guest.at(1_000 * TICK).wcv(), 21, "it says when");
}

#[test]
fn both_periods_end_at_their_instants_however_late_the_device_looks() {
    let mut guest = Guest::started(10);
    assert_eq!(guest.at(u64::MAX / 2).poll(), [Some(11 * TICK), Some(22 * TICK)]);
    assert_eq!(guest.wcv(), 21);
}

#[test]
fn a_compare_value_is_no_refresh() {
    let mut guest = Guest::started(10);
    guest.at(11 * TICK).read(WCS);
    assert_eq!(guest.device.write(Frame::Control, WCV_LOW, &1_000u64.to_le_bytes(), at(11 * TICK)), Access::Accepted);
    assert_eq!(guest.read(WCS), EN | WS0, "the signal stays");
    assert_eq!(guest.timeout_at(), Some(1_001 * TICK));
    guest.at(1_001 * TICK).read(WCS);
    guest.device.write(Frame::Control, WCV_LOW, &9_000u64.to_le_bytes(), at(1_001 * TICK));
    assert_eq!((guest.read(WCS), guest.timeout_at()), (EN | WS0 | WS1, None), "nothing counts after WS1");
}

#[test]
fn a_compare_value_that_is_past_ends_the_period_at_once() {
    let mut guest = Guest::started(10);
    guest.at(5 * TICK).write(WCV_LOW, 5);
    assert_eq!(guest.read(WCS), EN, "the counter is not greater than 5");
    guest.write(WCV_LOW, 4);
    assert!(guest.device.interrupt_level(), "without another access");
    assert_eq!((guest.read(WCS), guest.wcv()), (EN | WS0, 15));
    assert_eq!(guest.poll(), [Some(5 * TICK), None]);
    // One write of 64 bits is compared once, as a whole.
    let mut guest = Guest::started(10);
    guest.at(5 * TICK).device.write(Frame::Control, WCV_LOW, &0x1_0000_0000u64.to_le_bytes(), at(5 * TICK));
    assert_eq!((guest.read(WCS), guest.wcv()), (EN, 0x1_0000_0000));
    // While it is disabled nothing is compared.
    let mut guest = Guest::new();
    guest.at(5 * TICK).write(WCV_LOW, 4);
    assert_eq!((guest.read(WCS), guest.wcv(), guest.poll_at()), (0, 4, None));
}

#[test]
fn an_offset_of_zero_ends_two_periods_and_then_nothing_counts() {
    let mut guest = Guest::started(0);
    assert_eq!((guest.poll_at(), guest.timeout_at()), (Some(TICK), Some(2 * TICK)));
    assert_eq!(guest.at(1_000 * SECOND).poll(), [Some(TICK), Some(2 * TICK)]);
    assert_eq!(guest.poll_at(), None);
}

#[test]
fn an_access_of_any_width_acts_on_the_registers_it_covers() {
    let mut guest = Guest::new();
    let write =
        |guest: &mut Guest, offset, data: &[u8]| guest.device.write(Frame::Control, offset, data, at(guest.now));
    // Bytes of the offset, one after the other, and 16 bits of it.
    for (offset, byte) in [(0x8, 0x10), (0x9, 0x27), (0xC, 0x01), (0xF, 0xFF)] {
        assert_eq!(write(&mut guest, offset, &[byte]), Access::Accepted);
    }
    assert_eq!(guest.wor(), 0x0001_0000_2710);
    write(&mut guest, 0xA, &[0x34, 0x12]);
    assert_eq!(guest.wor(), 0x0001_1234_2710);
    // The upper bytes of WCS are not its bit 0; a write of them is a refresh all the same.
    write(&mut guest, 0x1, &[0xFF, 0xFF, 0xFF]);
    assert_eq!(guest.read(WCS), 0);
    write(&mut guest, 0x0, &[1]);
    assert_eq!(guest.read(WCS), EN);
    assert_eq!(write(guest.at(SECOND), 0x3, &[0]), Access::Heartbeat);
    assert_eq!((guest.read(WCS), guest.wcv()), (EN, guest.counter() + 0x0001_1234_2710));
    // 64 bits: both halves of a register, in one access.
    assert_eq!(write(&mut guest, WOR_LOW, &0x2_0000_0005u64.to_le_bytes()), Access::Heartbeat);
    let mut wcv = [0; 8];
    guest.device.read(Frame::Control, WCV_LOW, &mut wcv, at(SECOND));
    assert_eq!(u64::from_le_bytes(wcv), guest.counter() + 0x2_0000_0005);
    // Across registers, and any byte of WRR.
    assert_eq!(write(&mut guest, 0x4, &[0; 8]), Access::Heartbeat);
    assert_eq!(guest.wor(), 0x2_0000_0000);
    assert_eq!(guest.device.write(Frame::Refresh, 0x3, &[0], at(SECOND)), Access::Heartbeat);
    assert_eq!(guest.device.write(Frame::Refresh, 0x0, &[0; 8], at(SECOND)), Access::Heartbeat);
}

#[test]
fn reserved_registers_and_accesses_beyond_a_frame_change_nothing() {
    let mut guest = Guest::started(1_000);
    let before = guest.device.clone();
    for (frame, offset) in
        [(Frame::Control, 0x004), (Frame::Control, 0x018), (Frame::Refresh, 0x004), (Frame::Refresh, 0x008)]
    {
        assert_eq!(guest.device.write(frame, offset, &[0xFF; 4], at(0)), Access::Ignored);
        assert_eq!(guest.read_frame(frame, offset), 0);
    }
    for frame in FRAMES {
        for offset in [0x1000, 0x1001, 0x1_0000, u64::MAX - 3, u64::MAX] {
            for length in [0, 1, 2, 4, 8, 64] {
                let mut data = vec![0; length];
                assert_eq!(guest.device.read(frame, offset, &mut data, at(0)), Access::Ignored);
                assert!(data.iter().all(|byte| *byte == 0xFF));
                assert_eq!(guest.device.write(frame, offset, &vec![0; length], at(0)), Access::Ignored);
            }
        }
    }
    assert_eq!(guest.device, before);
    // The part of an access that lies within is there.
    let mut data = [0; 8];
    assert_eq!(guest.device.read(Frame::Control, 0xFFC, &mut data, at(0)), Access::Accepted);
    assert_eq!(data, [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
}

#[test]
fn a_read_changes_nothing() {
    let mut guest = Guest::started(1_000);
    for now in [0, 1, 1_001 * TICK - 1, 1_001 * TICK, 2_002 * TICK, 9_999 * TICK] {
        let state = guest.device.save(at(now));
        let mut data = vec![0; 0x1004];
        for frame in FRAMES {
            guest.device.read(frame, 0, &mut data, at(now));
        }
        assert_eq!(guest.device.save(at(now)), state, "at {now}");
    }
}

#[test]
fn no_late_access_of_the_guest_discards_an_expiry() {
    for (now, due) in [(11 * TICK, [Some(11 * TICK), None]), (22 * TICK, [Some(11 * TICK), Some(22 * TICK)])] {
        for (register, value) in [(WCS, 0), (WCS, EN), (WOR_LOW, 900), (WCV_LOW, 900)] {
            let mut guest = Guest::started(10);
            guest.at(now).write(register, value);
            assert_eq!(guest.poll_at(), Some(11 * TICK), "{register:X} at {now}");
            assert_eq!(guest.poll(), due, "{register:X} at {now}");
        }
    }
    // A ping one nanosecond earlier prevents it.
    let mut guest = Guest::started(10);
    guest.at(11 * TICK - 1).ping();
    assert_eq!(guest.at(11 * TICK).poll(), [None, None]);
}

#[test]
fn of_several_expiries_between_two_polls_the_first_is_reported() {
    let mut guest = Guest::started(10);
    for round in 1..4 {
        guest.at(round * 1_000 * TICK).ping();
    }
    assert_eq!(guest.at(9_000 * TICK).poll(), [Some(11 * TICK), Some(22 * TICK)]);
    assert_eq!(guest.poll(), [None, None]);
}

#[test]
fn a_reset_disables_it_lowers_the_interrupt_and_cancels_what_is_not_polled() {
    let mut guest = Guest::started(10);
    guest.at(11 * TICK).read(WCS);
    guest.device.reset();
    assert!(!guest.device.interrupt_level() && !guest.device.is_armed());
    assert_eq!((guest.read(WCS), guest.wor(), guest.wcv()), (0, 0, 0), "WS0 is no timeout");
    assert_eq!(guest.poll(), [None, None]);
    assert_eq!(guest.poll_at(), None);
}

#[test]
fn a_device_that_is_made_anew_takes_over_the_cause_of_the_reset() {
    let mut guest = Guest::new();
    guest.device.set_last_reset(LastReset::new(true));
    assert_eq!(guest.read(WCS), WS1);
    assert!(guest.device.timed_out());
    guest.device.set_last_reset(LastReset::new(false));
    assert_eq!(guest.read(WCS), 0);
    assert!(!guest.device.timed_out());
    // That of an armed one is what it has done itself.
    guest.set_offset(10);
    guest.start();
    guest.device.set_last_reset(LastReset::new(true));
    assert_eq!(guest.read(WCS), EN);
    guest.at(22 * TICK).read(WCS);
    guest.device.set_last_reset(LastReset::new(false));
    assert_eq!(guest.read(WCS), EN | WS0 | WS1);
}

/// ACPI 6.5, section 5.2.25: the fields of the structure by their offsets.
#[test]
fn every_byte_of_the_gtdt_structure_is_that_of_the_specification() {
    let addresses = FrameAddresses { control: 0x1122_3344_5566_7788, refresh: 0x99AA_BBCC_DDEE_FF00 };
    let structure = GtdtWatchdog::new(addresses, 0x0102_0304);
    let bytes = structure.as_bytes();
    let number = |offset: usize, length: usize| {
        bytes[offset..][..length].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    assert_eq!((bytes.len(), GtdtWatchdog::LENGTH), (28, 28));
    assert_eq!(number(0, 1), 1, "type");
    assert_eq!(number(1, 2), 28, "length");
    assert_eq!(number(3, 1), 0, "reserved");
    assert_eq!(number(4, 8), 0x99AA_BBCC_DDEE_FF00, "refresh frame");
    assert_eq!(number(12, 8), 0x1122_3344_5566_7788, "control frame");
    assert_eq!(number(20, 4), 0x0102_0304, "GSIV");
    assert_eq!(number(24, 4), 0, "level triggered, active high, not secure");
}

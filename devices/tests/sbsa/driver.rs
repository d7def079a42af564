//! The sequences of Linux' driver `sbsa_gwdt`, and of firmware.

use vm_watchdog_devices::sbsa::Frame;
use vm_watchdog_devices::{Access, Model};

use crate::guest::*;

#[test]
fn linux_probes_a_version_1_that_is_not_enabled() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(WCS), 0);
    assert_eq!(guest.read(0xFCC) >> 16 & 0xF, 1, "version 1: an offset of 48 bits");
    assert_eq!(guest.read(0xFCC) & 0xFFF, 0, "no implementer whose quirks a driver works around");
    assert_eq!(guest.set_offset(u64::from(HZ) * 5), [Access::Accepted; 2], "not a ping of a watchdog that is off");
    assert_eq!((guest.wor(), guest.poll_at()), (u64::from(HZ) * 5, None));
    assert!(!guest.device.is_armed());
}

#[test]
fn linux_times_out_after_two_periods_and_reads_the_cause_after_the_reset() {
    let mut guest = Guest::new();
    guest.set_timeout(10);
    assert_eq!(guest.at(SECOND).start(), Access::Accepted);
    assert_eq!(guest.at(4 * SECOND).ping(), Access::Heartbeat);
    // The feeder is killed: one last ping. Each period ends when the counter is greater than WCV.
    assert_eq!(guest.at(8 * SECOND).ping(), Access::Heartbeat);
    let (ws0, ws1) = (13 * SECOND + TICK, 18 * SECOND + 2 * TICK);
    assert_eq!((guest.poll_at(), guest.timeout_at()), (Some(ws0), Some(ws1)));
    assert_eq!(guest.at(ws0 - 1).poll(), [None, None], "not one nanosecond early");
    assert_eq!(guest.at(ws0).poll(), [Some(ws0), None]);
    assert_eq!(guest.read(WCS), EN | WS0);
    assert_eq!((guest.poll_at(), guest.timeout_at()), (Some(ws1), Some(ws1)));
    assert_eq!(guest.at(ws1 - 1).poll(), [None, None], "not one nanosecond early");
    assert_eq!(guest.at(ws1).poll(), [None, Some(ws1)]);
    assert_eq!(guest.poll(), [None, None], "one expiry is one event");
    assert_eq!(guest.read(WCS), EN | WS0 | WS1);
    assert!(guest.device.timed_out());

    guest.device.reset();
    assert_eq!(guest.read(WCS), WS1, "the next probe reports the cause, and does not find it running");
    assert!(guest.device.last_reset().by_watchdog);
    assert!(!guest.device.is_armed() && !guest.device.interrupt_level());
    // The same probe sets the timeout: an explicit refresh.
    guest.set_timeout(10);
    assert_eq!(guest.read(WCS), 0);
    guest.device.reset();
    assert_eq!(guest.read(WCS), 0);
    assert!(!guest.device.last_reset().by_watchdog);
}

#[test]
fn linux_panics_at_the_interrupt_and_is_reset_if_that_does_not_help() {
    let mut guest = Guest::new();
    // The driver clears an interrupt that is pending, before it requests it.
    assert_eq!(guest.ping(), Access::HeartbeatWhileDisarmed);
    guest.set_timeout_until_panic(10);
    guest.start();
    let (ws0, ws1) = (10 * SECOND + TICK, 20 * SECOND + 2 * TICK);
    guest.at(ws0 - 1).read(WCS);
    assert!(!guest.device.interrupt_level());
    guest.at(ws0).read(WCS);
    assert!(guest.device.interrupt_level(), "panic");
    assert_eq!(guest.at(ws1).poll(), [Some(ws0), Some(ws1)]);
    assert!(guest.device.interrupt_level(), "a level until an explicit refresh");
}

#[test]
fn a_crash_kernel_that_feeds_it_is_not_reset() {
    let mut guest = Guest::new();
    guest.set_timeout_until_panic(10);
    guest.start();
    guest.at(15 * SECOND).read(WCS);
    assert_eq!(guest.ping(), Access::Heartbeat);
    assert_eq!(guest.read(WCS), EN);
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.timeout_at(), Some(35 * SECOND + 2 * TICK), "two whole periods");
    assert_eq!(guest.at(25 * SECOND).poll(), [Some(10 * SECOND + TICK), None]);
}

#[test]
fn linux_reads_the_time_left_in_both_periods() {
    let mut guest = Guest::new();
    guest.set_timeout(10);
    guest.at(3 * SECOND).start();
    let seconds = |guest: &mut Guest| guest.ticks_left() / u64::from(HZ);
    assert_eq!(seconds(&mut guest), 10);
    assert_eq!(seconds(guest.at(3 * SECOND + TICK)), 9);
    assert_eq!(seconds(guest.at(8 * SECOND)), 5, "the last tick of the first period");
    assert_eq!(guest.read(WCS), EN);
    assert_eq!(seconds(guest.at(8 * SECOND + TICK)), 5);
    assert_eq!(guest.read(WCS), EN | WS0);
    assert_eq!(seconds(guest.at(12 * SECOND)), 1);
    assert_eq!(guest.at(13 * SECOND + TICK).ticks_left(), 0);
    assert_eq!(guest.poll()[1], None);
}

#[test]
fn linux_stops_the_watchdog_with_a_magic_close() {
    let mut guest = Guest::new();
    guest.set_timeout(10);
    guest.start();
    guest.at(6 * SECOND).read(WCS);
    assert!(guest.device.interrupt_level());
    assert_eq!(guest.stop(), Access::Accepted);
    assert_eq!(guest.read(WCS), 0);
    assert!(!guest.device.interrupt_level() && !guest.device.is_armed());
    guest.poll();
    assert_eq!((guest.poll_at(), guest.timeout_at()), (None, None));
    assert_eq!(guest.at(1_000 * SECOND).poll(), [None, None]);
    // It is opened again: a whole period.
    assert_eq!(guest.start(), Access::Accepted);
    assert_eq!(guest.timeout_at(), Some(1_010 * SECOND + 2 * TICK));
}

#[test]
fn linux_takes_over_a_watchdog_that_firmware_has_started() {
    let mut guest = Guest::new();
    guest.set_timeout(60);
    guest.start();
    assert_eq!(guest.at(20 * SECOND).read(WCS), EN);
    let ticks = u64::from(HZ) * 5;
    assert_eq!(guest.set_offset(ticks), [Access::Heartbeat; 2], "setting the timeout is a ping");
    assert_eq!(guest.timeout_at(), Some(30 * SECOND + 2 * TICK));
}

#[test]
fn firmware_waits_longer_than_an_offset_by_a_compare_value() {
    let mut guest = Guest::new();
    guest.set_offset(0xFFFF_FFFF);
    guest.at(SECOND).start();
    let compare = guest.counter() + 3_600 * u64::from(HZ);
    assert_eq!(guest.write(WCV_LOW, compare as u32), Access::Accepted);
    assert_eq!(guest.write(WCV_HIGH, (compare >> 32) as u32), Access::Accepted);
    assert_eq!(guest.wcv(), compare);
    assert_eq!(guest.poll_at(), Some(3_601 * SECOND + TICK));
    // The next refresh is by the offset again.
    guest.at(100 * SECOND).ping();
    assert_eq!(guest.wcv(), guest.counter() + 0xFFFF_FFFF);
}

#[test]
fn a_guest_that_recovers_after_the_timeout_is_protected_again() {
    let mut guest = Guest::new();
    guest.set_timeout(10);
    guest.start();
    let ws1 = 10 * SECOND + 2 * TICK;
    assert_eq!(guest.at(100 * SECOND).poll(), [Some(5 * SECOND + TICK), Some(ws1)]);
    assert!(guest.device.is_armed() && guest.device.interrupt_level());
    assert_eq!((guest.poll_at(), guest.timeout_at()), (None, None), "nothing counts after WS1");
    assert_eq!(guest.ping(), Access::Heartbeat);
    assert_eq!(guest.read(WCS), EN, "both signals are cleared");
    assert_eq!(guest.timeout_at(), Some(100 * SECOND + ws1));
}

#[test]
fn a_write_of_wrr_wor_or_wcs_is_an_explicit_refresh() {
    let ticks = u64::from(HZ) * 5;
    let writes: [(Frame, u64, u32); 4] = [
        (Frame::Refresh, 0x000, 0xFFFF_FFFF),
        (Frame::Control, WOR_LOW, ticks as u32),
        (Frame::Control, WOR_HIGH, (ticks >> 32) as u32),
        (Frame::Control, WCS, EN),
    ];
    for (frame, register, value) in writes {
        for now in [SECOND, 6 * SECOND, 60 * SECOND] {
            let mut guest = Guest::started(ticks);
            let access = guest.at(now).device.write(frame, register, &value.to_le_bytes(), at(now));
            assert_eq!(access, Access::Heartbeat, "{frame:?} {register:X}");
            assert_eq!(guest.read(WCS), EN, "{frame:?} {register:X} at {now}");
            assert_eq!(guest.wcv(), guest.counter() + ticks);
            guest.poll();
            assert_eq!(guest.poll_at(), Some(now + 5 * SECOND + TICK), "{frame:?} {register:X} at {now}");
        }
    }
}

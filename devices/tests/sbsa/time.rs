//! The counter: exact at every frequency, and set by the VMM.

use vm_watchdog_devices::sbsa::Frame;
use vm_watchdog_devices::{Model, VmInstant};

use crate::guest::*;

#[test]
fn a_period_ends_at_the_first_nanosecond_at_which_the_counter_is_greater() {
    // Hz, offset, and when the counter reads 1 more than that: 13 ticks of 41.67 ns are 541.67 ns.
    let cases = [
        (24_000_000, 12, 542),
        (1_000_000_000, 12, 13),
        (19_200_000, 19_199_999, SECOND),
        (3, 3, 1_333_333_334),
        (1, 0, SECOND),
        (u32::MAX, 4_294_967_294, SECOND),
        (u32::MAX, 0, 1),
    ];
    for (hz, offset, end) in cases {
        let mut guest = Guest::with_frequency(hz);
        guest.set_offset(offset);
        guest.start();
        assert_eq!(guest.poll_at(), Some(end), "{offset} ticks of {hz} Hz");
        assert_eq!(guest.at(end - 1).read(WCS), EN);
        assert_eq!(guest.at(end).read(WCS) & WS0, WS0, "{offset} ticks of {hz} Hz");
    }
}

#[test]
fn a_refresh_within_a_tick_ends_with_a_tick_of_the_counter_and_is_never_shorter() {
    for within in 0..TICK {
        let mut guest = Guest::started(10);
        guest.at(100 * TICK + within).ping();
        assert_eq!(guest.wcv(), 110);
        guest.poll();
        assert_eq!(guest.poll_at(), Some(111 * TICK), "{within} ns after a tick");
    }
}

#[test]
fn looking_often_does_not_make_the_counter_drift() {
    for hz in [24_000_000, 19_200_000, 3, u32::MAX] {
        let mut guest = Guest::with_frequency(hz);
        guest.set_offset(0x1000);
        let mut now = 0;
        for step in 0..100_000 {
            now += 1 + step % 977;
            guest.at(now).read(WCS);
        }
        guest.start();
        assert_eq!(guest.wcv(), guest.counter() + 0x1000, "{hz} Hz");
    }
}

#[test]
fn the_longest_offset_of_the_slowest_counter_does_not_overflow() {
    let mut guest = Guest::with_frequency(1);
    guest.at(u64::MAX - 1).set_offset(u64::MAX);
    guest.start();
    assert_eq!(guest.poll_at(), Some(u64::MAX));
    assert_eq!(guest.at(u64::MAX).poll(), [None, None], "beyond the range of the clock is never");
    let mut guest = Guest::with_frequency(u32::MAX);
    guest.at(u64::MAX).set_offset(u64::MAX);
    guest.start();
    assert_eq!(guest.wcv(), u64::MAX, "the counter has stopped at its maximum");
    assert_eq!(guest.poll(), [None, None]);
}

#[test]
fn a_compare_value_at_the_maximum_is_never_exceeded() {
    let mut guest = Guest::started(10);
    guest.device.write(Frame::Control, WCV_LOW, &[0xFF; 8], at(0));
    assert_eq!((guest.poll_at(), guest.timeout_at()), (Some(u64::MAX), Some(u64::MAX)));
    guest.device.set_counter(u64::MAX, at(0));
    assert_eq!(guest.at(u64::MAX - 1).poll(), [None, None]);
    assert_eq!(guest.read(WCS), EN);
}

#[test]
fn the_vmm_sets_the_counter_and_the_time_left_stays() {
    let mut guest = Guest::started(u64::from(HZ) * 5);
    for (now, value) in [(SECOND + 3, 1_000_000_000_000), (2 * SECOND + 7, 5), (6 * SECOND + 1, 0xFFFF_FFFF_FFFF)] {
        guest.at(now).read(WCS);
        let (poll_at, timeout_at) = (guest.poll_at(), guest.timeout_at());
        let left = guest.wcv() - guest.device.save(at(now)).counter;
        guest.device.set_counter(value, at(now));
        assert_eq!((guest.poll_at(), guest.timeout_at()), (poll_at, timeout_at));
        assert_eq!(guest.wcv(), value + left, "WCV moves with the counter");
    }
    guest.ping();
    assert_eq!(guest.wcv(), 0xFFFF_FFFF_FFFF + u64::from(HZ) * 5, "absolute: what the guest's counter read, and WOR");
}

#[test]
fn the_counter_of_a_watchdog_that_does_not_count_is_set_and_wcv_stays() {
    let mut guest = Guest::new();
    guest.device.set_counter(700, at(0));
    assert_eq!(guest.wcv(), 0);
    guest.set_offset(10);
    guest.start();
    assert_eq!(guest.wcv(), 710);
    guest.at(22 * TICK).read(WCS);
    assert_eq!(guest.wcv(), 721, "the time of WS1");
    guest.device.set_counter(0, at(22 * TICK));
    assert_eq!((guest.wcv(), guest.timeout_at()), (721, None));
}

#[test]
fn setting_the_counter_does_not_discard_what_is_due() {
    let mut guest = Guest::started(10);
    guest.device.set_counter(0, at(11 * TICK));
    assert_eq!(guest.at(11 * TICK).poll(), [Some(11 * TICK), None]);
    assert_eq!(guest.wcv(), 10, "the second period, from the counter that was set");
}

#[test]
fn an_earlier_instant_does_not_move_time_back() {
    let mut guest = Guest::started(100);
    guest.at(90 * TICK).read(WCS);
    guest.at(10 * TICK).ping();
    assert_eq!(guest.wcv(), 190);
    guest.device.reset();
    guest.at(0).set_offset(100);
    guest.start();
    assert_eq!(guest.poll_at(), Some(191 * TICK));
    guest.device.set_counter(5, VmInstant::ZERO);
    assert_eq!(guest.wcv(), 105);
}

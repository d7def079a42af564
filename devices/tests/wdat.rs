//! The registers behind the ACPI watchdog table, in the words of a guest.

use vm_watchdog_devices::wdat::{TimerPeriod, Wdat, WdatConfig, WdatStateV1};
use vm_watchdog_devices::{Access, LastReset, Model, VmInstant};

const RELOAD: u64 = 0x0;
const COUNT: u64 = 0x4;
const CONTROL: u64 = 0x8;
const STATUS: u64 = 0xC;

/// A guest with its device, and the time.
struct Guest {
    device: Wdat,
    now: VmInstant,
}

fn ms(milliseconds: u64) -> VmInstant {
    VmInstant::from_nanos(milliseconds * 1_000_000)
}

impl Guest {
    fn new() -> Self {
        Self::with(WdatConfig::default())
    }

    fn with(config: WdatConfig) -> Self {
        Self { device: Wdat::new(config), now: VmInstant::ZERO }
    }

    fn at(&mut self, now: VmInstant) -> &mut Self {
        self.now = now;
        self
    }

    fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        assert_eq!(self.device.read(register, &mut data, self.now), Access::Accepted);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) -> Access {
        self.device.write(register, &value.to_le_bytes(), self.now)
    }

    /// Starts the watchdog with this countdown.
    fn start(&mut self, count: u32) {
        self.write(RELOAD, count);
        self.write(CONTROL, 1);
    }

    /// When the watchdog has timed out, if it has.
    fn timeout(&mut self) -> Option<VmInstant> {
        self.device.poll(self.now).timeout
    }

    fn registers(&mut self) -> [u32; 4] {
        [RELOAD, COUNT, CONTROL, STATUS].map(|register| self.read(register))
    }
}

#[test]
fn the_registers_have_their_reset_values() {
    assert_eq!(Guest::new().registers(), [60_000, 0, 0, 0]);
    let seconds = WdatConfig::default().with_period(TimerPeriod::OneSecond);
    let mut windows = Guest::with(seconds);
    assert_eq!(windows.registers(), [60, 0, 0, 0]);
    assert_eq!(windows.device.config(), seconds, "the configuration that the table must have too");
}

#[test]
fn linux_times_out_without_heartbeats_and_reads_the_cause_after_the_reset() {
    let mut guest = Guest::new();
    // Probe.
    assert_eq!(guest.read(STATUS), 0);
    guest.write(STATUS, 1);
    assert_eq!(guest.read(CONTROL), 0);
    guest.write(RELOAD, 30_000);
    // The device file is opened: no heartbeat. Then the timeout is set.
    guest.at(ms(100)).write(CONTROL, 1);
    assert_eq!(guest.device.timeout_at(), Some(ms(30_100)));
    guest.at(ms(200)).write(RELOAD, 6_000);
    assert_eq!(guest.device.timeout_at(), Some(ms(30_100)), "not before a heartbeat");
    assert_eq!(guest.write(COUNT, 1), Access::Heartbeat);
    assert_eq!(guest.device.timeout_at(), Some(ms(6_200)));
    assert_eq!(guest.at(ms(3_200)).write(COUNT, 1), Access::Heartbeat);
    // The feeder is killed: one last heartbeat.
    assert_eq!(guest.at(ms(4_000)).write(COUNT, 1), Access::Heartbeat);
    assert_eq!(guest.at(ms(7_000)).read(COUNT), 3_000, "time left");
    assert_eq!(guest.at(VmInstant::from_nanos(9_999_999_999)).timeout(), None, "not one nanosecond early");
    assert_eq!(guest.at(ms(10_000)).timeout(), Some(ms(10_000)));
    assert_eq!(guest.timeout(), None, "one expiry is one event");

    guest.device.reset();
    assert_eq!(guest.registers(), [60_000, 0, 0, 1]);
    assert!(guest.device.last_reset().by_watchdog);
    guest.write(STATUS, 1);
    assert_eq!(guest.read(STATUS), 0);
    guest.device.reset();
    assert_eq!(guest.read(STATUS), 0);
}

#[test]
fn linux_stops_the_watchdog_with_a_magic_close() {
    let mut guest = Guest::new();
    guest.start(6_000);
    assert_eq!(guest.at(ms(5_999)).write(COUNT, 1), Access::Heartbeat);
    assert_eq!(guest.write(CONTROL, 0), Access::Accepted);
    assert_eq!(guest.registers(), [6_000, 0, 0, 0]);
    assert!(!guest.device.is_armed());
    assert_eq!(guest.device.poll_at(), None);
    assert_eq!(guest.at(ms(1_000_000)).timeout(), None);
    // It is opened again.
    guest.write(CONTROL, 1);
    assert_eq!(guest.device.timeout_at(), Some(ms(1_006_000)));
}

#[test]
fn linux_feeds_a_watchdog_that_runs_at_its_start() {
    let mut guest = Guest::new();
    guest.start(60_000); // by firmware
    assert_eq!(guest.at(ms(20_000)).read(CONTROL), 1);
    guest.write(RELOAD, 30_000);
    assert_eq!(guest.write(COUNT, 1), Access::Heartbeat);
    assert_eq!(guest.device.timeout_at(), Some(ms(50_000)));
}

#[test]
fn linux_resumes_from_sleep_with_a_stop_a_new_countdown_and_a_start() {
    let mut guest = Guest::new();
    guest.start(6_000);
    guest.at(ms(3_000)).write(CONTROL, 0);
    guest.write(RELOAD, 6_000);
    assert_eq!(guest.write(COUNT, 1), Access::HeartbeatWhileDisarmed);
    assert_eq!(guest.device.poll_at(), None, "a heartbeat does not start a watchdog that is stopped");
    guest.write(CONTROL, 1);
    assert_eq!(guest.device.timeout_at(), Some(ms(9_000)));
}

/// The required actions of the specification in its order, with a period of a second.
#[test]
fn windows_sets_a_countdown_in_seconds_starts_and_feeds() {
    let mut guest = Guest::with(WdatConfig::default().with_period(TimerPeriod::OneSecond));
    assert_eq!(guest.read(STATUS) & 1, 0); // 20h
    guest.write(STATUS, 1); // 21h
    guest.write(RELOAD, 120); // 06h
    assert_eq!(guest.read(CONTROL) & 1, 0); // 0Ah
    guest.write(CONTROL, 1); // 09h
    assert_eq!(guest.read(CONTROL) & 1, 1); // 08h
    assert_eq!(guest.at(ms(60_000)).write(COUNT, 1), Access::Heartbeat); // 01h
    assert_eq!(guest.at(ms(60_001)).read(COUNT), 120, "rounded up");
    assert_eq!(guest.at(ms(61_000)).read(COUNT), 119);
    assert_eq!(guest.at(VmInstant::from_nanos(179_999_999_999)).read(COUNT), 1);
    assert_eq!(guest.timeout(), None);
    assert_eq!(guest.at(ms(180_000)).timeout(), Some(ms(180_000)));
    guest.write(CONTROL, 0); // 0Bh
    assert_eq!(guest.registers(), [120, 0, 0, 1]);
}

#[test]
fn the_countdown_is_limited_and_reads_as_limited() {
    let second = WdatConfig::default().with_period(TimerPeriod::OneSecond);
    let limits = [(WdatConfig::default(), 1, 1_000, 0xFF_FFFF), (second, 1_000, 5, 65_535)];
    for (config, period, min, max) in limits {
        for (written, count) in [(0, min), (min - 1, min), (min, min), (max, max), (max + 1, max), (u32::MAX, max)] {
            let mut guest = Guest::with(config);
            guest.start(written);
            assert_eq!(guest.read(RELOAD), count, "{written} written");
            assert_eq!(guest.read(COUNT), count);
            assert_eq!(guest.device.timeout_at(), Some(ms(u64::from(count) * period)));
        }
    }
}

#[test]
fn a_second_start_does_not_restart_the_countdown() {
    let mut guest = Guest::new();
    guest.start(6_000);
    assert_eq!(guest.at(ms(1_000)).write(CONTROL, 1), Access::Accepted);
    assert_eq!(guest.device.timeout_at(), Some(ms(6_000)));
    guest.at(ms(7_000)).write(CONTROL, 1);
    assert_eq!(guest.timeout(), Some(ms(6_000)));
    assert_eq!(guest.device.timeout_at(), None);
}

#[test]
fn a_guest_that_recovers_after_the_timeout_is_protected_again() {
    let mut guest = Guest::new();
    guest.start(1_000);
    assert_eq!(guest.at(ms(5_000)).timeout(), Some(ms(1_000)));
    assert_eq!(guest.registers(), [1_000, 0, 1, 1], "it runs, with nothing left");
    assert!(guest.device.is_armed());
    assert_eq!(guest.device.poll_at(), None);
    assert_eq!(guest.write(COUNT, 0), Access::Heartbeat);
    assert_eq!(guest.device.timeout_at(), Some(ms(6_000)));
    assert_eq!(guest.read(STATUS), 1);
}

#[test]
fn no_late_access_of_the_guest_discards_a_timeout() {
    for access in [(COUNT, 1), (CONTROL, 0), (STATUS, 1), (RELOAD, 9_000)] {
        let mut guest = Guest::new();
        guest.start(1_000);
        let (register, value) = access;
        guest.at(ms(1_000)).write(register, value);
        assert_eq!(guest.device.poll_at(), Some(ms(1_000)), "{access:X?}");
        assert_eq!(guest.at(ms(1_500)).timeout(), Some(ms(1_000)), "{access:X?}");
    }
    // A heartbeat one nanosecond earlier prevents it.
    let mut guest = Guest::new();
    guest.start(1_000);
    guest.at(VmInstant::from_nanos(999_999_999)).write(COUNT, 1);
    assert_eq!(guest.at(ms(1_500)).timeout(), None);
}

#[test]
fn of_several_timeouts_between_two_polls_the_first_is_reported() {
    let mut guest = Guest::new();
    guest.start(1_000);
    guest.at(ms(2_000)).write(COUNT, 1);
    assert_eq!(guest.at(ms(9_000)).timeout(), Some(ms(1_000)));
    assert_eq!(guest.timeout(), None);
}

#[test]
fn an_access_of_any_width_acts_on_the_registers_it_covers() {
    let mut guest = Guest::new();
    let now = VmInstant::ZERO;
    // Bytes of the countdown, one after the other.
    for (offset, byte) in [(0, 0x70), (1, 0x17), (2, 0), (3, 0)] {
        assert_eq!(guest.device.write(offset, &[byte], now), Access::Accepted);
    }
    assert_eq!(guest.read(RELOAD), 6_000);
    // The upper bytes of CONTROL are not its bit 0.
    guest.device.write(0x9, &[0xFF, 0xFF, 0xFF], now);
    assert_eq!(guest.read(CONTROL), 0);
    guest.device.write(0x8, &[0xFF], now);
    assert_eq!(guest.read(CONTROL), 1);
    guest.device.write(0x9, &[0], now);
    assert_eq!(guest.read(CONTROL), 1);
    // One write across two registers is two writes.
    let count_and_control = [1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(guest.device.write(COUNT, &count_and_control, ms(10)), Access::Heartbeat);
    assert_eq!(guest.at(ms(10)).registers(), [6_000, 0, 0, 0]);
    let mut all = [0; 16];
    guest.device.read(0, &mut all, now);
    assert_eq!(all, [0x70, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn accesses_outside_the_registers_read_ones_and_change_nothing() {
    let mut guest = Guest::new();
    guest.start(6_000);
    let before = guest.registers();
    for offset in [0x10, 0x11, 0x1000, u64::MAX - 3, u64::MAX] {
        for length in [0, 1, 2, 4, 8, 64] {
            let mut data = vec![0; length];
            assert_eq!(guest.device.read(offset, &mut data, guest.now), Access::Ignored);
            assert!(data.iter().all(|byte| *byte == 0xFF));
            assert_eq!(guest.device.write(offset, &vec![0; length], guest.now), Access::Ignored);
        }
    }
    assert_eq!(guest.registers(), before);
    // The part of an access that lies within acts.
    let mut data = [0; 8];
    assert_eq!(guest.device.read(STATUS, &mut data, guest.now), Access::Accepted);
    assert_eq!(data, [0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
}

#[test]
fn a_read_changes_nothing() {
    let mut guest = Guest::new();
    guest.start(1_000);
    for now in [0, 1, 999, 1_000, 1_001] {
        let state = guest.at(ms(now)).device.save(ms(now));
        guest.registers();
        assert_eq!(guest.device.save(ms(now)), state, "at {now} ms");
    }
}

#[test]
fn a_reset_stops_the_countdown_and_cancels_an_unpolled_timeout() {
    let mut guest = Guest::new();
    guest.start(1_000);
    guest.at(ms(2_000)).read(COUNT);
    guest.device.reset();
    assert_eq!(guest.timeout(), None);
    assert_eq!(guest.device.poll_at(), None);
    assert_eq!(guest.registers(), [60_000, 0, 0, 1]);
}

#[test]
fn a_device_that_is_made_anew_takes_over_the_cause_of_the_reset() {
    let mut guest = Guest::new();
    assert!(!guest.device.timed_out());
    guest.device.set_last_reset(LastReset::new(true));
    assert_eq!(guest.read(STATUS), 1);
    assert!(guest.device.timed_out());
}

#[test]
fn an_earlier_instant_does_not_move_time_back() {
    let mut guest = Guest::new();
    guest.start(1_000);
    guest.at(ms(900)).read(COUNT);
    guest.at(ms(100)).write(COUNT, 1);
    assert_eq!(guest.device.timeout_at(), Some(ms(1_900)));
    guest.device.reset();
    guest.at(ms(0)).start(1_000);
    assert_eq!(guest.device.timeout_at(), Some(ms(1_900)));
}

#[test]
fn a_deadline_beyond_the_range_of_the_clock_is_never_reached() {
    let mut guest = Guest::new();
    guest.at(VmInstant::from_nanos(u64::MAX - 1)).start(1_000);
    assert_eq!(guest.at(VmInstant::MAX).timeout(), None);
}

#[test]
fn a_restored_watchdog_behaves_as_the_saved_one() {
    let mut guest = Guest::new();
    guest.start(6_000);
    for now in [0, 1, 5_999, 6_000, 7_000] {
        let state = guest.device.save(ms(now));
        // On another clock.
        let shift = 50_000;
        let mut restored =
            Guest { device: Wdat::default().restored(&state, ms(now + shift)).unwrap(), now: ms(now + shift) };
        assert_eq!(restored.registers(), guest.at(ms(now)).registers(), "at {now} ms");
        assert_eq!(restored.at(ms(6_000 + shift)).timeout(), Some(ms(6_000 + shift)));
    }
    guest.at(ms(7_000)).timeout();
    let state = guest.device.save(ms(7_000));
    let polled =
        WdatStateV1 { reload: 6_000, running: true, remaining_ns: None, timed_out: true, timeout_age_ns: None };
    assert_eq!(state, polled);
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    let running =
        WdatStateV1 { reload: 6_000, running: true, remaining_ns: Some(1), timed_out: false, timeout_age_ns: None };
    let longest = 0xFF_FFFF * 1_000_000;
    let refused = [
        (WdatStateV1 { remaining_ns: Some(0), ..running }, "remaining_ns"),
        (WdatStateV1 { remaining_ns: Some(longest + 1), ..running }, "remaining_ns"),
        (WdatStateV1 { running: false, ..running }, "running"),
    ];
    for (state, field) in refused {
        let error = Wdat::default().restored(&state, ms(0)).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
    }
    for state in [running, WdatStateV1 { remaining_ns: Some(longest), ..running }] {
        Wdat::default().restored(&state, ms(0)).unwrap();
    }
}

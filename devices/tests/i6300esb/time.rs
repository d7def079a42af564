//! Expiries to the nanosecond, and late polls.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Model, VmInstant};

use crate::guest::{
    CONFIGURATION, Event, GINTSR, Guest, KHZ, LIVE_COUNTER, LOCK, MHZ, PRELOAD1, PRELOAD2, RELOAD, SECOND,
};

#[test]
fn a_timeout_of_1_s_of_linux_expires_at_1_006_632_960_ns_and_not_one_earlier() {
    let mut device = I6300esb::new(I6300esbConfig::default());
    let at = VmInstant::from_nanos;
    for preload in [0x00, 0x04] {
        device.write_bar(0x0C, &[0x80], at(0));
        device.write_bar(0x0C, &[0x86], at(0));
        device.write_bar(preload, &[0x00, 0x02, 0x00, 0x00], at(0));
    }
    device.write_config(0x68, &[0x02], at(0));

    assert_eq!(device.poll_at(), Some(at(503_316_480)));
    assert!(device.poll(at(503_316_479)).is_empty());
    assert_eq!(device.poll(at(503_316_480)).pretimeout, Some(at(503_316_480)));
    assert_eq!(device.poll_at(), Some(at(1_006_632_960)));
    assert!(device.poll(at(1_006_632_959)).is_empty());
    assert_eq!(device.poll(at(1_006_632_960)).timeout, Some(at(1_006_632_960)));
    assert_eq!(device.poll_at(), None);
}

#[test]
fn the_end_of_stage_1_has_an_effect_only_if_it_is_an_interrupt() {
    const IRQ: u8 = 0x00;
    const NO_INTERRUPT: u8 = 0x03;
    let config = I6300esbConfig::default();
    let with_pin = config.with_interrupt_pin(InterruptPin::IntA);
    for (config, configuration, interrupts) in
        [(with_pin, IRQ, true), (with_pin, NO_INTERRUPT, false), (config, IRQ, false), (config, NO_INTERRUPT, false)]
    {
        let mut guest = Guest::with_config(config);
        let effect = |guest: &Guest| guest.device.next_effect_at().map(|at| at.as_nanos());
        guest.set_config8(CONFIGURATION, configuration);
        assert_eq!(effect(&guest), None);
        guest.preload(512, 256);
        guest.enable();
        let [stage1, stage2] = [512, 768].map(|units| guest.now + units * KHZ);
        assert_eq!(effect(&guest), Some(if interrupts { stage1 } else { stage2 }));
        assert_eq!(guest.deadline(), Some(stage1));

        // A host that does not poll then finds both when it does.
        let expired = guest.device.poll(VmInstant::from_nanos(stage2));
        assert_eq!(
            [expired.pretimeout, expired.timeout].map(|at| at.map(|at| at.as_nanos())),
            [Some(stage1), Some(stage2)]
        );
        assert_eq!(guest.device.interrupt_level(), interrupts);
    }
}

#[test]
fn the_end_of_stage_1_has_an_effect_as_soon_as_the_guest_enables_the_interrupt() {
    let mut guest = Guest::with_interrupt_line();
    guest.set_config8(CONFIGURATION, 0x03);
    guest.preload(512, 512);
    guest.enable();
    let [stage1, stage2] = [512, 1024].map(|units| VmInstant::from_nanos(guest.now + units * KHZ));
    assert_eq!(guest.device.next_effect_at(), Some(stage2));
    guest.set_config8(CONFIGURATION, 0x00);
    assert_eq!(guest.device.next_effect_at(), Some(stage1));
    // An end that is not polled yet is an effect that is due.
    guest.now = stage1.as_nanos();
    guest.set_config8(CONFIGURATION, 0x03);
    assert_eq!(guest.device.next_effect_at(), Some(stage1));
}

#[test]
fn a_stage_lasts_its_preload_in_units_of_the_prescaler() {
    // 60h, and the length of a unit: only WDT_PRE_SEL affects it.
    for (configuration, unit) in [(0x00, KHZ), (0x03, KHZ), (0x23, KHZ), (0x04, MHZ), (0x07, MHZ), (0x27, MHZ)] {
        for (preload1, preload2) in [(1, 1), (1, 2), (2, 1), (512, 3), (0x8_0000, 0x7_FFFF), (0xF_FFFF, 0xF_FFFF)] {
            let mut guest = Guest::new();
            guest.set_config8(CONFIGURATION, configuration);
            guest.preload(preload1, preload2);
            assert_eq!(guest.device.period(), None, "it is disarmed");
            guest.enable();
            let period = (u64::from(preload1) + u64::from(preload2)) * unit;
            assert_eq!(guest.device.period().map(|period| period.as_nanos()), Some(period.into()));
            let stage1 = guest.now + u64::from(preload1) * unit;
            let stage2 = stage1 + u64::from(preload2) * unit;
            let mut expected = vec![Event::Pretimeout(stage1)];
            if configuration & 0x20 == 0 {
                expected.push(Event::Timeout(stage2));
            }
            assert_eq!(guest.sleep(stage2 - 1 - guest.now), expected[..1]);
            assert_eq!(guest.bar16(RELOAD), 0);
            assert_eq!(guest.sleep(1), expected[1..]);
            assert_eq!(guest.bar16(RELOAD), 0x1200);
        }
    }
}

#[test]
fn the_longest_stage_lasts_1030_8_seconds() {
    let mut guest = Guest::new();
    guest.enable();
    assert_eq!(guest.deadline(), Some(guest.now + 1_030_791_168_000));
    assert_eq!(guest.config32(LIVE_COUNTER), 0xF_FFFF);
}

#[test]
fn a_preload_of_zero_expires_at_once() {
    let mut guest = Guest::new();
    guest.preload(0, 0);
    guest.enable();
    let now = guest.now;
    assert_eq!(guest.deadline(), Some(now));
    assert_eq!(guest.bar16(RELOAD), 0x1200, "the guest sees it before the first poll");
    assert_eq!(guest.sleep(SECOND), [Event::Pretimeout(now), Event::Timeout(now)]);

    assert_eq!(guest.reload(), Access::Heartbeat);
    let now = guest.now;
    assert_eq!(guest.sleep(SECOND), [Event::Pretimeout(now), Event::Timeout(now)], "and again at every reload");

    guest.device.reset();
    guest.preload(0, 512);
    guest.enable();
    let now = guest.now;
    assert_eq!(guest.bar32(GINTSR), 1);
    assert_eq!(guest.sleep(SECOND), [Event::Pretimeout(now), Event::Timeout(now + 512 * KHZ)]);
}

#[test]
fn timeout_at_includes_both_stages() {
    let mut guest = Guest::new();
    assert_eq!(guest.device.timeout_at(), None);
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    let timeout_at = |guest: &Guest| guest.device.timeout_at().map(VmInstant::as_nanos);
    assert_eq!(timeout_at(&guest), Some(started + 768 * KHZ));
    guest.sleep(512 * KHZ - 1);
    assert_eq!(timeout_at(&guest), Some(started + 768 * KHZ));
    guest.unlock();
    guest.set_bar32(PRELOAD2, 100);
    assert_eq!(timeout_at(&guest), Some(started + 612 * KHZ), "the new preload applies to stage two");
    guest.set_config8(CONFIGURATION, 0x04);
    assert_eq!(timeout_at(&guest), Some(started + 512 * KHZ + 100 * MHZ));
    guest.sleep(1);
    assert_eq!(timeout_at(&guest), Some(started + 512 * KHZ + 100 * MHZ));
    guest.set_config8(CONFIGURATION, 0x00);
    assert_eq!(timeout_at(&guest), Some(started + 512 * KHZ + 100 * MHZ), "stage two is loaded");
    guest.sleep(SECOND);
    assert_eq!(timeout_at(&guest), None, "stopped");
    guest.reload();
    assert_eq!(timeout_at(&guest), Some(guest.now + 612 * KHZ));
    guest.disable();
    assert_eq!(timeout_at(&guest), None);
}

#[test]
fn a_reload_restarts_stage_one_from_either_stage() {
    for elapsed in [0, 1, 511 * KHZ, 512 * KHZ - 1, 512 * KHZ, 512 * KHZ + 1, 768 * KHZ - 1] {
        let mut guest = Guest::new();
        guest.preload(512, 256);
        guest.enable();
        guest.sleep(elapsed);
        assert_eq!(guest.reload(), Access::Heartbeat);
        let now = guest.now;
        let expected = [Event::Pretimeout(now + 512 * KHZ), Event::Timeout(now + 768 * KHZ)];
        assert_eq!(guest.sleep(SECOND), expected, "after {elapsed} ns");
    }
}

#[test]
fn a_new_prescaler_takes_effect_at_the_next_load() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    guest.sleep(100 * KHZ);
    guest.set_config8(CONFIGURATION, 0x04);
    assert_eq!(guest.deadline(), Some(started + 512 * KHZ), "the running stage is unchanged");
    assert_eq!(guest.config32(LIVE_COUNTER), 412, "in units of the old prescaler");
    let stage1 = started + 512 * KHZ;
    assert_eq!(guest.sleep(SECOND), [Event::Pretimeout(stage1), Event::Timeout(stage1 + 256 * MHZ)]);

    guest.reload();
    assert_eq!(guest.deadline(), Some(guest.now + 512 * MHZ));
    guest.set_config8(CONFIGURATION, 0x00);
    assert_eq!(guest.deadline(), Some(guest.now + 512 * MHZ));
    guest.reload();
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ));
}

#[test]
fn a_new_preload_takes_effect_at_the_next_start_of_its_stage() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let stage1 = guest.now + 512 * KHZ;
    guest.sleep(100 * KHZ);
    guest.preload(64, 32);
    assert_eq!(guest.deadline(), Some(stage1), "stage one is unchanged");
    guest.sleep(412 * KHZ);
    assert_eq!(guest.deadline(), Some(stage1 + 32 * KHZ), "stage two has the new preload");
    guest.preload(64, 16);
    assert_eq!(guest.deadline(), Some(stage1 + 32 * KHZ), "the running stage two is unchanged");
    guest.reload();
    assert_eq!(guest.deadline(), Some(guest.now + 64 * KHZ));
}

#[test]
fn the_live_counter_counts_each_stage_down_in_units_of_its_preload() {
    for (configuration, unit) in [(0x00, KHZ), (0x04, MHZ)] {
        let mut guest = Guest::new();
        guest.set_config8(CONFIGURATION, configuration);
        guest.preload(1000, 300);
        assert_eq!(guest.config32(LIVE_COUNTER), 0, "not enabled");
        guest.enable();
        // The counter counts PCI clocks of 30 ns; the register shows whole units.
        let steps = [(0, 1000), (29, 1000), (1, 999), (unit - 30, 999), (29, 999), (1, 998), (897 * unit, 101)];
        for (nanos, expected) in steps {
            guest.sleep(nanos);
            assert_eq!(guest.config32(LIVE_COUNTER), expected, "{} ns in", guest.now);
        }
        guest.sleep(102 * unit - 31);
        assert_eq!(guest.config32(LIVE_COUNTER), 0);
        guest.sleep(1);
        assert_eq!(guest.config32(LIVE_COUNTER), 300, "stage two");
        guest.sleep(300 * unit);
        assert_eq!(guest.config32(LIVE_COUNTER), 0, "stopped");
        guest.sleep(SECOND);
        assert_eq!(guest.config32(LIVE_COUNTER), 0);
        guest.reload();
        assert_eq!(guest.config32(LIVE_COUNTER), 1000);
        guest.disable();
        assert_eq!(guest.config32(LIVE_COUNTER), 0, "disabled");
    }
}

#[test]
fn a_guest_access_before_a_late_poll_sees_the_expiry() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    guest.sleep_unpolled(512 * KHZ);
    assert_eq!(guest.bar32(GINTSR), 1);
    assert_eq!(guest.bar16(RELOAD), 0);
    assert_eq!(guest.config32(LIVE_COUNTER), 256);
    guest.sleep_unpolled(256 * KHZ);
    assert_eq!(guest.bar16(RELOAD), 0x1200);
    assert_eq!(guest.deadline(), Some(started + 512 * KHZ), "both are latched, since the first stage");
    assert_eq!(guest.poll(), [Event::Pretimeout(started + 512 * KHZ), Event::Timeout(started + 768 * KHZ)]);
    assert_eq!(guest.deadline(), None);
}

#[test]
fn stage_two_starts_at_the_end_of_stage_one_even_if_the_poll_is_late() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    guest.sleep_unpolled(700 * KHZ);
    assert_eq!(guest.poll(), [Event::Pretimeout(started + 512 * KHZ)]);
    assert_eq!(guest.deadline(), Some(started + 768 * KHZ));
}

type Act = fn(&mut Guest) -> Access;

/// Guest accesses to a device with an unpolled timeout.
const TOO_LATE: [(&str, Act); 6] = [
    ("reload", Guest::reload),
    ("disable", Guest::disable),
    ("clear WDT_TIMEOUT", |guest| {
        guest.unlock();
        guest.set_bar16(RELOAD, 0x0200)
    }),
    ("clear WDT_INT_ACT", |guest| guest.set_bar32(GINTSR, 1)),
    ("disable the output", |guest| guest.set_config8(CONFIGURATION, 0x20)),
    ("a long preload", |guest| {
        guest.preload(0xF_FFFF, 0xF_FFFF);
        guest.reload()
    }),
];

#[test]
fn no_late_guest_access_clears_a_latched_expiry() {
    for (what, act) in TOO_LATE {
        let mut guest = Guest::new();
        guest.preload(512, 256);
        guest.enable();
        let started = guest.now;
        guest.sleep_unpolled(768 * KHZ);
        assert_ne!(act(&mut guest), Access::Ignored, "{what}");
        guest.sleep_unpolled(KHZ);
        let expected = [Event::Pretimeout(started + 512 * KHZ), Event::Timeout(started + 768 * KHZ)];
        assert_eq!(guest.deadline(), Some(started + 512 * KHZ), "{what}");
        assert_eq!(guest.poll(), expected, "{what}");
        assert_eq!(guest.poll(), [], "{what}: once");
    }
}

#[test]
fn a_heartbeat_one_nanosecond_before_the_deadline_prevents_the_timeout() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    guest.sleep_unpolled(768 * KHZ - 1);
    guest.reload();
    assert_eq!(guest.sleep(512 * KHZ - 1).len(), 1, "the unpolled pretimeout");
}

#[test]
fn a_reset_clears_an_unpolled_expiry() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    guest.sleep_unpolled(768 * KHZ);
    assert_eq!(guest.bar16(RELOAD), 0x1200);
    guest.device.reset();
    assert_eq!(guest.deadline(), None);
    assert_eq!(guest.poll(), []);
    assert_eq!(guest.bar16(RELOAD), 0x1200);
}

#[test]
fn poll_at_is_the_earlier_of_two_latched_expiries() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    assert_eq!(guest.sleep(600 * KHZ), [Event::Pretimeout(started + 512 * KHZ)]);
    // Timeout, late reload and next pretimeout, all before the next poll.
    guest.sleep_unpolled(200 * KHZ);
    guest.reload();
    let reloaded = guest.now;
    guest.sleep_unpolled(512 * KHZ);
    assert_eq!(guest.bar32(GINTSR), 1);
    assert_eq!(guest.deadline(), Some(started + 768 * KHZ));
    assert_eq!(guest.poll(), [Event::Pretimeout(reloaded + 512 * KHZ), Event::Timeout(started + 768 * KHZ)]);
}

#[test]
fn a_timeout_changes_only_the_counter_and_the_timeout_bit() {
    for lock in [0x02, 0x03] {
        let mut guest = Guest::new();
        guest.set_config8(CONFIGURATION, 0x07);
        guest.preload(40, 30);
        guest.set_config8(LOCK, lock);
        assert_eq!(guest.sleep(SECOND).len(), 2);
        assert_eq!(guest.config8(LOCK), lock);
        assert_eq!(guest.config8(CONFIGURATION), 0x07);
        assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (40, 30));
        assert_eq!(guest.bar32(GINTSR), 1);
        assert!(guest.device.is_armed());
        assert_eq!(guest.sleep(3600 * SECOND), []);
        assert_eq!(guest.disable() == Access::Ignored, lock & 0x01 != 0);
    }
}

#[test]
fn an_earlier_instant_does_not_move_time_back() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let started = guest.now;
    guest.sleep(100 * KHZ);
    let late = guest.now;

    guest.now = started - 5;
    assert_eq!(guest.config32(LIVE_COUNTER), 412, "at the latest instant passed in");
    assert_eq!(guest.poll(), []);
    assert_eq!(guest.deadline(), Some(started + 512 * KHZ));
    guest.reload();
    assert_eq!(guest.deadline(), Some(late + 512 * KHZ), "a heartbeat counts from the latest instant passed in");
    guest.now = 0;
    guest.disable();
    guest.enable();
    assert_eq!(guest.deadline(), Some(late + 512 * KHZ));

    guest.now = late + 600 * KHZ;
    assert_eq!(guest.poll(), [Event::Pretimeout(late + 512 * KHZ)]);
    guest.now = late;
    assert_eq!(guest.bar32(GINTSR), 1);
    assert_eq!(guest.deadline(), Some(late + 768 * KHZ));
    guest.device.reset();
    guest.preload(1, 1);
    guest.enable();
    assert_eq!(guest.deadline(), Some(late + 601 * KHZ), "a reset does not move time back");
}

#[test]
fn a_deadline_beyond_the_range_of_the_clock_is_never_reached() {
    // Watchdog mode and free running: at the largest instant time stops instead of wrapping.
    for lock in [0x06, 0x02] {
        let mut guest = Guest::new();
        guest.now = u64::MAX - KHZ;
        guest.preload(512, 512);
        guest.set_config8(LOCK, lock);
        for _ in 0..3 {
            guest.now = u64::MAX;
            assert_eq!(guest.poll(), []);
            assert_eq!(guest.bar32(GINTSR), 0);
            guest.reload();
        }
    }
}

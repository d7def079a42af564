//! Free running mode: the counter restarts by itself, and the work of the model stays bounded.

use std::time::Instant;

use vm_watchdog_devices::{Access, Model};

use crate::guest::{CONFIGURATION, Event, GINTSR, Guest, KHZ, LIVE_COUNTER, LOCK, MHZ, RELOAD, SECOND};

#[test]
fn free_running_repeats_both_stages() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.set_config8(LOCK, 0x06);
    let mut at = guest.now;
    for _ in 0..5 {
        let expected = [Event::Pretimeout(at + 512 * KHZ), Event::Timeout(at + 768 * KHZ)];
        assert_eq!(guest.sleep(768 * KHZ), expected);
        at += 768 * KHZ;
        assert_eq!(guest.bar16(RELOAD), 0x1200);
        assert_eq!(guest.config32(LIVE_COUNTER), 512);
    }
    assert_eq!(guest.reload(), Access::Heartbeat);
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ));
    guest.disable();
    assert_eq!(guest.sleep(3600 * SECOND), []);
}

#[test]
fn the_mode_can_change_while_the_watchdog_runs() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    guest.sleep(600 * KHZ);
    guest.set_config8(LOCK, 0x06);
    assert_eq!(guest.sleep(168 * KHZ).len(), 1);
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ), "the running stage is unchanged");
    guest.set_config8(LOCK, 0x02);
    assert_eq!(guest.sleep(3600 * SECOND).len(), 2);
    assert_eq!(guest.deadline(), None, "the counter stops after the timeout");
    guest.set_config8(LOCK, 0x06);
    assert_eq!(guest.deadline(), None, "the mode change does not restart the counter");
}

#[test]
fn free_running_with_output_disabled_reports_pretimeouts_only() {
    let mut guest = Guest::new();
    guest.set_config8(CONFIGURATION, 0x20);
    guest.preload(512, 256);
    guest.set_config8(LOCK, 0x06);
    let started = guest.now;
    let expected = [0, 768, 1536].map(|cycle| Event::Pretimeout(started + (cycle + 512) * KHZ));
    assert_eq!(guest.sleep(3 * 768 * KHZ), expected);
    assert_eq!(guest.bar16(RELOAD), 0x1200);
}

#[test]
fn a_free_running_stage_with_preload_zero_lasts_one_unit() {
    for (configuration, unit) in [(0x00, KHZ), (0x04, MHZ)] {
        for (preload1, preload2, cycle) in [(0, 0, 2), (0, 9, 10), (9, 0, 10)] {
            let mut guest = Guest::new();
            guest.set_config8(CONFIGURATION, configuration);
            guest.preload(preload1, preload2);
            guest.set_config8(LOCK, 0x06);
            let started = guest.now;
            let timeouts = (1..=3).map(|n| Event::Timeout(started + n * cycle * unit));
            let events = guest.sleep(3 * cycle * unit);
            assert_eq!(events.len(), 6);
            assert!(events.into_iter().skip(1).step_by(2).eq(timeouts), "{preload1}, {preload2}");
        }
    }
}

#[test]
fn a_late_poll_reports_the_first_expiry_and_keeps_the_phase() {
    for late in [0, 1, 511, 512, 513, 767] {
        let mut guest = Guest::new();
        guest.preload(512, 256);
        guest.set_config8(LOCK, 0x06);
        let started = guest.now;
        guest.sleep_unpolled((1000 * 768 + late) * KHZ);
        let expected = [Event::Pretimeout(started + 512 * KHZ), Event::Timeout(started + 768 * KHZ)];
        assert_eq!(guest.poll(), expected);
        assert_eq!(guest.poll(), []);
        let next = if late < 512 { 1000 * 768 + 512 } else { 1001 * 768 };
        assert_eq!(guest.deadline(), Some(started + next * KHZ), "{late} units into a cycle");
    }
}

#[test]
fn a_late_poll_in_stage_one_reports_the_pretimeouts_of_skipped_cycles() {
    for cycles in [1, 2, 3, 1000] {
        let mut guest = Guest::new();
        guest.preload(512, 256);
        guest.set_config8(LOCK, 0x06);
        let started = guest.now;
        guest.sleep(600 * KHZ);
        guest.set_bar32(GINTSR, 1);
        guest.sleep_unpolled((168 + cycles * 768 + 5) * KHZ);
        let expected = [Event::Pretimeout(started + 1280 * KHZ), Event::Timeout(started + 768 * KHZ)];
        assert_eq!(guest.poll(), expected, "{cycles} cycles");
        assert_eq!(guest.bar32(GINTSR), 1, "{cycles} cycles");
        assert_eq!(guest.config32(LIVE_COUNTER), 507, "{cycles} cycles");
    }
}

#[test]
fn a_poll_after_centuries_of_microsecond_periods_is_bounded_work() {
    let half_a_millennium = 500 * 365 * 24 * 3600 * SECOND;
    let begun = Instant::now();
    for (preload1, preload2) in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 3)] {
        let mut guest = Guest::with_interrupt_line();
        guest.set_config8(CONFIGURATION, 0x04);
        guest.preload(preload1, preload2);
        guest.set_config8(LOCK, 0x06);
        let started = guest.now;
        let cycle = u64::from(preload1.max(1) + preload2.max(1)) * MHZ;
        for _ in 0..1000 {
            guest.sleep_unpolled(half_a_millennium / 1000);
            assert_eq!(guest.bar32(GINTSR), 1);
            assert!(guest.device.interrupt_level());
        }
        assert_eq!(guest.poll().len(), 2);
        let phase = (guest.now - started) % cycle;
        let stage1 = u64::from(preload1.max(1)) * MHZ;
        let next = if phase < stage1 { stage1 - phase } else { cycle - phase };
        assert_eq!(guest.deadline(), Some(guest.now + next));
    }
    // A loop over 10^16 stages would take years.
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_new_prescaler_takes_effect_with_the_next_stage() {
    let mut guest = Guest::new();
    guest.preload(100, 50);
    guest.set_config8(LOCK, 0x06);
    let started = guest.now;
    guest.set_config8(CONFIGURATION, 0x04);
    // The running stage keeps its length; the stages after it run at 1 MHz.
    guest.sleep_unpolled(100 * KHZ + 50 * MHZ + 77 * 150 * MHZ + 120 * MHZ);
    assert_eq!(guest.poll(), [Event::Pretimeout(started + 100 * KHZ), Event::Timeout(started + 100 * KHZ + 50 * MHZ)]);
    assert_eq!(guest.deadline(), Some(guest.now + 30 * MHZ));
    assert_eq!(guest.config32(LIVE_COUNTER), 30);
}

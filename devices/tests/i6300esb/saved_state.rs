//! A device that is saved in one process and restored in another, on a different clock.

use vm_watchdog_devices::Model;
use vm_watchdog_devices::i6300esb::{CounterStateV1, I6300esb, I6300esbConfig, I6300esbStateV1};

use crate::guest::{CONFIGURATION, Event, Guest, KHZ, LIVE_COUNTER, LOCK, MHZ, PRELOAD1, PRELOAD2, RELOAD, SECOND};

/// The same guest after a migration: the clock of the target shows `now`.
fn migrated(guest: &mut Guest, now: u64) -> Guest {
    let state = guest.device.save(guest.at());
    let mut target = Guest::new();
    target.now = now;
    target.device = target.device.restored(&state, target.at()).expect("a state that a device was in");
    target
}

#[test]
fn the_remaining_time_is_restored() {
    for now in [0, SECOND, 1_000_000 * SECOND] {
        let mut guest = Guest::new();
        guest.set_config8(CONFIGURATION, 0x04);
        guest.preload(512, 256);
        guest.set_config8(LOCK, 0x03);
        guest.sleep(100 * MHZ + 37);
        let mut target = migrated(&mut guest, now);
        assert_eq!(target.deadline(), Some(now + 412 * MHZ - 37));
        assert_eq!(target.config32(LIVE_COUNTER), 411);
        assert_eq!(target.config8(LOCK), 0x03);
        target.sleep(412 * MHZ);
        let target = migrated(&mut target, now);
        assert_eq!(target.deadline(), Some(now + 256 * MHZ - 37), "in stage two");
    }
}

#[test]
fn an_unpolled_expiry_is_restored() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    guest.sleep_unpolled(800 * KHZ);
    let now = 1_000_000 * SECOND;
    let mut target = migrated(&mut guest, now);
    assert_eq!(target.deadline(), Some(now - 288 * KHZ));
    assert_eq!(target.poll(), [Event::Pretimeout(now - 288 * KHZ), Event::Timeout(now - 32 * KHZ)]);
    assert_eq!(target.bar16(RELOAD), 0x1200);
}

#[test]
fn an_unlock_sequence_continues_after_a_restore() {
    for keys in 0..=2_usize {
        let mut guest = Guest::new();
        let (before, after) = [0x80, 0x86].split_at(keys);
        for &key in before {
            guest.set_bar16(RELOAD, key);
        }
        let mut target = migrated(&mut guest, 0);
        for &key in after {
            target.set_bar16(RELOAD, key);
        }
        target.set_bar32(PRELOAD1, 7);
        assert_eq!(target.bar32(PRELOAD1), 7, "{keys} keys before");
    }
}

fn running() -> I6300esbStateV1 {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    guest.device.save(guest.at())
}

fn counter(stage: u8, megahertz: bool, remaining_ns: u64) -> Option<CounterStateV1> {
    Some(CounterStateV1 { stage, megahertz, remaining_ns })
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    let possible = running();
    let refused = [
        (I6300esbStateV1 { command: 0x0008, ..possible }, "command"),
        (I6300esbStateV1 { bar0: 0xFEBF_1008, ..possible }, "bar0"),
        (I6300esbStateV1 { wdt_configuration: 0x08, ..possible }, "wdt_configuration"),
        (I6300esbStateV1 { wdt_lock: 0x0A, ..possible }, "wdt_lock"),
        (I6300esbStateV1 { preload1: 0x10_0000, ..possible }, "preload1"),
        (I6300esbStateV1 { preload2: 0x10_0000, ..possible }, "preload2"),
        (I6300esbStateV1 { unlock_keys: 3, ..possible }, "unlock_keys"),
        (I6300esbStateV1 { wdt_lock: 0x00, ..possible }, "counter.remaining_ns"),
        (I6300esbStateV1 { counter: counter(0, false, KHZ), ..possible }, "counter.stage"),
        (I6300esbStateV1 { counter: counter(3, false, KHZ), ..possible }, "counter.stage"),
        (I6300esbStateV1 { counter: counter(1, false, 0), ..possible }, "counter.remaining_ns"),
        (I6300esbStateV1 { counter: counter(1, false, 0xF_FFFF * KHZ + 1), ..possible }, "counter.remaining_ns"),
        (I6300esbStateV1 { counter: counter(2, true, 0xF_FFFF * MHZ + 1), ..possible }, "counter.remaining_ns"),
        (I6300esbStateV1 { counter: counter(2, true, u64::MAX), ..possible }, "counter.remaining_ns"),
    ];
    let device = I6300esb::new(I6300esbConfig::default());
    for (state, field) in refused {
        let error = device.restored(&state, Guest::new().at()).expect_err(field);
        assert_eq!(error.field, field);
    }
}

#[test]
fn states_at_the_limits_are_accepted() {
    let possible = running();
    let accepted = [
        I6300esbStateV1 { command: 0x0507, bar0: 0xFFFF_FFF0, ..possible },
        I6300esbStateV1 { wdt_configuration: 0x27, wdt_lock: 0x07, ..possible },
        I6300esbStateV1 { preload1: 0xF_FFFF, preload2: 0, unlock_keys: 2, ..possible },
        I6300esbStateV1 { wdt_lock: 0x00, counter: None, ..possible },
        I6300esbStateV1 { counter: None, ..possible },
        I6300esbStateV1 { counter: counter(1, false, 1), ..possible },
        I6300esbStateV1 { counter: counter(1, false, 0xF_FFFF * KHZ), ..possible },
        I6300esbStateV1 { counter: counter(2, true, 0xF_FFFF * MHZ), ..possible },
    ];
    let now = Guest::new().at();
    for state in accepted {
        let mut device = I6300esb::new(I6300esbConfig::default()).restored(&state, now).unwrap();
        assert_eq!(device.save(now), state);
    }
}

#[test]
fn the_settings_of_firmware_and_guest_are_restored() {
    let mut guest = Guest::new();
    guest.set_config32(0x10, 0xFEBF_1000);
    guest.set_config16(0x04, 0x0402);
    guest.set_config16(0x0C, 0x2010);
    guest.set_config8(0x3C, 0x0B);
    guest.set_config8(CONFIGURATION, 0x26);
    guest.preload(0x1_2345, 0x6_789A);
    let mut target = migrated(&mut guest, SECOND);
    assert_eq!(target.config32(0x10), 0xFEBF_1000);
    assert_eq!(target.config16(0x04), 0x0402);
    assert_eq!(target.config16(0x0C), 0x2010);
    assert_eq!(target.config8(0x3C), 0x0B);
    assert_eq!(target.config8(CONFIGURATION), 0x26);
    assert_eq!((target.bar32(PRELOAD1), target.bar32(PRELOAD2)), (0x1_2345, 0x6_789A));
}

#[test]
fn an_earlier_instant_after_a_restore_does_not_move_time_back() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    let mut target = migrated(&mut guest, 1000 * SECOND);
    target.now = 5;
    target.enable();
    assert_eq!(target.deadline(), Some(1000 * SECOND + 512 * KHZ));
}

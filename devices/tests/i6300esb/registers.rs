//! The watchdog's registers: their bits, the lock, the unlock sequence, and the state after a reset.

use vm_watchdog_devices::i6300esb::I6300esb;
use vm_watchdog_devices::{Access, LastReset, Model};

use crate::guest::{CONFIGURATION, Event, GINTSR, Guest, KHZ, LIVE_COUNTER, LOCK, PRELOAD1, PRELOAD2, RELOAD, SECOND};

#[test]
fn registers_have_their_reset_values() {
    let mut guest = Guest::new();
    let expect_reset_values = |guest: &mut Guest, reload: u32| {
        assert_eq!(guest.config32(CONFIGURATION), 0);
        assert_eq!(guest.config32(LIVE_COUNTER), 0);
        assert_eq!(guest.config32(LOCK), 0);
        assert_eq!(guest.bar32(PRELOAD1), 0xF_FFFF);
        assert_eq!(guest.bar32(PRELOAD2), 0xF_FFFF);
        assert_eq!(guest.bar32(GINTSR), 0);
        assert_eq!(guest.bar32(RELOAD), reload);
        assert_eq!(guest.deadline(), None);
        assert!(!guest.device.is_armed());
        assert!(!guest.device.interrupt_level());
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Ignored, "locked");
    };
    expect_reset_values(&mut guest, 0);

    guest.set_config8(CONFIGURATION, 0x27);
    guest.preload(1, 1);
    guest.set_config8(LOCK, 0x03);
    guest.sleep(SECOND);
    assert_eq!(guest.config32(CONFIGURATION), 0x27);
    assert_eq!(guest.bar32(RELOAD), 0x1200);
    guest.device.reset();
    expect_reset_values(&mut guest, 0x1200);
}

#[test]
fn the_configuration_register_keeps_its_defined_bits() {
    for value in 0..=0xFF {
        let mut guest = Guest::new();
        guest.set_config8(CONFIGURATION, value);
        assert_eq!(guest.config32(CONFIGURATION), u32::from(value & 0x27));
    }
    let mut guest = Guest::new();
    guest.set_config8(CONFIGURATION, 0x05);
    guest.set_config8(CONFIGURATION + 1, 0xFF);
    assert_eq!(guest.config16(CONFIGURATION), 0x0005, "the upper byte reads 0 and does not change the lower one");
}

#[test]
fn the_lock_register_keeps_its_defined_bits() {
    for value in 0..=0xFF {
        let mut guest = Guest::new();
        guest.set_config8(LOCK, value);
        assert_eq!(guest.config32(LOCK), u32::from(value & 0x07));
        assert_eq!(guest.device.is_armed(), value & 0x02 != 0);
    }
}

#[test]
fn preloads_keep_twenty_bits_and_change_independently() {
    let mut guest = Guest::new();
    guest.unlock();
    assert_eq!(guest.set_bar32(PRELOAD1, 0xFFF1_2345), Access::Accepted);
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (0x1_2345, 0xF_FFFF));
    guest.unlock();
    assert_eq!(guest.set_bar32(PRELOAD2, 0xFFF6_789A), Access::Accepted);
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (0x1_2345, 0x6_789A));
}

#[test]
fn a_locked_register_ignores_a_disable() {
    for lock in [0x01, 0x03, 0x05, 0x07] {
        let mut guest = Guest::new();
        guest.set_config8(LOCK, lock);
        let deadline = guest.deadline();
        for value in 0..=0xFF {
            assert_eq!(guest.set_config8(LOCK, value), Access::Ignored);
            assert_eq!(guest.set_config32(LOCK, value.into()), Access::Ignored);
            assert_eq!(guest.config8(LOCK), lock);
        }
        assert_eq!(guest.deadline(), deadline);
        guest.device.reset();
        assert_eq!(guest.config8(LOCK), 0);
        assert_eq!(guest.set_config8(LOCK, 0x02), Access::Accepted, "a reset clears the lock");
    }
}

#[test]
fn a_lock_leaves_every_other_register_writable() {
    let mut guest = Guest::new();
    guest.set_config8(LOCK, 0x03);
    assert_eq!(guest.set_config8(CONFIGURATION, 0x27), Access::Accepted);
    assert_eq!(guest.config8(CONFIGURATION), 0x27);
    guest.preload(3, 4);
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (3, 4));
    assert_eq!(guest.reload(), Access::Heartbeat);
}

#[test]
fn enabling_starts_stage_one_and_disabling_stops_the_counter() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    assert_eq!(guest.deadline(), None);
    assert_eq!(guest.enable(), Access::Accepted);
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ));
    guest.sleep(600 * KHZ);
    assert_eq!(guest.disable(), Access::Accepted);
    assert_eq!(guest.deadline(), None);
    assert!(!guest.device.is_armed());
    assert_eq!(guest.sleep(3600 * SECOND), []);
    guest.enable();
    assert_eq!(guest.deadline(), Some(guest.now + 512 * KHZ), "stage one restarts after a stop in stage two");
}

#[test]
fn enabling_again_does_not_restart_the_counter() {
    let mut guest = Guest::new();
    guest.preload(512, 256);
    guest.enable();
    let deadline = guest.deadline();
    guest.sleep(100 * KHZ);
    for lock in [0x02, 0x06, 0x02, 0x03] {
        guest.set_config8(LOCK, lock);
        assert_eq!(guest.deadline(), deadline);
    }
}

#[test]
fn enabling_again_after_a_timeout_does_not_restart_the_counter() {
    let mut guest = Guest::new();
    guest.preload(1, 1);
    guest.enable();
    guest.sleep(SECOND);
    guest.enable();
    assert_eq!(guest.deadline(), None);
    guest.disable();
    guest.enable();
    assert_eq!(guest.deadline(), Some(guest.now + KHZ), "a change from 0 to 1 does");
}

/// Steps before a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstKey,
    SecondKey,
    /// A value in RELOAD that is not a key.
    Wrong,
    /// The value of a key, in another register.
    Elsewhere,
    Preload,
}

impl Step {
    const ALL: [Self; 5] = [Self::FirstKey, Self::SecondKey, Self::Wrong, Self::Elsewhere, Self::Preload];

    fn take(self, guest: &mut Guest, width: usize) {
        let (register, value) = match self {
            Self::FirstKey => (RELOAD, 0x80_u64),
            Self::SecondKey => (RELOAD, 0x86),
            Self::Wrong => (RELOAD, 0x42),
            Self::Elsewhere => (GINTSR, 0x80),
            Self::Preload => (PRELOAD1, 0x55),
        };
        guest.write_bar(register, &value.to_le_bytes()[..width]);
    }
}

/// Whether a register write after `steps` takes effect, by the rule: 0x80, then 0x86, unlock one following register
/// write; a wrong value between the two keys does not cancel the first.
fn is_unlocked_after(steps: &[Step]) -> bool {
    let (mut first, mut unlocked) = (false, false);
    for &step in steps {
        match step {
            Step::FirstKey => (first, unlocked) = (true, false),
            Step::SecondKey if first => (first, unlocked) = (false, true),
            _ => unlocked = false,
        }
    }
    unlocked
}

#[test]
fn only_the_keys_in_order_unlock_one_write() {
    let mut unlocking = 0;
    for length in 0..=6_u32 {
        for number in 0..5_usize.pow(length) {
            let steps: Vec<Step> = (0..length).map(|digit| Step::ALL[number / 5_usize.pow(digit) % 5]).collect();
            let expected = is_unlocked_after(&steps);
            unlocking += u32::from(expected);
            for width in [1, 2, 4] {
                let mut guest = Guest::new();
                steps.iter().for_each(|step| step.take(&mut guest, width));
                let access = guest.set_bar32(PRELOAD2, 0x1234);
                assert_eq!(access == Access::Accepted, expected, "{width} bytes wide: {steps:?}");
                assert_eq!(guest.bar32(PRELOAD2) == 0x1234, expected, "{width} bytes wide: {steps:?}");
                assert_eq!(guest.set_bar32(PRELOAD2, 7), Access::Ignored, "one write only: {steps:?}");
            }
        }
    }
    assert!(unlocking > 100, "the table has both outcomes");
}

#[test]
fn a_key_is_the_whole_written_value() {
    let keys: [(u64, &[u8]); 8] = [
        (0x0C, &[0x81]),
        (0x0C, &[0x80, 0x01]),
        (0x0C, &[0x80, 0x00, 0x01, 0x00]),
        (0x0C, &[0x80, 0x00, 0x00, 0x80]),
        (0x0D, &[0x80]),
        (0x0E, &[0x80, 0x00]),
        (0x0F, &[0x80]),
        (0x08, &[0x80]),
    ];
    for (offset, first_key) in keys {
        let mut guest = Guest::new();
        assert_ne!(guest.write_bar(offset, first_key), Access::Accepted, "{first_key:x?} at {offset:x}");
        guest.set_bar16(RELOAD, 0x86);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Ignored, "{first_key:x?} at {offset:x}");
    }
    for (offset, second_key) in
        keys.map(|(offset, key)| (offset, key.iter().map(|&b| if b == 0x80 { 0x86 } else { b })))
    {
        let mut guest = Guest::new();
        guest.set_bar16(RELOAD, 0x80);
        let second_key: Vec<u8> = second_key.collect();
        guest.write_bar(offset, &second_key);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Ignored, "{second_key:x?} at {offset:x}");
    }
}

#[test]
fn keys_are_accepted_at_every_width_and_at_mixed_widths() {
    let widths = [1, 2, 3, 4];
    for (first, second) in widths.into_iter().flat_map(|first| widths.map(|second| (first, second))) {
        let mut guest = Guest::new();
        assert_eq!(guest.write_bar(RELOAD, &0x80_u32.to_le_bytes()[..first]), Access::Accepted);
        assert_eq!(guest.write_bar(RELOAD, &0x86_u32.to_le_bytes()[..second]), Access::Accepted);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Accepted);
    }
    // A 64-bit write of GINTSR and RELOAD has a key in its upper half.
    let mut guest = Guest::new();
    guest.write_bar(GINTSR, &(0x80_u64 << 32).to_le_bytes());
    guest.write_bar(GINTSR, &(0x86_u64 << 32).to_le_bytes());
    assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Accepted);
}

#[test]
fn any_register_write_uses_the_unlock_up() {
    let writes: [(u64, &[u8]); 8] = [
        (PRELOAD1, &[1]),
        (PRELOAD2, &[1, 0, 0, 0]),
        (PRELOAD1 + 3, &[0]),
        (GINTSR, &[1, 0]),
        (GINTSR, &[0]),
        (RELOAD, &[0, 0]),
        (RELOAD, &[0x86]),
        (RELOAD + 1, &[1]),
    ];
    for (offset, data) in writes {
        let mut guest = Guest::new();
        guest.unlock();
        guest.write_bar(offset, data);
        assert_eq!(guest.set_bar32(PRELOAD2, 7), Access::Ignored, "{data:x?} at {offset:x}");
    }
}

#[test]
fn configuration_writes_do_not_affect_the_unlock_sequence() {
    let mut guest = Guest::new();
    guest.set_bar16(RELOAD, 0x80);
    guest.set_config8(LOCK, 0x00);
    guest.set_bar16(RELOAD, 0x86);
    guest.set_config16(CONFIGURATION, 0x0003);
    assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Accepted);
}

#[test]
fn a_write_across_two_registers_is_two_writes() {
    let mut guest = Guest::new();
    guest.unlock();
    guest.write_bar(PRELOAD1, &0x0000_0009_0000_0007_u64.to_le_bytes());
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (7, 0xF_FFFF), "one unlock, one register");

    guest.unlock();
    guest.write_bar(PRELOAD1 + 3, &[0xFF, 0x08]);
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (7, 0xF_FFFF), "the lower register comes first");
}

#[test]
fn without_an_unlock_preloads_and_reload_ignore_writes() {
    let mut guest = Guest::new();
    guest.preload(512, 512);
    guest.enable();
    guest.sleep(2 * SECOND);
    guest.reload();
    let deadline = guest.deadline();
    guest.sleep(KHZ);
    for offset in [PRELOAD1, PRELOAD2, RELOAD] {
        for data in [&[0x01, 0x03][..], &[0x01, 0x13, 0x01, 0x03]] {
            assert_eq!(guest.write_bar(offset, data), Access::Ignored);
        }
    }
    assert_eq!(guest.set_bar8(RELOAD + 1, 0x13), Access::Ignored);
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2), guest.bar32(RELOAD)), (512, 512, 0x1200));
    assert_eq!(guest.deadline(), deadline);
}

#[test]
fn clearing_the_timeout_is_not_a_heartbeat() {
    let mut guest = Guest::new();
    guest.preload(512, 512);
    guest.enable();
    guest.sleep(2 * SECOND);
    guest.unlock();
    assert_eq!(guest.set_bar16(RELOAD, 0x0200), Access::Accepted);
    assert_eq!(guest.deadline(), None);
    guest.unlock();
    assert_eq!(guest.set_bar16(RELOAD, 0x0300), Access::Heartbeat, "clears the timeout and reloads");
}

#[test]
fn only_bit_8_reloads() {
    for bit in (0..32).filter(|&bit| bit != 8) {
        let mut guest = Guest::new();
        guest.preload(512, 512);
        guest.enable();
        let deadline = guest.deadline();
        guest.sleep(KHZ);
        guest.unlock();
        assert_ne!(guest.set_bar32(RELOAD, 1 << bit), Access::Heartbeat, "bit {bit}");
        assert_eq!(guest.deadline(), deadline, "bit {bit}");
    }
    let mut guest = Guest::new();
    guest.preload(512, 512);
    guest.enable();
    guest.unlock();
    assert_eq!(guest.set_bar32(RELOAD, 0xFFFF_FFFF), Access::Heartbeat);
}

#[test]
fn a_reload_while_disabled_does_not_start_the_counter() {
    let mut guest = Guest::new();
    guest.preload(512, 512);
    assert_eq!(guest.reload(), Access::HeartbeatWhileDisarmed);
    assert_eq!(guest.deadline(), None);
}

#[test]
fn the_timeout_bit_survives_resets_until_the_guest_clears_it() {
    let mut guest = Guest::new();
    guest.preload(1, 1);
    guest.enable();
    guest.sleep(SECOND);
    for _ in 0..3 {
        guest.device.reset();
        assert_eq!(guest.bar16(RELOAD), 0x1200);
    }
    assert_eq!(guest.set_bar16(RELOAD, 0x0200), Access::Ignored, "clearing needs an unlock");
    assert_eq!(guest.bar16(RELOAD), 0x1200);
    guest.unlock();
    guest.set_bar16(RELOAD, 0x0200);
    assert_eq!(guest.bar16(RELOAD), 0x0000);
    guest.device.reset();
    assert_eq!(guest.bar16(RELOAD), 0x0000);
}

#[test]
fn a_device_that_is_made_anew_takes_over_the_cause_of_the_reset() {
    let mut guest = Guest::new();
    guest.preload(1, 1);
    guest.enable();
    assert!(!guest.device.last_reset().by_watchdog);
    guest.sleep(SECOND);
    let mut anew = Guest::new();
    anew.device.set_last_reset(guest.device.last_reset());
    assert_eq!(anew.bar16(RELOAD), 0x1200);
    anew.device.set_last_reset(LastReset::new(false));
    assert_eq!(anew.bar16(RELOAD), 0x0000);
}

#[test]
fn a_reset_stops_the_counter_and_cancels_the_unlock_sequence() {
    let mut guest = Guest::with_interrupt_line();
    guest.preload(512, 512);
    guest.enable();
    guest.sleep(600 * KHZ);
    assert!(guest.device.interrupt_level());
    guest.set_bar16(RELOAD, 0x80);
    guest.device.reset();
    assert!(!guest.device.interrupt_level());
    assert_eq!(guest.bar32(RELOAD), 0, "no timeout");
    guest.set_bar16(RELOAD, 0x86);
    assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Ignored);
    assert_eq!(guest.sleep(3600 * SECOND), [] as [Event; 0]);
}

#[test]
fn a_key_is_recognized_by_its_offset_its_value_and_its_width() {
    for value in 0..=0xFF {
        for data in [&[value][..], &[value, 0], &[value, 0, 0, 0]] {
            let key = I6300esb::unlock_key(RELOAD, data);
            assert_eq!(key.is_some(), [0x80, 0x86].contains(&value), "{data:x?}");
            for offset in [PRELOAD1, PRELOAD2, GINTSR, RELOAD + 1, RELOAD + 0x10] {
                assert_eq!(I6300esb::unlock_key(offset, data), None, "{data:x?} at {offset:x}");
            }
        }
        for data in [&[][..], &[value, 1], &[value, 0, 1, 0], &[value, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(I6300esb::unlock_key(RELOAD, data), None, "{data:x?}");
        }
    }
}

/// A heartbeat counts even if a stage ends between its keys and its reload.
#[test]
fn the_end_of_a_stage_does_not_affect_the_unlock_sequence() {
    for keys_before in 0..=2 {
        for units in [512, 768] {
            let mut guest = Guest::new();
            guest.preload(512, 256);
            guest.enable();
            guest.sleep(units * KHZ - 1);
            let (before, after) = [0x80, 0x86].split_at(keys_before);
            for &key in before {
                guest.set_bar16(RELOAD, key);
            }
            guest.sleep(1);
            for &key in after {
                guest.set_bar16(RELOAD, key);
            }
            assert_eq!(guest.set_bar16(RELOAD, 0x0100), Access::Heartbeat, "{keys_before} keys before {units} units");
        }
    }
}

#[test]
fn enable_and_disable_do_not_affect_the_unlock_sequence() {
    for lock in [0x02, 0x00, 0x03] {
        let mut guest = Guest::new();
        guest.set_config8(LOCK, 0x02 & !lock);
        guest.unlock();
        guest.set_config8(LOCK, lock);
        assert_eq!(guest.set_bar32(PRELOAD1, 7), Access::Accepted, "68h = {lock:x}");
    }
}

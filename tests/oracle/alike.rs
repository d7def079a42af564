//! Behaviour that the model shares with QEMU's device.

use crate::pair::{Bar, Config, Pair};

/// Nanoseconds in one unit of a preload, at 1 kHz and at 1 MHz.
const KHZ: u64 = 983_040;
const MHZ: u64 = 960;

#[test]
fn the_headers_read_the_same_after_power_on() {
    let Some(mut pair) = Pair::start("the_headers_read_the_same_after_power_on") else { return };
    for width in [1, 2, 4] {
        for offset in (0..0x100).step_by(width) {
            pair.read_same(Config, offset, width);
        }
    }
}

#[test]
fn the_headers_keep_the_same_bits() {
    let Some(mut pair) = Pair::start("the_headers_keep_the_same_bits") else { return };
    // All offsets except that of the latency timer.
    for offset in (0..0x40).filter(|&offset| offset != 0x0D) {
        let before = pair.read_same(Config, offset, 1);
        pair.write(Config, offset, 1, 0xFF);
        pair.read_same(Config, offset, 1);
        pair.write(Config, offset, 1, before);
    }
    pair.write(Config, 0x04, 2, 0xFFFF);
    assert_eq!(pair.read_same(Config, 0x04, 2), 0x0507);
    pair.write(Config, 0x10, 4, 0xFFFF_FFFF);
    assert_eq!(pair.read_same(Config, 0x10, 4), 0xFFFF_FFF0);
}

#[test]
fn the_configuration_and_lock_registers_keep_the_same_bits() {
    let Some(mut pair) = Pair::start("the_configuration_and_lock_registers_keep_the_same_bits") else { return };
    for bit in 0..16 {
        for value in [1 << bit, 0xFFFF & !(1 << bit)] {
            pair.write(Config, 0x60, 2, value);
            assert_eq!(pair.read_same(Config, 0x60, 2), value & 0x27);
        }
    }
    pair.write(Config, 0x60, 2, 0x0000);
    for value in [0x02, 0x04, 0x06, 0xF8, 0xFA, 0x00, 0xFF, 0x00, 0x02] {
        pair.write(Config, 0x68, 1, value);
        pair.read_same(Config, 0x68, 1);
    }
    assert_eq!(pair.read_same(Config, 0x68, 1), 0x07, "locked");
}

#[test]
fn timeouts_expire_at_the_same_nanosecond() {
    let Some(mut pair) = Pair::start("timeouts_expire_at_the_same_nanosecond") else { return };
    for (configuration, unit) in [(0x0000, KHZ), (0x0003, KHZ), (0x0004, MHZ), (0x0007, MHZ)] {
        for (preload1, preload2) in
            [(1, 1), (512, 512), (2048, 1), (3, 70_000), (0, 5), (5, 0), (0, 0), (0xF_FFFF, 0xF_FFFF), (0xF0_0010, 7)]
        {
            for lock in [0x02, 0x03] {
                pair.write(Config, 0x60, 2, configuration);
                pair.preload(preload1, preload2);
                pair.write(Config, 0x68, 1, lock);
                let deadline = pair.now + u64::from((preload1 & 0xF_FFFF) + preload2) * unit;
                assert_eq!(pair.wait_alike(u64::from(u32::MAX) * KHZ), Some(deadline), "{preload1}, {preload2}");
                assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x1200);
                pair.reset();
                assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x1200, "survives the reset");
                pair.unlock();
                pair.write(Bar, 0x0C, 2, 0x0200);
                assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x0000);
            }
        }
    }
}

#[test]
fn reset_values_expire_at_the_same_nanosecond() {
    let Some(mut pair) = Pair::start("reset_values_expire_at_the_same_nanosecond") else { return };
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait_alike(3_000_000_000_000), Some(2 * 0xF_FFFF * KHZ));
}

#[test]
fn a_new_prescaler_takes_effect_at_the_next_load() {
    let Some(mut pair) = Pair::start("a_new_prescaler_takes_effect_at_the_next_load") else { return };
    pair.preload(512, 256);
    pair.write(Config, 0x68, 1, 0x02);
    let started = pair.now;
    assert_eq!(pair.wait_alike(100 * KHZ), None);
    pair.write(Config, 0x60, 2, 0x0004);
    assert_eq!(pair.wait_alike(1000 * KHZ), Some(started + 512 * KHZ + 256 * MHZ));
}

#[test]
fn a_new_preload_takes_effect_at_the_next_start_of_its_stage() {
    let Some(mut pair) = Pair::start("a_new_preload_takes_effect_at_the_next_start_of_its_stage") else { return };
    pair.preload(512, 256);
    pair.write(Config, 0x68, 1, 0x02);
    let started = pair.now;
    assert_eq!(pair.wait_alike(100 * KHZ), None);
    pair.preload(64, 32);
    assert_eq!(pair.wait_alike(430 * KHZ), None);
    pair.preload(64, 16);
    assert_eq!(pair.wait_alike(1000 * KHZ), Some(started + 544 * KHZ));
}

#[test]
fn free_running_mode_runs_two_stages_per_cycle() {
    let Some(mut pair) = Pair::start("free_running_mode_runs_two_stages_per_cycle") else { return };
    pair.preload(512, 256);
    pair.write(Config, 0x68, 1, 0x06);
    assert_eq!(pair.wait_alike(10_000 * KHZ), Some(768 * KHZ), "the first cycle");
    pair.reset();

    // While the output is disabled the cycles report nothing; the first end of stage two after that is reported.
    for cycles in [1, 2, 5] {
        pair.write(Config, 0x60, 2, 0x0020);
        pair.preload(512, 256);
        pair.write(Config, 0x68, 1, 0x06);
        let started = pair.now;
        assert_eq!(pair.wait_alike(cycles * 768 * KHZ + 700 * KHZ), None);
        pair.write(Config, 0x60, 2, 0x0000);
        assert_eq!(pair.wait_alike(10_000 * KHZ), Some(started + (cycles + 1) * 768 * KHZ));
        pair.reset();
    }
}

#[test]
fn the_unlock_sequence_is_the_same() {
    let Some(mut pair) = Pair::start("the_unlock_sequence_is_the_same") else { return };
    // Registers and values of 16-bit and 32-bit writes: QEMU's device accepts both widths there.
    let steps = [(0x0C, 2, 0x80), (0x0C, 4, 0x86), (0x0C, 2, 0x42), (0x08, 4, 0x80), (0x04, 4, 0x55), (0x0C, 4, 0x80)];
    for number in 0..6_usize.pow(4) {
        let sequence: Vec<_> = (0..4).map(|digit| steps[number / 6_usize.pow(digit) % 6]).collect();
        pair.write(Config, 0x68, 1, 0x00);
        pair.preload(1000, 1000);
        pair.write(Config, 0x68, 1, 0x02);
        for &(offset, width, value) in &sequence {
            pair.write(Bar, offset, width, value);
        }
        // If the preload is unlocked, this changes the deadline of the next start.
        pair.write(Bar, 0x00, 4, 1);
        pair.write(Config, 0x68, 1, 0x00);
        pair.write(Config, 0x68, 1, 0x02);
        assert_eq!(pair.wait_alike(999 * KHZ), None, "{sequence:x?}");
    }
}

#[test]
fn either_bit_clears_the_timeout() {
    let Some(mut pair) = Pair::start("either_bit_clears_the_timeout") else { return };
    for (clear, expected) in [(0x0200, 0x0000), (0x1000, 0x0000), (0x1100, 0x0000), (0x0400, 0x1200), (0x0100, 0x1200)]
    {
        pair.preload(1, 1);
        pair.write(Config, 0x68, 1, 0x02);
        assert!(pair.wait_alike(10 * KHZ).is_some());
        pair.reset();
        pair.write(Bar, 0x0C, 2, clear);
        assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x1200, "without an unlock");
        pair.unlock();
        pair.write(Bar, 0x0C, 2, clear);
        assert_eq!(pair.read_same(Bar, 0x0C, 2), expected, "{clear:x}");
    }
}

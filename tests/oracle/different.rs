//! Intended differences between the model and QEMU's device: each row of the table in the contract, measured on both.
//!
//! Each pair of results is QEMU's first, then the model's. In the names of the tests, "here" is the model and "there"
//! is QEMU.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Model, VmInstant};

use crate::pair::{Bar, Config, Pair, SECOND};

const KHZ: u64 = 983_040;

#[test]
fn other_widths_of_60h_and_68h_take_effect_here_and_are_plain_storage_there() {
    let Some(mut pair) = Pair::start("other_widths_of_60h_and_68h_take_effect_here_and_are_plain_storage_there") else {
        return;
    };
    for width in [1, 4] {
        pair.write(Config, 0x60, width, 0x27);
        assert_eq!(pair.read(Config, 0x60, 2), (0x0000, 0x0027), "60h after {width} bytes");
        pair.write(Config, 0x60, 2, 0x0000);
        assert_eq!(pair.read(Config, 0x60, width), (0x27, 0x00), "{width} bytes of 60h");
    }
    for width in [2, 4] {
        pair.write(Config, 0x68, width, 0x02);
        assert_eq!(pair.read(Config, 0x68, 1), (0x00, 0x02), "68h after {width} bytes");
        pair.write(Config, 0x68, 1, 0x00);
        assert_eq!(pair.read(Config, 0x68, width), (0x02, 0x00), "{width} bytes of 68h");
    }
}

/// The end of OpenBSD's probe, and its start. QEMU's device supports none of these widths.
#[test]
fn openbsd_times_out_here_and_never_there() {
    let Some(mut pair) = Pair::start("openbsd_times_out_here_and_never_there") else { return };
    pair.write(Config, 0x60, 4, 0x03);
    pair.write(Config, 0x68, 4, 0x00);
    for (register, preload) in [(0x00, 30_212), (0x04, 2)] {
        pair.write(Bar, 0x0C, 4, 0x80);
        pair.write(Bar, 0x0C, 4, 0x86);
        pair.write(Bar, register, 4, preload);
    }
    pair.write(Config, 0x68, 4, 0x02);
    assert_eq!(pair.wait(30_214 * KHZ - 1), (0, 0));
    assert_eq!(pair.wait(1), (0, 1));
    assert_eq!(pair.wait(3600 * SECOND), (0, 0));
    assert_eq!(pair.read(Bar, 0x0C, 4), (0x0000, 0x1200));
}

#[test]
fn the_timeout_bit_is_read_at_every_width_here_and_with_16_bits_there() {
    let Some(mut pair) = Pair::start("the_timeout_bit_is_read_at_every_width_here_and_with_16_bits_there") else {
        return;
    };
    pair.preload(1, 1);
    pair.write(Config, 0x68, 1, 0x02);
    assert!(pair.wait_alike(SECOND).is_some());
    assert_eq!(pair.read(Bar, 0x0C, 2), (0x1200, 0x1200));
    assert_eq!(pair.read(Bar, 0x0D, 1), (0x00, 0x12));
    assert_eq!(pair.read(Bar, 0x0C, 4), (0x0000, 0x1200));
}

#[test]
fn a_reload_takes_effect_at_every_width_here_and_with_16_bits_there() {
    let Some(mut pair) = Pair::start("a_reload_takes_effect_at_every_width_here_and_with_16_bits_there") else {
        return;
    };
    for (offset, width, value) in [(0x0D, 1, 0x01), (0x0C, 4, 0x0100)] {
        pair.preload(512, 512);
        pair.write(Config, 0x68, 1, 0x02);
        assert_eq!(pair.wait(1000 * KHZ), (0, 0));
        pair.unlock();
        pair.write(Bar, offset, width, value);
        assert_eq!(pair.wait(24 * KHZ), (1, 0), "{width} bytes: QEMU ignores the heartbeat");
        assert_eq!(pair.wait(1000 * KHZ - 1), (0, 0), "{width} bytes");
        assert_eq!(pair.wait(1), (0, 1), "{width} bytes");
        pair.reset();
    }
}

#[test]
fn preloads_are_written_at_every_width_here_and_with_32_bits_there() {
    let Some(mut pair) = Pair::start("preloads_are_written_at_every_width_here_and_with_32_bits_there") else { return };
    for width in [1, 2] {
        pair.preload(0x8_0000, 2000);
        pair.unlock();
        pair.write(Bar, 0x04, width, 0x0010);
        pair.unlock();
        pair.write(Bar, 0x00, 4, 1000);
        pair.write(Config, 0x68, 1, 0x02);
        // QEMU's preload stays 0x7D0; the model's changes in its low byte, or in its low 16 bits.
        let here = if width == 1 { 0x710 } else { 0x010 };
        assert_eq!(pair.wait((1000 + here) * KHZ - 1), (0, 0), "{width} bytes");
        assert_eq!(pair.wait(1), (0, 1), "{width} bytes");
        assert_eq!(pair.wait((2000 - here) * KHZ - 1), (0, 0), "{width} bytes");
        assert_eq!(pair.wait(1), (1, 0), "{width} bytes");
        pair.reset();
    }
}

#[test]
fn a_byte_write_uses_the_unlock_up_here_and_not_there() {
    let Some(mut pair) = Pair::start("a_byte_write_uses_the_unlock_up_here_and_not_there") else { return };
    pair.unlock();
    pair.write(Bar, 0x08, 1, 0x00);
    pair.write(Bar, 0x00, 4, 1000);
    pair.unlock();
    pair.write(Bar, 0x04, 4, 1000);
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait(2000 * KHZ), (1, 0));
    assert_eq!(pair.model.poll_at(), Some(VmInstant::from_nanos(0xF_FFFF * KHZ)), "preload 1 has its reset value");
}

#[test]
fn preloads_and_gintsr_read_back_here_and_zero_there() {
    let Some(mut pair) = Pair::start("preloads_and_gintsr_read_back_here_and_zero_there") else { return };
    pair.preload(512, 1000);
    assert_eq!(pair.read(Bar, 0x00, 4), (0, 512));
    assert_eq!(pair.read(Bar, 0x04, 4), (0, 1000));
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait(512 * KHZ), (0, 0));
    assert_eq!(pair.read(Bar, 0x08, 4), (0, 1), "the end of stage one");
    pair.write(Bar, 0x08, 4, 1);
    assert_eq!(pair.read(Bar, 0x08, 4), (0, 0));
}

#[test]
fn stage_one_interrupts_here_and_not_there() {
    let Some(mut pair) = Pair::start("stage_one_interrupts_here_and_not_there") else { return };
    pair.model = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
    assert_eq!(pair.read(Config, 0x3D, 1), (0, 1), "QEMU's device has no pin");
    pair.write(Config, 0x60, 2, 0x0000);
    pair.preload(512, 1000);
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait(512 * KHZ - 1), (0, 0));
    assert!(!pair.model.interrupt_level());
    assert_eq!(pair.qemu.step(1), 0);
    pair.now += 1;
    let expired = pair.model.poll(VmInstant::from_nanos(pair.now));
    assert_eq!(expired.pretimeout, Some(VmInstant::from_nanos(512 * KHZ)));
    assert!(pair.model.interrupt_level());
    assert_eq!(pair.read(Config, 0x06, 2), (0x0000, 0x0008));
}

#[test]
fn after_a_timeout_the_device_stays_armed_here_and_is_reset_there() {
    let Some(mut pair) = Pair::start("after_a_timeout_the_device_stays_armed_here_and_is_reset_there") else { return };
    pair.write(Config, 0x60, 2, 0x0003);
    pair.preload(512, 512);
    pair.write(Config, 0x68, 1, 0x03);
    assert!(pair.wait_alike(2 * SECOND).is_some());
    assert_eq!(pair.read(Config, 0x68, 1), (0x00, 0x03));
    assert_eq!(pair.read(Config, 0x60, 2), (0x0000, 0x0003));
    assert_eq!(pair.wait(5 * SECOND), (0, 0), "once");

    // After a pause, an NMI or no action the guest recovers, sends a heartbeat, and then hangs again.
    pair.reload();
    assert_eq!(pair.wait(1024 * KHZ - 1), (0, 0));
    assert_eq!(pair.wait(1), (0, 1));
    assert_eq!(pair.wait(10_000 * SECOND), (0, 0), "QEMU's device is not armed any more");
}

#[test]
fn with_output_disabled_the_timeout_bit_is_set_here_and_not_there() {
    let Some(mut pair) = Pair::start("with_output_disabled_the_timeout_bit_is_set_here_and_not_there") else { return };
    pair.write(Config, 0x60, 2, 0x0020);
    pair.preload(512, 512);
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait(10 * SECOND), (0, 0));
    assert_eq!(pair.read(Bar, 0x0C, 2), (0x0000, 0x1200));

    // From here both are the same: enabled, with a stopped counter until the next reload.
    assert_eq!(pair.read_same(Config, 0x68, 1), 0x02);
    pair.write(Config, 0x60, 2, 0x0000);
    assert_eq!(pair.wait_alike(3600 * SECOND), None);
    pair.reload();
    let last = pair.now;
    assert_eq!(pair.wait_alike(3600 * SECOND), Some(last + 1024 * KHZ));
}

#[test]
fn undefined_configuration_offsets_are_empty_here_and_storage_there() {
    let Some(mut pair) = Pair::start("undefined_configuration_offsets_are_empty_here_and_storage_there") else {
        return;
    };
    for offset in (0x40..0x100).filter(|offset| !matches!(offset, 0x60..=0x61 | 0x64..=0x68)) {
        pair.write(Config, offset, 1, 0xA5);
        assert_eq!(pair.read(Config, offset, 1), (0xA5, 0x00), "{offset:x}");
    }
}

#[test]
fn the_live_counter_counts_here_and_is_storage_there() {
    let Some(mut pair) = Pair::start("the_live_counter_counts_here_and_is_storage_there") else { return };
    pair.preload(512, 512);
    pair.write(Config, 0x68, 1, 0x02);
    assert_eq!(pair.wait(100 * KHZ), (0, 0));
    assert_eq!(pair.read(Config, 0x64, 4), (0, 412));
    pair.write(Config, 0x64, 4, 0x1234_5678);
    assert_eq!(pair.read(Config, 0x64, 4), (0x1234_5678, 412));
}

#[test]
fn the_latency_timer_is_storage_here_and_zero_there() {
    let Some(mut pair) = Pair::start("the_latency_timer_is_storage_here_and_zero_there") else { return };
    pair.write(Config, 0x0D, 1, 0x40);
    assert_eq!(pair.read(Config, 0x0D, 1), (0x00, 0x40));
}

#[test]
fn a_stage_of_zero_in_free_running_mode_lasts_one_unit_here_and_ends_at_once_there() {
    let test = "a_stage_of_zero_in_free_running_mode_lasts_one_unit_here_and_ends_at_once_there";
    let Some(mut pair) = Pair::start(test) else { return };
    for (preload1, preload2) in [(0, 5), (5, 0)] {
        pair.preload(preload1, preload2);
        pair.write(Config, 0x68, 1, 0x06);
        assert_eq!(pair.wait(5 * KHZ - 1), (0, 0));
        assert_eq!(pair.wait(1), (1, 0));
        assert_eq!(pair.wait(KHZ - 1), (0, 0));
        assert_eq!(pair.wait(1), (0, 1));
        pair.reset();
    }
}

#[test]
fn bar0_stays_mapped_while_it_is_sized_here_and_disappears_there() {
    let Some(mut pair) = Pair::start("bar0_stays_mapped_while_it_is_sized_here_and_disappears_there") else { return };
    pair.preload(1, 1);
    pair.write(Config, 0x68, 1, 0x02);
    assert!(pair.wait_alike(SECOND).is_some());
    let address = pair.read_same(Config, 0x10, 4);
    pair.write(Config, 0x10, 4, 0xFFFF_FFFF);
    assert_eq!(pair.read_same(Config, 0x10, 4), 0xFFFF_FFF0);
    assert_eq!(pair.model.bar0(), Some(address));
    assert_eq!(pair.read(Bar, 0x0C, 2), (0x0000, 0x1200));
    pair.write(Config, 0x10, 4, address);
    assert_eq!(pair.read_same(Bar, 0x0C, 2), 0x1200);
}

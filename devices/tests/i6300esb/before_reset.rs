//! A guest that goes on after a reset of the device that it does not know of, as a guest of a snapshot does, and guests that
//! boot after a reset.

use std::time::Duration;

use vm_watchdog_devices::i6300esb::{ArmedStateV1, I6300esb, I6300esbConfig, I6300esbStateV1, SinceResetStateV1};
use vm_watchdog_devices::{Access, Model};

use crate::clients::{efi_boot_guard, freebsd, linux, old_linux, openbsd};
use crate::guest::{CONFIGURATION, Event, Guest, KHZ, LOCK, MHZ, PRELOAD1, PRELOAD2, RELOAD, SECOND};

/// The VMM puts the registers back, as it may at a heartbeat.
fn rearm(guest: &mut Guest) -> bool {
    let announced = guest.device.rearm_timeout();
    let is_armed = guest.device.rearm(guest.at());
    assert_eq!(announced.is_some(), is_armed);
    is_armed
}

/// A guest of Linux that has armed the watchdog, and whose device was then reset.
fn forgotten(seconds: u32, nowayout: bool) -> Guest {
    let mut guest = Guest::new();
    guest.enumerate();
    linux::probe(&mut guest, seconds);
    linux::start(&mut guest, nowayout);
    // QEMU turns memory decoding off first.
    guest.set_config16(0x04, 0x0001);
    guest.device.reset();
    guest
}

#[test]
fn a_heartbeat_of_a_disarmed_watchdog_is_reported_and_has_no_effect() {
    let mut guest = Guest::new();
    assert_eq!(guest.set_bar16(RELOAD, 0x0100), Access::Ignored, "without the keys it is none");
    assert_eq!(guest.reload(), Access::HeartbeatWhileDisarmed);
    assert_eq!(guest.deadline(), None);
    guest.enable();
    assert_eq!(guest.reload(), Access::Heartbeat);
    guest.disable();
    assert_eq!(guest.reload(), Access::HeartbeatWhileDisarmed);
    guest.unlock();
    assert_eq!(guest.set_bar16(RELOAD, 0x0200), Access::Accepted, "clears WDT_TIMEOUT alone");
}

#[test]
fn the_registers_of_before_the_reset_are_put_back_with_a_full_period() {
    for (nowayout, lock) in [(false, 0x02), (true, 0x03)] {
        let mut guest = forgotten(4, nowayout);
        assert_eq!((guest.config16(CONFIGURATION), guest.config8(LOCK)), (0, 0));
        assert_eq!(guest.bar32(PRELOAD1), 0xF_FFFF);
        assert!(guest.device.guest_may_predate_reset());
        assert_eq!(guest.device.rearm_timeout(), Some(Duration::from_nanos(4096 * KHZ)));

        guest.sleep(60 * SECOND);
        assert_eq!(guest.reload(), Access::HeartbeatWhileDisarmed);
        assert!(rearm(&mut guest));
        assert_eq!((guest.config16(CONFIGURATION), guest.config8(LOCK)), (3, lock));
        assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (2048, 2048));
        assert!(!guest.device.guest_may_predate_reset());
        assert!(!rearm(&mut guest), "it is armed");
        assert!(guest.device.is_armed());

        // As before: heartbeats keep it from timing out, and a lock holds.
        assert_eq!(guest.sleep(3 * SECOND), [Event::Pretimeout(guest.now - 3 * SECOND + 2048 * KHZ)]);
        assert_eq!(guest.reload(), Access::Heartbeat);
        assert_eq!(linux::stop(&mut guest), !nowayout);
        if nowayout {
            let last = guest.now;
            assert_eq!(guest.sleep(60 * SECOND).last(), Some(&Event::Timeout(last + 4096 * KHZ)));
        }
    }
}

#[test]
fn several_resets_in_a_row_keep_the_registers() {
    let mut guest = forgotten(4, true);
    for _ in 0..3 {
        guest.device.reset();
    }
    assert!(rearm(&mut guest));
    assert_eq!((guest.config8(LOCK), guest.bar32(PRELOAD1)), (0x03, 2048));
    // Once more, with a device that was put back.
    guest.device.reset();
    assert!(rearm(&mut guest));
    assert_eq!((guest.config8(LOCK), guest.bar32(PRELOAD1)), (0x03, 2048));
}

#[test]
fn nothing_is_put_back_if_the_watchdog_was_not_armed() {
    let mut guest = Guest::new();
    assert!(!rearm(&mut guest), "after power-on");
    guest.device.reset();
    assert!(!rearm(&mut guest), "after a reset");

    // A magic close before the reset, also of a watchdog that an earlier reset has forgotten.
    let mut guest = Guest::new();
    linux::probe(&mut guest, 4);
    linux::start(&mut guest, false);
    assert!(linux::stop(&mut guest));
    guest.device.reset();
    assert!(guest.device.guest_may_predate_reset(), "it is found if it feeds");
    guest.device.reset();
    assert!(!rearm(&mut guest));
    let mut guest = forgotten(4, false);
    linux::stop(&mut guest);
    assert!(!rearm(&mut guest));
    guest.device.reset();
    assert!(!rearm(&mut guest));
    assert_eq!(guest.sleep(10_000 * SECOND), []);
}

/// What boots after a reset, and whether it has written 68h at the end.
#[test]
fn a_guest_that_boots_is_told_apart_before_its_second_heartbeat() {
    type Boot = fn(&mut Guest);
    let boots: [(&str, Boot, bool); 7] = [
        ("firmware alone", |_| {}, false),
        ("Linux", |guest| _ = linux::probe(guest, 30), true),
        ("Linux 2.6", |guest| _ = old_linux::probe(guest, 30), true),
        ("FreeBSD", freebsd::attach, true),
        ("OpenBSD", |guest| _ = openbsd::attach(guest), true),
        ("EFI Boot Guard", |guest| efi_boot_guard(guest, 60), true),
        ("a user who reads all of configuration space", |guest| _ = guest.read_config::<256>(0), false),
    ];
    for (name, boot, is_told_apart) in boots {
        let mut guest = forgotten(4, false);
        guest.reboot();
        assert!(guest.device.guest_may_predate_reset(), "{name}: enumeration says nothing");
        boot(&mut guest);
        assert_eq!(guest.device.guest_may_predate_reset(), !is_told_apart, "{name}");
        assert_eq!(guest.device.rearm_timeout().is_none(), is_told_apart, "{name}");
    }
}

#[test]
fn what_the_guest_has_written_since_the_reset_is_kept() {
    // A guest that feeds on sets a longer timeout: the old one would time out early.
    let mut guest = forgotten(4, false);
    linux::set_timeout(&mut guest, 60);
    assert_eq!(guest.device.rearm_timeout(), Some(Duration::from_nanos(2 * 30_720 * KHZ)));
    guest.device.reset();
    assert!(rearm(&mut guest));
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (30_720, 30_720));
    assert_eq!(guest.deadline(), Some(guest.now + 30_720 * KHZ));

    // Bytes are written to what the guest has in mind, not to what a reset has left.
    let mut guest = forgotten(4, false);
    guest.unlock();
    guest.set_bar8(PRELOAD1, 0x11);
    guest.set_config8(CONFIGURATION, 0x07);
    assert_eq!(guest.bar32(PRELOAD1), 0xF_FF11);
    assert!(rearm(&mut guest));
    assert_eq!((guest.bar32(PRELOAD1), guest.bar32(PRELOAD2)), (0x811, 2048));
    assert_eq!(guest.config8(CONFIGURATION), 0x07);
    assert_eq!(guest.deadline(), Some(guest.now + 0x811 * MHZ));
}

#[test]
fn the_registers_are_part_of_the_saved_state() {
    let mut guest = forgotten(4, true);
    guest.sleep(SECOND);
    let armed =
        ArmedStateV1 { wdt_configuration: 3, wdt_lock: 3, preload1: 2048, preload2: 2048, bar0: Some(0xFEBF_1000) };
    let state = guest.device.save(guest.at());
    assert_eq!(state.since_reset, Some(SinceResetStateV1 { armed_before: Some(armed) }));
    assert_eq!(guest.device.armed_before_reset(), Some(armed));
    let mut target = Guest::new();
    target.device = target.device.restored(&state, target.at()).unwrap();
    assert_eq!(target.device.save(target.at()), state);
    assert!(rearm(&mut target));
    assert_eq!(target.deadline(), Some(target.now + 2048 * KHZ));
    // BAR0 is the VMM's to map.
    assert_eq!(target.device.armed_registers(), Some(ArmedStateV1 { bar0: None, ..armed }));

    // A state from before this field existed: nothing is put back.
    let old = I6300esbStateV1 { since_reset: None, ..state };
    target.device = target.device.restored(&old, target.at()).unwrap();
    assert!(!target.device.guest_may_predate_reset() && !rearm(&mut target));

    let device = I6300esb::new(I6300esbConfig::default());
    let with = |armed| I6300esbStateV1 { since_reset: Some(SinceResetStateV1 { armed_before: Some(armed) }), ..state };
    for (state, field) in [
        (with(ArmedStateV1 { wdt_configuration: 0x08, ..armed }), "since_reset.armed_before.wdt_configuration"),
        (with(ArmedStateV1 { wdt_lock: 0x01, ..armed }), "since_reset.armed_before.wdt_lock"),
        (with(ArmedStateV1 { wdt_lock: 0x0A, ..armed }), "since_reset.armed_before.wdt_lock"),
        (with(ArmedStateV1 { preload1: 0x10_0000, ..armed }), "since_reset.armed_before.preload1"),
        (with(ArmedStateV1 { preload2: u32::MAX, ..armed }), "since_reset.armed_before.preload2"),
        (with(ArmedStateV1 { bar0: Some(0), ..armed }), "since_reset.armed_before.bar0"),
        (with(ArmedStateV1 { bar0: Some(0xFEBF_1008), ..armed }), "since_reset.armed_before.bar0"),
        (I6300esbStateV1 { wdt_lock: 0x02, ..state }, "since_reset"),
    ] {
        assert_eq!(device.restored(&state, target.at()).expect_err(field).field, field);
    }
}

#[test]
fn a_preload_of_zero_ends_at_once_also_when_it_is_put_back() {
    let mut guest = Guest::new();
    guest.preload(512, 0);
    guest.enable();
    guest.device.reset();
    assert!(rearm(&mut guest));
    let at = guest.now + 512 * KHZ;
    assert_eq!(guest.sleep(SECOND), [Event::Pretimeout(at), Event::Timeout(at)]);
}

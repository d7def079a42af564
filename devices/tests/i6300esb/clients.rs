//! Access sequences of the drivers that must work unmodified, with their widths, from probe to stop.

use crate::guest::{CONFIGURATION, Event, Guest, KHZ, LIVE_COUNTER, LOCK, PRELOAD1, PRELOAD2, RELOAD, SECOND};

/// WDT_TIMEOUT in RELOAD.
const TIMEOUT: u16 = 1 << 9;

/// Linux since 2.6.30: 16-bit keys.
pub mod linux {
    use super::*;

    /// Returns whether the driver reports WDIOF_CARDRESET.
    pub fn probe(guest: &mut Guest, seconds: u32) -> bool {
        guest.set_config16(CONFIGURATION, 0x0003);
        let _nowayout_already_set = guest.config8(LOCK) & 0x01 != 0;
        guest.set_config8(LOCK, 0x00);
        guest.unlock();
        let card_reset = guest.bar16(RELOAD) & TIMEOUT != 0;
        guest.unlock();
        guest.set_bar16(RELOAD, 0x0300);
        set_timeout(guest, seconds);
        card_reset
    }

    pub fn set_timeout(guest: &mut Guest, seconds: u32) {
        guest.unlock();
        guest.set_bar32(PRELOAD1, seconds << 9);
        guest.unlock();
        guest.set_bar32(PRELOAD2, seconds << 9);
        ping(guest);
    }

    pub fn ping(guest: &mut Guest) {
        guest.unlock();
        guest.set_bar16(RELOAD, 0x0100);
    }

    pub fn start(guest: &mut Guest, nowayout: bool) {
        ping(guest);
        guest.set_config8(LOCK, if nowayout { 0x03 } else { 0x02 });
    }

    /// Returns whether the driver reports success.
    pub fn stop(guest: &mut Guest) -> bool {
        ping(guest);
        guest.set_config8(LOCK, 0x00);
        guest.config8(LOCK) & 0x02 == 0
    }
}

#[test]
fn linux_times_out_without_heartbeats_and_reads_the_cause_after_the_reset() {
    let mut guest = Guest::new();
    guest.enumerate();
    assert!(!linux::probe(&mut guest, 4));
    assert_eq!(guest.deadline(), None, "the driver has not started the watchdog");

    linux::start(&mut guest, false);
    for _ in 0..20 {
        assert_eq!(guest.sleep(2 * SECOND), []);
        linux::ping(&mut guest);
    }
    // The driver rounds 4 s up to 2048 units in each of two stages: 4.027 s.
    let last_ping = guest.now;
    let deadline = last_ping + 4_026_531_840;
    assert_eq!(guest.sleep(60 * SECOND), [Event::Pretimeout(last_ping + 2_013_265_920), Event::Timeout(deadline)]);

    guest.reboot();
    assert_eq!(guest.sleep(60 * SECOND), [], "the new kernel boots without a watchdog");
    assert!(linux::probe(&mut guest, 4), "bootstatus is WDIOF_CARDRESET");
    guest.reboot();
    assert!(!linux::probe(&mut guest, 4), "the first probe has cleared the cause");
}

#[test]
fn linux_changes_the_timeout_while_the_watchdog_runs() {
    let mut guest = Guest::new();
    guest.enumerate();
    linux::probe(&mut guest, 30);
    linux::start(&mut guest, false);
    assert_eq!(guest.sleep(10 * SECOND), []);
    linux::set_timeout(&mut guest, 2);
    assert_eq!(guest.deadline(), Some(guest.now + 1024 * KHZ));
}

#[test]
fn linux_stops_the_watchdog_with_a_magic_close() {
    let mut guest = Guest::new();
    guest.enumerate();
    linux::probe(&mut guest, 4);
    linux::start(&mut guest, false);
    assert_eq!(guest.sleep(SECOND), []);
    assert!(linux::stop(&mut guest));
    assert_eq!(guest.sleep(10_000 * SECOND), []);
}

#[test]
fn linux_cannot_stop_the_watchdog_with_nowayout() {
    let mut guest = Guest::new();
    guest.enumerate();
    linux::probe(&mut guest, 4);
    linux::start(&mut guest, true);
    assert_eq!(guest.sleep(SECOND), []);
    assert!(!linux::stop(&mut guest));
    let last_ping = guest.now;
    assert_eq!(guest.sleep(5 * SECOND).last(), Some(&Event::Timeout(last_ping + 4 * 1024 * KHZ)));
}

/// Linux 2.6 before 2.6.30: 8-bit keys, and 0x1100 to clear the cause of the reset.
pub mod old_linux {
    use super::*;

    fn unlock(guest: &mut Guest) {
        guest.set_bar8(RELOAD, 0x80);
        guest.set_bar8(RELOAD, 0x86);
    }

    /// Returns whether the driver reports the watchdog as the cause of the last reset.
    pub fn probe(guest: &mut Guest, seconds: u32) -> bool {
        guest.set_config16(CONFIGURATION, 0x0003);
        let _nowayout_already_set = guest.config8(LOCK) & 0x01 != 0;
        guest.set_config8(LOCK, 0x00);
        unlock(guest);
        let triggered = guest.bar16(RELOAD) & TIMEOUT != 0;
        unlock(guest);
        guest.set_bar16(RELOAD, 0x1100);
        for preload in [PRELOAD1, PRELOAD2] {
            unlock(guest);
            guest.set_bar32(preload, seconds << 9);
        }
        keepalive(guest);
        stop(guest);
        triggered
    }

    pub fn keepalive(guest: &mut Guest) {
        unlock(guest);
        guest.set_bar16(RELOAD, 0x0100);
    }

    pub fn start(guest: &mut Guest) {
        keepalive(guest);
        guest.set_config8(LOCK, 0x02);
    }

    pub fn stop(guest: &mut Guest) -> bool {
        keepalive(guest);
        guest.set_config8(LOCK, 0x00);
        guest.config8(LOCK) & 0x01 == 0
    }

    /// WDIOC_GETSTATUS.
    pub fn status(guest: &mut Guest) -> u32 {
        guest.config32(LIVE_COUNTER)
    }
}

#[test]
fn linux_2_6_times_out_without_heartbeats_and_reads_the_cause_after_the_reset() {
    let mut guest = Guest::new();
    guest.enumerate();
    assert!(!old_linux::probe(&mut guest, 30));
    old_linux::start(&mut guest);
    for _ in 0..10 {
        assert_eq!(guest.sleep(10 * SECOND), []);
        // 15,360 units in each stage; after 10 s 10,172.5 of them have passed.
        assert_eq!(old_linux::status(&mut guest), 15_360 - 10_173);
        old_linux::keepalive(&mut guest);
    }
    let last_ping = guest.now;
    let deadline = last_ping + 2 * 15_360 * KHZ;
    assert_eq!(guest.sleep(60 * SECOND).last(), Some(&Event::Timeout(deadline)));

    guest.reboot();
    assert!(old_linux::probe(&mut guest, 30));
    guest.reboot();
    assert!(!old_linux::probe(&mut guest, 30), "0x1100 has cleared the cause");

    old_linux::start(&mut guest);
    assert!(old_linux::stop(&mut guest));
    assert_eq!(guest.sleep(3600 * SECOND), []);
}

/// FreeBSD's i6300esbwd(4) of 2025.
pub mod freebsd {
    use super::*;

    pub fn attach(guest: &mut Guest) {
        guest.set_config16(CONFIGURATION, 0x0003);
        if guest.config8(LOCK) & 0x01 == 0 {
            guest.set_config8(LOCK, 0x00);
        }
        guest.unlock();
        guest.set_bar16(RELOAD, 0x0300);
    }

    /// watchdog(4) sends a heartbeat with a timeout of `1 << exponent` ms, which the driver sets for each stage.
    pub fn pat(guest: &mut Guest, exponent: u32) {
        reload(guest);
        guest.unlock();
        guest.set_bar32(PRELOAD1, 1 << exponent);
        guest.unlock();
        guest.set_bar32(PRELOAD2, 1 << exponent);
        reload(guest);
        if guest.config8(LOCK) & 0x01 == 0 {
            guest.set_config8(LOCK, 0x02);
            assert_eq!(guest.config8(LOCK), 0x02);
        }
    }

    fn reload(guest: &mut Guest) {
        guest.unlock();
        guest.set_bar16(RELOAD, 0x0100);
    }

    pub fn stop(guest: &mut Guest) {
        reload(guest);
        let lock = guest.config8(LOCK);
        guest.set_config8(LOCK, lock & !0x02);
    }

    /// sysctl hw.i6300esbwd.0.locked=1
    pub fn lock(guest: &mut Guest) {
        let lock = guest.config8(LOCK);
        guest.set_config8(LOCK, lock | 0x01);
    }
}

#[test]
fn freebsd_sends_heartbeats_stops_and_times_out() {
    let mut guest = Guest::new();
    guest.enumerate();
    freebsd::attach(&mut guest);
    assert_eq!(guest.deadline(), None);

    for _ in 0..5 {
        freebsd::pat(&mut guest, 12);
        assert_eq!(guest.sleep(4 * SECOND), []);
    }
    freebsd::stop(&mut guest);
    assert_eq!(guest.config8(LOCK), 0x00);
    assert_eq!(guest.sleep(100 * SECOND), []);

    freebsd::pat(&mut guest, 12);
    let last_pat = guest.now;
    let [first, second] = [4096 * KHZ, 2 * 4096 * KHZ];
    assert_eq!(guest.sleep(100 * SECOND), [Event::Pretimeout(last_pat + first), Event::Timeout(last_pat + second)]);

    guest.reboot();
    assert_eq!(guest.bar16(RELOAD) & TIMEOUT, TIMEOUT);
    freebsd::attach(&mut guest);
    assert_eq!(guest.bar16(RELOAD) & TIMEOUT, 0);
}

#[test]
fn freebsd_cannot_stop_a_watchdog_that_it_locked() {
    let mut guest = Guest::new();
    guest.enumerate();
    freebsd::attach(&mut guest);
    freebsd::pat(&mut guest, 10);
    freebsd::lock(&mut guest);
    freebsd::stop(&mut guest);
    assert_eq!(guest.config8(LOCK), 0x03);
    let last_reload = guest.now;
    assert_eq!(guest.sleep(5 * SECOND).last(), Some(&Event::Timeout(last_reload + 2 * 1024 * KHZ)));
}

/// OpenBSD's ichwdt(4): 32-bit accesses, an unchanged prescaler, and a second stage of two units.
pub mod openbsd {
    use super::*;

    fn unlock_write(guest: &mut Guest, register: u64, value: u32) {
        guest.set_bar32(RELOAD, 0x80);
        guest.set_bar32(RELOAD, 0x86);
        guest.set_bar32(register, value);
    }

    /// Returns the divisor of the clock, and whether "reboot on timeout" is printed.
    pub fn attach(guest: &mut Guest) -> (u32, bool) {
        let configuration = guest.config32(CONFIGURATION);
        let divisor = if configuration & 0x04 != 0 { 32 } else { 32_768 };
        guest.set_config32(CONFIGURATION, configuration & !0x03 | 0x03);
        let timed_out = guest.bar32(RELOAD) & u32::from(TIMEOUT) != 0;
        if timed_out {
            unlock_write(guest, RELOAD, TIMEOUT.into());
        }
        guest.set_config32(LOCK, 0);
        (divisor, timed_out)
    }

    pub fn start(guest: &mut Guest, divisor: u32, seconds: u32) -> u32 {
        let ticks = seconds * 33_000_000 / divisor;
        unlock_write(guest, PRELOAD1, ticks);
        unlock_write(guest, PRELOAD2, 2);
        guest.set_config32(LOCK, 0x02);
        assert_eq!(guest.config32(LOCK), 0x02);
        ticks
    }

    pub fn tickle(guest: &mut Guest) {
        unlock_write(guest, RELOAD, 0x0100);
    }

    pub fn stop(guest: &mut Guest) {
        tickle(guest);
        guest.set_config32(LOCK, 0);
        assert_eq!(guest.config32(LOCK), 0);
    }
}

#[test]
fn openbsd_sends_heartbeats_stops_and_times_out() {
    // The prescaler that firmware has set, and the length of a preload unit with it.
    for (firmware, divisor, unit) in [(0x00, 32_768, 983_040), (0x04, 32, 960)] {
        let seconds = if divisor == 32 { 1 } else { 30 };
        let mut guest = Guest::new();
        guest.enumerate();
        guest.set_config8(CONFIGURATION, firmware);
        assert_eq!(openbsd::attach(&mut guest), (divisor, false));
        assert_eq!(guest.config32(CONFIGURATION), u32::from(firmware) | 0x03);

        // A preload of more than 20 bits loses its upper bits, as on hardware.
        let stage1 = u64::from(openbsd::start(&mut guest, divisor, seconds) & 0xF_FFFF) * unit;
        for _ in 0..10 {
            assert_eq!(guest.sleep(stage1 - 1), []);
            openbsd::tickle(&mut guest);
        }
        openbsd::stop(&mut guest);
        assert_eq!(guest.sleep(3600 * SECOND), []);

        openbsd::start(&mut guest, divisor, seconds);
        let started = guest.now;
        let deadline = started + stage1 + 2 * unit;
        assert_eq!(guest.sleep(60 * SECOND), [Event::Pretimeout(started + stage1), Event::Timeout(deadline)]);

        guest.reboot();
        assert!(openbsd::attach(&mut guest).1, "reboot on timeout");
        guest.reboot();
        assert!(!openbsd::attach(&mut guest).1, "the driver has cleared the cause");
    }
}

/// EFI Boot Guard arms the watchdog, locks it, and starts an operating system.
pub fn efi_boot_guard(guest: &mut Guest, seconds: u64) {
    let unlock = |guest: &mut Guest| {
        guest.set_bar32(RELOAD, 0x80);
        guest.set_bar32(RELOAD, 0x86);
    };
    unlock(guest);
    guest.set_bar32(PRELOAD1, ((seconds * 1_000_000_000) / (1 << 15) / 30) as u32);
    unlock(guest);
    guest.set_bar32(PRELOAD2, 0);
    guest.set_config8(LOCK, 0x03);
}

#[test]
fn the_watchdog_of_efi_boot_guard_times_out_if_no_driver_starts() {
    let mut guest = Guest::new();
    guest.enumerate();
    efi_boot_guard(&mut guest, 60);
    let armed = guest.now;
    // 61,035 units, just below 60 s, and a second stage of 0 units: one poll reports both.
    let deadline = armed + 61_035 * KHZ;
    assert_eq!(guest.deadline(), Some(deadline));
    assert_eq!(guest.sleep(120 * SECOND), [Event::Pretimeout(deadline), Event::Timeout(deadline)]);
    guest.reboot();
    assert_eq!(guest.config8(LOCK), 0x00);
    assert_eq!(guest.sleep(3600 * SECOND), []);
}

#[test]
fn linux_takes_over_the_watchdog_that_efi_boot_guard_has_locked() {
    let mut guest = Guest::new();
    guest.enumerate();
    efi_boot_guard(&mut guest, 60);
    assert_eq!(guest.sleep(20 * SECOND), []);
    assert!(!linux::probe(&mut guest, 4));
    assert_eq!(guest.config8(LOCK), 0x03, "still enabled and locked");
    let probed = guest.now;
    assert_eq!(guest.deadline(), Some(probed + 2048 * KHZ));
    linux::start(&mut guest, false);
    assert!(!linux::stop(&mut guest));
    assert_eq!(guest.sleep(60 * SECOND).last(), Some(&Event::Timeout(probed + 4096 * KHZ)));
}

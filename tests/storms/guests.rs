//! What hostile guests do.

use std::num::NonZeroU32;
use std::thread;
use std::time::Duration;

use vm_watchdog::diag288::{Diag288, UnknownCommands};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::sbsa::{Frame, Sbsa, SbsaConfig};
use vm_watchdog::wdat::Wdat;
use vm_watchdog::{Model, Watchdog};

use crate::common::Driver;

/// A guest with a watchdog of one model.
pub struct Storm<M: Model> {
    pub name: &'static str,
    pub device: fn() -> M,
    /// What it does once.
    pub begin: fn(&Watchdog<M>),
    /// What each vCPU does without a pause. The number is another one each time, and goes up.
    pub again: fn(&Watchdog<M>, u32),
    /// Whether its watchdog times out meanwhile.
    pub expires: bool,
}

pub fn i6300esb() -> Vec<Storm<I6300esb>> {
    let device = || I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_msi());
    let storm = |name, expires, begin, again| Storm { name, device, begin, again, expires };
    vec![
        // Halted.
        storm("i6300esb: timeouts", true, free_running, |_, _| thread::sleep(Duration::from_millis(1))),
        storm("i6300esb: timeouts and reads", true, free_running, |watchdog, _| watchdog.read_bar(0x08, &mut [0])),
        storm("i6300esb: interrupts", true, free_running, clear_interrupt),
        storm(
            "i6300esb: messages",
            true,
            |watchdog| {
                watchdog.write_config(0x04, &[0x06, 0x00]);
                watchdog.write_config(0x44, &0xFEE0_0000_u32.to_le_bytes());
                watchdog.write_config(0x42, &[0x01, 0x00]);
                free_running(watchdog);
            },
            clear_interrupt,
        ),
        storm("i6300esb: heartbeats", false, |watchdog| watchdog.start(60_000), |watchdog, _| watchdog.ping()),
        storm(
            "i6300esb: nearer deadlines",
            false,
            |watchdog| watchdog.start(0xF_FFFF),
            |watchdog, round| {
                watchdog.set_preloads(0xF_FFFF - (round >> 2) % 0x8_0000);
                watchdog.ping();
            },
        ),
        storm(
            "i6300esb: starts and stops",
            false,
            |watchdog| watchdog.set_preloads(0xF_FFFF),
            |watchdog, round| if round % 2 == 0 { watchdog.enable() } else { watchdog.disable() },
        ),
        storm(
            "i6300esb: unlocks",
            true,
            |watchdog| watchdog.start(500),
            |watchdog, round| match round % 8 {
                0..4 => watchdog.unlock(),
                4 => write(watchdog, 0x0C, &[0x80]),
                5 => write(watchdog, 0x0C, &[0x86]),
                // Neither of them is a heartbeat.
                6 => write(watchdog, 0x0C, &[0x01, 0x00]),
                _ => watchdog.set_preloads(500),
            },
        ),
        storm(
            "i6300esb: configuration",
            true,
            |watchdog| watchdog.start(500),
            |watchdog, round| {
                let number = mixed(round).to_le_bytes();
                match round % 8 {
                    // Memory decoding, bus master, INTx disable; and sizing and moving BAR0.
                    0 | 1 => drop(watchdog.write_config(0x04, &number[..2])),
                    2 => drop(watchdog.write_config(0x10, &[0xFF; 4])),
                    3 => drop(watchdog.write_config(0x10, &number[..4])),
                    // MSI: control, address and data.
                    4 => drop(watchdog.write_config(0x42, &number[..2])),
                    5 => drop(watchdog.write_config(0x44, &number)),
                    6 => watchdog.read_config(u16::from(number[0]), &mut [0; 4]),
                    _ => drop(watchdog.write_config(0xFF, &number)),
                }
            },
        ),
        storm("i6300esb: everything", true, free_running, |watchdog, round| {
            let number = mixed(round);
            let data = &number.to_be_bytes()[..1 << (number % 4)];
            match number >> 8 & 0xF {
                0 => watchdog.enable(),
                1 => watchdog.disable(),
                2 => watchdog.ping(),
                3 => watchdog.set_preloads(number as u32 % 16),
                4 => watchdog.clear_timeout(),
                5 => drop(watchdog.write_config(0x60, &[number as u8 & 0x07, 0])),
                6 => drop(watchdog.write_config(0x68, &[0x06])),
                7..10 => drop(watchdog.write_config((number >> 16) as u16 & 0x5F, data)),
                10..13 => write(watchdog, number >> 16 & 0x1F, data),
                _ => clear_interrupt(watchdog, round),
            }
        }),
    ]
}

fn clear_interrupt(watchdog: &Watchdog<I6300esb>, _: u32) {
    write(watchdog, 0x08, &[1]);
}

fn write(watchdog: &Watchdog<I6300esb>, offset: u64, data: &[u8]) {
    watchdog.write_bar(offset, data);
}

/// Both stages last 960 ns, and begin again after the timeout.
fn free_running(watchdog: &Watchdog<I6300esb>) {
    watchdog.write_config(0x60, &[0x04, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
}

pub fn diag288() -> Vec<Storm<Diag288>> {
    let storm = |name, begin, again| Storm { name, device: Diag288::new, begin, again, expires: false };
    let init: fn(&Watchdog<Diag288>) = |watchdog| diagnose(watchdog, 0, 3600);
    vec![
        storm("diag288: heartbeats", init, |watchdog, _| diagnose(watchdog, 1, 15)),
        storm("diag288: nearer deadlines", init, |watchdog, round| {
            diagnose(watchdog, 1, u64::from(3600 - (round >> 8) % 3000));
        }),
        storm("diag288: starts and stops", init, |watchdog, round| match round % 2 {
            0 => diagnose(watchdog, 0, 15),
            _ => diagnose(watchdog, 2, 0),
        }),
        storm("diag288: refused calls", init, |watchdog, round| diagnose(watchdog, mixed(round), mixed(!round))),
        Storm {
            name: "diag288: commands of z/VM",
            device: || Diag288::zvm(UnknownCommands::Refused),
            begin: |_| {},
            again: |watchdog, round| {
                let mut gprs = [0; 16];
                (gprs[3], gprs[4], gprs[5]) = (3600, mixed(round), mixed(!round) % 256);
                let fill = |_, text: &mut [u8]| {
                    text.fill(mixed(round) as u8);
                    true
                };
                let _ = watchdog.intercept_with_memory(4, 0x8324, 0x0288_0000, &gprs, fill);
            },
            expires: false,
        },
    ]
}

fn diagnose(watchdog: &Watchdog<Diag288>, function: u64, seconds: u64) {
    let mut gprs = [0; 16];
    (gprs[2], gprs[3]) = (function, seconds);
    let _ = watchdog.intercept(4, 0x8324, 0x0288_0000, &gprs);
}

pub fn wdat() -> Vec<Storm<Wdat>> {
    let storm = |name, expires, begin, again| Storm { name, device: Wdat::default, begin, again, expires };
    let start: fn(&Watchdog<Wdat>) = |watchdog| watchdog.write(0x8, &[1]);
    vec![
        storm("wdat: heartbeats", false, start, |watchdog, _| watchdog.write(0x4, &[1])),
        storm("wdat: nearer deadlines", false, start, |watchdog, round| {
            watchdog.write(0x0, &(0xFF_FFFF - (round >> 2) % 0x80_0000).to_le_bytes());
            watchdog.write(0x4, &[1]);
        }),
        storm("wdat: starts and stops", false, start, |watchdog, round| watchdog.write(0x8, &[(round % 2) as u8])),
        storm(
            "wdat: everything else",
            true,
            |watchdog| {
                // One second, its shortest.
                watchdog.write(0x0, &1_u32.to_le_bytes());
                watchdog.write(0x8, &[1]);
            },
            |watchdog, round| {
                let number = mixed(round);
                let data = &number.to_be_bytes()[..1 << (number % 4)];
                match number >> 8 & 0x3 {
                    0 => watchdog.write(0xC, data),
                    1 => watchdog.write(0x10 + (number >> 16), data),
                    _ => watchdog.read(number >> 16 & 0x1F, &mut [0; 8]),
                }
            },
        ),
    ]
}

pub fn sbsa() -> Vec<Storm<Sbsa>> {
    let device = || Sbsa::new(SbsaConfig::new(NonZeroU32::new(62_500_000).expect("not zero")));
    let storm = |name, expires, begin, again| Storm { name, device, begin, again, expires };
    // An offset of more than a day, and of a tick.
    let long: fn(&Watchdog<Sbsa>) = |watchdog| {
        watchdog.write(Frame::Control, 0x008, &(1_u64 << 43).to_le_bytes());
        watchdog.write(Frame::Control, 0x000, &[1]);
    };
    let short: fn(&Watchdog<Sbsa>) = |watchdog| {
        watchdog.write(Frame::Control, 0x008, &[0; 8]);
        watchdog.write(Frame::Control, 0x000, &[1]);
    };
    vec![
        storm("sbsa: heartbeats", false, long, |watchdog, _| watchdog.write(Frame::Refresh, 0, &[0; 4])),
        storm("sbsa: nearer deadlines", false, long, |watchdog, round| {
            watchdog.write(Frame::Control, 0x008, &((1_u64 << 43) - (u64::from(round) << 8)).to_le_bytes());
        }),
        storm("sbsa: heartbeats of a tick", true, short, |watchdog, _| watchdog.write(Frame::Refresh, 0, &[0; 4])),
        storm("sbsa: everything else", true, short, |watchdog, round| {
            let number = mixed(round);
            let data = &number.to_be_bytes()[..1 << (number % 4)];
            match number >> 8 & 0x3 {
                0 => watchdog.write(Frame::Control, 0x010, data),
                1 => watchdog.write(Frame::Control, 0x018 + (number >> 16), data),
                2 => watchdog.write(Frame::Control, 0x000, &[number as u8 | 1]),
                _ => watchdog.read(Frame::Control, number >> 16 & 0x1F, &mut [0; 8]),
            }
        }),
    ]
}

/// A number that looks random (SplitMix64).
fn mixed(number: u32) -> u64 {
    let mut mixed = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

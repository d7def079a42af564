//! A hostile guest and a VMM that polls at arbitrary times, on the i6300esb model.
//!
//! The device must not panic, hang, expire early or lose an expiry. After a poll, `poll_at` must be later than the
//! poll.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/i6300esb
//! cargo +nightly fuzz run i6300esb fuzz/corpus/i6300esb fuzz/seeds/i6300esb -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Model, VmInstant};
use vm_watchdog_fuzz::Machine;

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitClocks { units: u16, megahertz: bool },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SaveAndRestore,
    Unlock,
    Reload,
    WritePreload { second: bool, value: u32 },
    WriteConfiguration(u8),
    WriteLock(u8),
    ReadConfig { offset: u16, length: u8 },
    WriteConfig { offset: u16, data: Vec<u8> },
    ReadBar { offset: u64, length: u8 },
    WriteBar { offset: u64, data: Vec<u8> },
    WriteInBar { offset: u8, data: [u8; 4], length: u8 },
}

#[derive(Arbitrary, Debug)]
struct Run {
    /// Bit 0: a pin. Bit 1: MSI.
    interrupt: u8,
    start: u64,
    steps: Vec<Step>,
}

fuzz_target!(|run: Run| {
    let interrupt_pin = if run.interrupt & 1 != 0 { InterruptPin::IntA } else { InterruptPin::None };
    let config = I6300esbConfig::default().with_interrupt_pin(interrupt_pin);
    let config = if run.interrupt & 2 != 0 { config.with_msi() } else { config };
    let mut machine = Machine::new(I6300esb::new(config), run.start);
    for step in run.steps {
        take(&mut machine, step);
    }
    poll(&mut machine);
});

fn take(machine: &mut Machine<I6300esb>, step: Step) {
    match step {
        Step::Wait { nanos } => machine.wait(nanos),
        Step::WaitClocks { units, megahertz } => {
            let clocks = u64::from(units) << if megahertz { 5 } else { 15 };
            machine.wait(clocks * 30);
        }
        Step::WaitForDeadline { further } => machine.wait_for_deadline(further),
        Step::Poll => poll(machine),
        Step::Reset => machine.reset(),
        Step::SaveAndRestore => machine.save_and_restore(),
        Step::Unlock => {
            write_bar(machine, 0x0C, &[0x80]);
            write_bar(machine, 0x0C, &[0x86]);
        }
        Step::Reload => write_bar(machine, 0x0C, &[0x00, 0x01]),
        Step::WritePreload { second, value } => {
            write_bar(machine, if second { 4 } else { 0 }, &value.to_le_bytes());
        }
        Step::WriteConfiguration(value) => write_config(machine, 0x60, &[value]),
        Step::WriteLock(value) => write_config(machine, 0x68, &[value]),
        Step::ReadConfig { offset, length } => machine.read(length, |device, data, now| {
            let access = device.read_config(offset, data, now);
            assert!(offset < 0x100 || data.iter().all(|&byte| byte == 0xFF));
            access
        }),
        Step::WriteConfig { offset, data } => write_config(machine, offset, &data),
        Step::ReadBar { offset, length } => machine.read(length, |device, data, now| {
            let access = device.read_bar(offset, data, now);
            assert!(offset < 0x10 || data.iter().all(|&byte| byte == 0xFF));
            access
        }),
        Step::WriteBar { offset, data } => write_bar(machine, offset, &data),
        Step::WriteInBar { offset, data, length } => {
            write_bar(machine, (offset % 16).into(), &data[..usize::from(length % 5)]);
        }
    }
}

fn write_config(machine: &mut Machine<I6300esb>, offset: u16, data: &[u8]) {
    write(machine, |device, now| device.write_config(offset, data, now));
}

fn write_bar(machine: &mut Machine<I6300esb>, offset: u64, data: &[u8]) {
    write(machine, |device, now| device.write_bar(offset, data, now));
}

/// Not `Machine::write`: a write that is ignored can end the unlock sequence.
fn write(machine: &mut Machine<I6300esb>, write: impl Fn(&mut I6300esb, VmInstant) -> Access) {
    let now = machine.now();
    let before = machine.device.poll_at();
    let is_silent = register(machine, 0x60) & 0x20 != 0;
    let was_armed = machine.device.is_armed();
    let access = write(&mut machine.device, now);
    let after = machine.device.poll_at();
    if before.is_some_and(|before| before <= now && before < VmInstant::MAX) {
        assert!(is_silent || after == before, "a latched expiry was lost: {before:?}, {after:?}");
    } else if access == Access::Heartbeat || (!was_armed && machine.device.is_armed()) {
        let mut preload = [0; 4];
        machine.device.read_bar(0, &mut preload, now);
        let unit = if register(machine, 0x60) & 0x04 == 0 { 983_040 } else { 960 };
        let earliest = now + Duration::from_nanos(u64::from(u32::from_le_bytes(preload)) * unit);
        assert!(after.is_some_and(|after| after >= earliest), "{after:?} is before {earliest}");
    }
}

/// Reads from a copy, because a read advances the device's time.
fn register(machine: &Machine<I6300esb>, offset: u16) -> u8 {
    let mut data = [0];
    machine.device.clone().read_config(offset, &mut data, machine.now());
    data[0]
}

fn poll(machine: &mut Machine<I6300esb>) {
    machine.poll();
    let now = machine.now();
    let device = &mut machine.device;
    let (level, message) = (device.interrupt_level(), device.message());
    assert!(!level || message.is_none(), "a level and a message at the same time");
    if level || message.is_some() {
        let mut gintsr = [0];
        device.read_bar(8, &mut gintsr, now);
        assert_eq!(gintsr, [1]);
    }
    if message.is_some() {
        device.take_message();
        assert_eq!(device.message(), None, "an interrupt has one message");
    }
    assert_ne!(device.bar0(), Some(0xFFFF_FFF0), "the sizing pattern");
}

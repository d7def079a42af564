//! Debian's driver as on z/VM: it passes a command, which the watchdog reads from guest memory.
//!
//! The kernel detects the hypervisor with an instruction that QEMU answers with "KVM", and stores the result in a flag.
//! A debugger sets the flag for z/VM before the driver is loaded.

use std::error::Error;
use std::io;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vm_watchdog::diag288::{Diag288, Intercept, UnknownCommands};
use vm_watchdog::{Action, Event, Watchdog};

use crate::bridge::Bridge;
use crate::gdb::Gdb;
use crate::guest::{Guest, Parts, SpecificationException};
use crate::linux::with_parts;
use crate::machine::{Device, MEMORY, memory_in_file, reader};
use crate::rig::assert_on_time;
use crate::wait::WAIT_LIMIT;

/// The lowest byte of the kernel's flags about its machine, in its lowcore; the lowest bit is set on z/VM.
///
/// Its address depends on the kernel. The test finds it in the driver, which tests the bit with `tm address,1` and
/// jumps.
fn machine_flags(parts: &Parts) -> Result<u64, Box<dyn Error>> {
    let module = parts.kernel.module("diag288_wdt")?.pop().ok_or("no driver")?;
    let tests_bit = |code: &&[u8]| code[..2] == [0x91, 0x01] && code[2] >> 4 == 0 && code[4..6] == [0xA7, 0x84];
    let code = module.content.windows(6).find(tests_bit).ok_or("the driver does not test the machine flag")?;
    Ok(u16::from_be_bytes([code[2], code[3]]).into())
}

/// Stops the guest in its kernel, where the kernel's addresses are mapped. Retries while the guest runs a user program.
fn stop_in_kernel(guest: &Guest) -> io::Result<Gdb> {
    const PROBLEM_STATE: u64 = 1 << 48;
    let started = Instant::now();
    loop {
        let mut cpu = guest.debug()?;
        if cpu.registers()?.psw_mask & PROBLEM_STATE == 0 {
            return Ok(cpu);
        }
        if started.elapsed() > WAIT_LIMIT {
            return Err(io::Error::other("the guest does not enter its kernel"));
        }
        cpu.resume()?;
        drop(cpu);
        sleep(Duration::from_millis(50));
    }
}

/// Sets the kernel's flag for z/VM, while the guest waits for a command.
fn pretend_zvm(cpu: &mut Gdb, flags: u64) -> io::Result<()> {
    let old = cpu.read_memory(flags, 1)?[0];
    cpu.write_memory(flags, &[old | 1])
}

#[test]
fn the_driver_of_linux_on_zvm_gets_the_action_of_its_command() {
    with_parts("Linux on z/VM", |parts| commands_of_linux(parts).unwrap());
}

fn commands_of_linux(parts: &Parts) -> Result<(), Box<dyn Error>> {
    let mut memory = None;
    let mut guest = Guest::boot_with(parts, Device::None, |folder, command| {
        memory = Some(memory_in_file(folder, command)?);
        Ok(())
    })?;
    let file = FileOffset::new(memory.ok_or("made above")?, 0);
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges_with_files(&[(GuestAddress(0), MEMORY as usize, Some(file))])?;

    let (report, events) = channel();
    let report = Mutex::new(report);
    let watchdog = Watchdog::builder("diag288", Diag288::zvm(UnknownCommands::Refused))
        .build(move |event: &Event| Ok(report.lock().unwrap().send((Instant::now(), event.action))?))?;
    let _thread = watchdog.spawn()?;
    let device = watchdog.clone();
    let mut cpu = stop_in_kernel(&guest)?;
    pretend_zvm(&mut cpu, machine_flags(parts)?)?;
    let bridge = Bridge::attach(cpu, SpecificationException(guest.specification_exception), move |guest| {
        // Passes the instruction in the form of KVM's intercept.
        let [opcode, registers, address @ ..] = guest.instruction;
        let ipb = u32::from(u16::from_be_bytes(address)) << 16;
        let ipa = u16::from_be_bytes([opcode, registers]);
        match device.intercept_with_memory(4, ipa, ipb, &guest.gprs, reader(&memory)) {
            Intercept::NotOurs => None,
            Intercept::Done => Some(Ok(())),
            Intercept::Inject(interruption) => Some(Err(interruption)),
            other => unreachable!("{other:?}"),
        }
    })?;
    let mut run = |command: &str| -> Result<u8, Box<dyn Error>> { Ok(guest.run(command)?.0) };

    // A command without a meaning for a VMM: the driver loads, since its probe is BEGIN, and the device cannot be
    // opened.
    assert_eq!(run("insmod /lib/watchdog.ko")?, 0);
    assert_eq!(run("insmod /lib/diag288_wdt.ko cmd='\"msg operator help\"'")?, 0);
    assert_ne!(run("(echo > /dev/watchdog)")?, 0);
    assert!(!watchdog.stats().armed);
    assert_eq!(run("rmmod diag288_wdt")?, 0);
    assert!(bridge.decisions.try_iter().any(|decision| decision.answer.is_err()));

    for (parameters, command, action) in [
        ("cmd=logoff conceal=1", "LOGOFF", Action::Poweroff),
        // The driver's default command. As on z/VM, its heartbeats are INIT.
        ("", "SYSTEM RESTART", Action::InjectNmi),
    ] {
        assert_eq!(run(&format!("insmod /lib/diag288_wdt.ko {parameters}"))?, 0);
        assert_eq!(run("feed 2 15; sleep 3")?, 0);
        let alive = Instant::now();
        assert_eq!(run("end_feeder KILL")?, 0);
        let last = bridge.last_success();
        let (fired, fired_action) = events.recv_timeout(WAIT_LIMIT)?;
        assert_on_time(fired - last.ok_or("the guest has not called")?);
        assert_on_time(fired - alive);
        assert_eq!(fired_action, action);
        assert_eq!(watchdog.timeout_command().ok_or("no command")?.to_string(), command);
        // The test does not perform the action: the guest continues, and stops the watchdog.
        assert_eq!(run("feed 2 15; end_feeder TERM")?, 0);
        assert!(!watchdog.stats().armed);
        assert_eq!(run("rmmod diag288_wdt")?, 0);
    }
    Ok(())
}

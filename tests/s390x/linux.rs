//! Scenarios with Debian's kernel, its driver, and busybox' watchdog daemon.

use std::error::Error;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use vm_watchdog::Action;
use vm_watchdog::diag288::ProgramInterruption;
use vm_watchdog_test_support::{assets, skip};

use crate::bridge::Bridge;
use crate::guest::{Guest, Parts, SpecificationException};
use crate::machine::Device;
use crate::qmp::Qmp;
use crate::rig::{Rig, TIMEOUT, compare_with_qemu};

type Outcome = Result<(), Box<dyn Error>>;

/// Fetches the parts of the guest, then runs the test while no other process runs such tests.
pub fn with_parts(name: &str, test: impl FnOnce(&Parts)) {
    match Parts::fetch().and_then(|parts| assets::machine_for_this_process().map(|()| parts)) {
        Ok(parts) => test(&parts),
        Err(why) => skip::loudly(name, &why),
    }
}

#[test]
fn a_timeout_resets_the_guest_which_can_arm_again() {
    with_parts("reset", |parts| compare_with_qemu(parts, Action::Reset, killed_and_reset));
}

fn killed_and_reset(rig: &mut Rig) -> Outcome {
    rig.load_driver()?;
    let alive = rig.feed_and_kill()?;
    rig.note_kernel_log()?;
    rig.expect_timeout(alive, |qmp| qmp.wait_for_event("RESET"))?;
    if let Some(ours) = &rig.ours {
        assert!(!ours.watchdog.stats().armed, "a timeout that resets disarms");
    }
    rig.expect_reboot()?;

    // Second boot: the driver is loaded, unloaded and loaded again, and a daemon that stops the watchdog causes no
    // timeout.
    rig.load_driver()?;
    rig.run("rmmod diag288_wdt")?;
    rig.run("insmod /lib/diag288_wdt.ko")?;
    rig.feed()?;
    if let Some(ours) = &rig.ours {
        assert!(ours.watchdog.stats().armed);
    }
    rig.run("end_feeder TERM")?;
    rig.run(&format!("sleep {}", TIMEOUT.as_secs() + 1))?;
    rig.note_kernel_log()
}

#[test]
fn a_reset_while_armed_disarms_and_a_later_timeout_powers_off() {
    with_parts("poweroff", |parts| compare_with_qemu(parts, Action::Poweroff, reset_and_powered_off));
}

fn reset_and_powered_off(rig: &mut Rig) -> Outcome {
    rig.load_driver()?;
    rig.feed()?;
    // QMP's reset gives the driver no chance to cancel.
    rig.guest.qmp.execute("system_reset")?;
    rig.guest.qmp.wait_for_event("RESET")?;
    if let Some(ours) = &rig.ours {
        assert!(ours.watchdog.stats().armed);
        ours.watchdog.reset();
    }
    rig.expect_reboot()?;
    rig.run(&format!("sleep {}", TIMEOUT.as_secs()))?;

    rig.load_driver()?;
    let alive = rig.feed_and_kill()?;
    rig.expect_timeout(alive, Qmp::wait_for_end)?;
    rig.expect_end()
}

#[test]
fn an_nmi_reaches_the_kernel_as_a_restart_interruption() {
    with_parts("inject-nmi", |parts| compare_with_qemu(parts, Action::InjectNmi, killed_and_interrupted));
}

fn killed_and_interrupted(rig: &mut Rig) -> Outcome {
    // The guest's administrator configures what the kernel does on a restart interruption.
    rig.run("echo reipl > /sys/firmware/shutdown_actions/on_restart")?;
    rig.load_driver()?;
    let alive = rig.feed_and_kill()?;
    rig.expect_timeout(alive, |qmp| qmp.wait_for_event("RESET"))?;
    if let Some(ours) = &rig.ours {
        assert!(!ours.watchdog.stats().armed, "an NMI disarms");
    }
    rig.expect_reboot()
}

#[test]
fn a_guest_that_resumes_after_a_pause_is_still_armed() {
    with_parts("pause", |parts| compare_with_qemu(parts, Action::Pause, killed_and_paused));
}

fn killed_and_paused(rig: &mut Rig) -> Outcome {
    let is_paused = |qmp: &Qmp| -> io::Result<()> {
        // QEMU's watchdog sets the status "watchdog". The debugger's stops have another status.
        while !["paused", "watchdog"].contains(&qmp.status()?.as_str()) {
            sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    rig.load_driver()?;
    let alive = rig.feed_and_kill()?;
    rig.expect_timeout(alive, is_paused)?;

    if let Some(ours) = &rig.ours {
        assert!(ours.watchdog.stats().armed, "a pause leaves the watchdog armed");
    }
    rig.resume()?;
    rig.note_kernel_log()?;
    // The driver assumes that the watchdog still runs, and sends a heartbeat first: CHANGE, not INIT.
    let alive = rig.feed_and_kill()?;
    rig.expect_timeout(alive, is_paused)
}

/// A device that refuses every call: the driver reports the same as on a machine without the device.
#[test]
fn the_driver_does_not_load_if_every_call_is_refused() {
    with_parts("refusal", |parts| {
        let load_driver = |guest: &mut Guest| -> Result<(u8, String), Box<dyn Error>> {
            guest.run("insmod /lib/watchdog.ko")?;
            let (status, _) = guest.run("insmod /lib/diag288_wdt.ko")?;
            Ok((status, guest.run("dmesg | grep -o 'diag288_wdt: .*'")?.1))
        };
        let refused = || -> Result<_, Box<dyn Error>> {
            let mut guest = Guest::boot(parts, Device::None)?;
            let hook = SpecificationException(guest.specification_exception);
            let bridge = Bridge::attach(guest.debug()?, hook, |guest| {
                guest.call().map(|_| Err(ProgramInterruption::Specification))
            })?;
            Ok((load_driver(&mut guest)?, bridge.decisions.try_iter().count()))
        };
        let ((status, log), calls) = refused().unwrap();
        assert_ne!(status, 0);
        assert!(calls > 0, "the driver has called the device");
        // Busybox' insmod tries every module twice, with each of the two system calls.
        assert_eq!(log, vec!["diag288_wdt: The watchdog cannot be initialized"; calls].join("\n"));

        let without = Guest::boot(parts, Device::None).and_then(|mut guest| load_driver(&mut guest));
        assert_eq!(without.unwrap(), (status, log));
    });
}

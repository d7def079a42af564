//! Stories that Debian's kernel tells with its own driver and busybox' watchdog daemon.

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
use crate::rig::{Rig, TIMEOUT, tell_twice};

type Story = Result<(), Box<dyn Error>>;

/// Fetches what the test needs, then runs it while no other process' tests have the machine.
pub fn with_parts(name: &str, test: impl FnOnce(&Parts)) {
    match Parts::fetch().and_then(|parts| assets::machine_for_this_process().map(|()| parts)) {
        Ok(parts) => test(&parts),
        Err(why) => skip::loudly(name, &why),
    }
}

#[test]
fn a_guest_whose_daemon_is_killed_is_reset_and_protected_again() {
    with_parts("reset", |parts| tell_twice(parts, Action::Reset, killed_and_reset));
}

fn killed_and_reset(rig: &mut Rig) -> Story {
    rig.load_driver()?;
    let alive = rig.feed_and_kill()?;
    rig.note_kernel_log()?;
    rig.expect_timeout(alive, |qmp| qmp.wait_for_event("RESET"))?;
    if let Some(ours) = &rig.ours {
        assert!(!ours.watchdog.stats().armed, "a timeout that resets disarms");
    }
    rig.expect_reboot()?;

    // The second life: the driver is loaded, unloaded and loaded again, and a daemon that says goodbye is not missed.
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
fn a_guest_that_is_reset_while_armed_boots_in_peace_and_can_be_powered_off() {
    with_parts("poweroff", |parts| tell_twice(parts, Action::Poweroff, reset_and_powered_off));
}

fn reset_and_powered_off(rig: &mut Rig) -> Story {
    rig.load_driver()?;
    rig.feed()?;
    // Without warning: the driver has no chance to cancel.
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
    with_parts("inject-nmi", |parts| tell_twice(parts, Action::InjectNmi, killed_and_interrupted));
}

fn killed_and_interrupted(rig: &mut Rig) -> Story {
    // What the kernel does on a restart interruption is the administrator's choice.
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
fn a_guest_that_was_paused_and_goes_on_is_protected_again() {
    with_parts("pause", |parts| tell_twice(parts, Action::Pause, killed_and_paused));
}

fn killed_and_paused(rig: &mut Rig) -> Story {
    let is_paused = |qmp: &Qmp| -> io::Result<()> {
        // QEMU's own watchdog calls it "watchdog", and the debugger's stops are none of ours.
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
    // The driver still has the watchdog for running, and begins with a heartbeat: CHANGE, not INIT.
    let alive = rig.feed_and_kill()?;
    rig.expect_timeout(alive, is_paused)
}

/// With a device that refuses every call: what the driver says then is what it says on a machine without the device.
#[test]
fn a_driver_whose_calls_are_all_refused_gives_up() {
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
        assert!(calls > 0, "the model was asked");
        // Busybox' insmod tries every module twice, by both system calls that there are.
        assert_eq!(log, vec!["diag288_wdt: The watchdog cannot be initialized"; calls].join("\n"));

        let without = Guest::boot(parts, Device::None).and_then(|mut guest| load_driver(&mut guest));
        assert_eq!(without.unwrap(), (status, log));
    });
}

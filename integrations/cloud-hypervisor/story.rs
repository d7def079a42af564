//! A stock Debian guest in a Cloud Hypervisor that has the watchdog of this folder, and its seccomp filters.
//!
//! The tests run where `CLOUD_HYPERVISOR_PCI_WATCHDOG` names the binary of such a Cloud Hypervisor; where KVM is not backed by the
//! processor, in an outer guest. Each prints what the guest says.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_watchdog_test_support::channel::Message;
use vm_watchdog_test_support::cloud_hypervisor::{self, Pieces, Test};
use vm_watchdog_test_support::process::Process;

/// WDIOF_CARDRESET: the last reset came from the watchdog.
const CARD_RESET: &str = "32";
/// Two stages of 4 << 9 units of 983,040 ns: what 4 s are to Linux' driver.
const FOUR_SECONDS: Duration = Duration::from_nanos(2 * (4 << 9) * 983_040);
/// A timeout is never early. On a loaded machine it may be late.
const LATEST: Duration = Duration::from_secs(15);
/// Longer than the timeout.
const LONG: Duration = Duration::from_secs(6);
/// How long a boot may take. In the outer guest on an idle machine it takes 10 s.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(120);
/// SECCOMP_MODE_FILTER in `/proc/PID/status`.
const FILTERED: &str = "2";

fn with_cloud_hypervisor(name: &str, run: impl FnOnce(&Pieces)) {
    let (variable, modules) = ("CLOUD_HYPERVISOR_PCI_WATCHDOG", &["i6300esb", "evdev", "button"]);
    Test { variable, name, init: include_str!("init.sh"), modules, programs: &[] }.run(run);
}

/// A VM, and its operator.
struct Vm {
    process: Process,
    folder: TempDir,
    started: Instant,
}

impl Vm {
    fn boot(pieces: &Pieces, action: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = pieces.vm(&api(&folder));
        vmm.args(["--pci-watchdog", &format!("i6300esb,action={action}")]);
        let mut vm = Self { process: cloud_hypervisor::start(vmm), folder, started: Instant::now() };
        assert_eq!(vm.boot_status(), "0");
        vm.assert_threads_are_filtered();
        vm
    }

    /// Saves the VM, kills its VMM, and goes on with it in a new one. Gives the time for which the VM was paused at least.
    fn moved(self, pieces: &Pieces) -> (Self, Duration) {
        self.call("vm.pause", "");
        let paused = Instant::now();
        let snapshot = tempfile::tempdir().unwrap();
        let url = format!("file://{}", snapshot.path().display());
        self.call("vm.snapshot", &format!(r#"{{"destination_url":"{url}"}}"#));

        let started = self.started;
        drop(self);
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = pieces.vmm(&api(&folder));
        vmm.arg("--restore").arg(format!("source_url={url}"));
        let vm = Self { process: cloud_hypervisor::start(vmm), folder, started };
        let deadline = Instant::now() + LIMIT;
        while !api(&vm.folder).exists() {
            assert!(Instant::now() < deadline, "the new VMM has no API");
            thread::sleep(Duration::from_millis(50));
        }
        // Longer than the timeout: the VM is still paused.
        thread::sleep(LONG);
        let paused = paused.elapsed();
        vm.call("vm.resume", "");
        vm.assert_threads_are_filtered();
        (vm, paused)
    }

    /// Waits for the end of a boot, and gives the boot status that the driver reports.
    fn boot_status(&mut self) -> String {
        let status = self.process.wait_until_ready(BOOT_LIMIT).unwrap_or_else(|error| panic!("{error}"));
        self.note(&format!("guest: booted, bootstatus {status}"));
        status
    }

    /// Has the guest do something that must succeed, and gives what it printed.
    fn run(&mut self, command: &str) -> String {
        let reply = self.process.run(command, LIMIT).unwrap_or_else(|error| panic!("{error}"));
        self.note(&format!("guest: {command} -> {}", reply.output.replace('\n', " | ")));
        assert_eq!(reply.status, 0, "{command}: {}", reply.output);
        reply.output
    }

    /// The guest answers after longer than the timeout. One that is reset meanwhile announces a boot instead.
    fn assert_no_reset(&mut self) {
        self.run(&format!("sleep {}; cut -d ' ' -f 1 /proc/uptime", LONG.as_secs()));
    }

    /// Kills busybox' watchdog daemon. Linux sends a last heartbeat then, which is no earlier than what is returned.
    fn kill_feeder(&mut self) -> Instant {
        let before = Instant::now();
        self.run("end_feeder KILL");
        before
    }

    /// Waits for the end of the VMM, and gives what the guest still said. The last heartbeat was no earlier than `alive`.
    fn end(&mut self, alive: Instant) -> Vec<Message> {
        let ended = self.process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}"));
        let waited = alive.elapsed();
        self.note(&format!("guest: {:?}", ended.messages));
        self.note(&format!("host: Cloud Hypervisor ended, {}, {waited:?} after the kill", ended.status));
        assert!(ended.status.success() && waited >= FOUR_SECONDS, "{}", ended.record);
        ended.messages
    }

    fn call(&self, name: &str, body: &str) {
        cloud_hypervisor::call(&api(&self.folder), name, body);
        self.note(&format!("operator: {name} {body}"));
    }

    fn note(&self, what: &str) {
        println!("{:6.1} s  {}", self.started.elapsed().as_secs_f64(), what.trim_end());
    }

    /// The vCPU and the watchdog's thread run under seccomp filters.
    fn assert_threads_are_filtered(&self) {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let mut found = Vec::new();
        for task in tasks {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            found.push((field("Name:"), field("Seccomp:"), field("Seccomp_filters:")));
        }
        self.note(&format!("host: threads, seccomp modes and numbers of filters: {found:?}"));
        for name in ["vcpu0", "watchdog __pci_"] {
            assert!(found.iter().any(|(thread, mode, _)| thread == name && mode == FILTERED), "{name}");
        }
    }
}

fn api(folder: &TempDir) -> PathBuf {
    folder.path().join("api")
}

/// Waits for the reset of a guest whose last heartbeat came no earlier than `alive`, and which was paused for `paused`.
fn expect_reset(vm: &mut Vm, alive: Instant, paused: Duration) {
    let line = vm.process.wait_until_printed("timeout at", LIMIT).unwrap_or_else(|error| panic!("{error}"));
    let waited = alive.elapsed() - paused;
    vm.note(&format!("host: {line}"));
    vm.note(&format!("host: {waited:?} after the kill, without {paused:?} of pause"));
    assert!((FOUR_SECONDS..LATEST).contains(&waited));
    assert_eq!(vm.boot_status(), CARD_RESET);
}

#[test]
fn a_guest_that_stops_feeding_is_reset_and_no_other() {
    with_cloud_hypervisor("a_guest_that_stops_feeding_is_reset_and_no_other", |pieces| {
        let mut vm = Vm::boot(pieces, "reset");
        vm.run("cat /sys/class/watchdog/watchdog0/identity; dmesg | grep 'i6300ESB.*heartbeat'");
        vm.run("feed 1 4");
        vm.assert_no_reset();
        let alive = vm.kill_feeder();
        expect_reset(&mut vm, alive, Duration::ZERO);

        // The driver has cleared the cause, so that it is not given to the device of the next boot. A panic while the
        // watchdog runs does not reset the guest that boots after it.
        vm.run("feed 1 4");
        vm.run("(sleep 1; echo c > /proc/sysrq-trigger) &");
        assert_eq!(vm.boot_status(), "0");
        vm.assert_no_reset();

        // A paused VM does not time out, and keeps the time that was left.
        vm.run("feed 1 4");
        let alive = vm.kill_feeder();
        vm.call("vm.pause", "");
        let paused = Instant::now();
        thread::sleep(LONG);
        let paused = paused.elapsed();
        vm.call("vm.resume", "");
        expect_reset(&mut vm, alive, paused);
    });
}

#[test]
fn a_restored_guest_is_protected() {
    with_cloud_hypervisor("a_restored_guest_is_protected", |pieces| {
        let mut vm = Vm::boot(pieces, "reset");
        vm.run("feed 1 4");
        let (mut vm, _) = vm.moved(pieces);
        vm.assert_no_reset();

        // The time that was left of a timeout goes on in the new VMM.
        let alive = vm.kill_feeder();
        let (mut vm, paused) = vm.moved(pieces);
        expect_reset(&mut vm, alive, paused);
    });
}

#[test]
fn a_guest_that_stops_feeding_is_powered_off() {
    with_cloud_hypervisor("a_guest_that_stops_feeding_is_powered_off", |pieces| {
        let mut vm = Vm::boot(pieces, "poweroff");
        vm.run("feed 1 4");
        let alive = vm.kill_feeder();
        assert_eq!(vm.end(alive), []);
    });
}

#[test]
fn a_guest_that_stops_feeding_is_asked_to_shut_down_in_the_second_boot_of_its_vmm_too() {
    with_cloud_hypervisor(
        "a_guest_that_stops_feeding_is_asked_to_shut_down_in_the_second_boot_of_its_vmm_too",
        |pieces| {
            let mut vm = Vm::boot(pieces, "shutdown,grace=60s,then=poweroff");
            vm.run("feed 1 4");
            vm.call("vm.shutdown", "");
            thread::sleep(LONG);
            vm.call("vm.boot", "");
            assert_eq!(vm.boot_status(), "0");
            vm.run("feed 1 4");
            let alive = vm.kill_feeder();
            assert_eq!(vm.end(alive), [Message::Said("power button".into())]);
        },
    );
}

#[test]
fn a_watchdog_works_where_the_guest_moves_its_bar0() {
    with_cloud_hypervisor("a_watchdog_works_where_the_guest_moves_its_bar0", |pieces| {
        let mut vm = Vm::boot(pieces, "reset");
        vm.run("rmmod i6300esb");
        let old = vm.run("bar0");
        // The bus refuses an address that is not its own.
        vm.run("move_bar0 0xfec00000");
        assert_eq!(vm.run("bar0"), old);
        vm.run(&format!("move_bar0 $((0x{old} - 0x1000))"));
        assert_ne!(vm.run("bar0"), old);
        vm.run("find_watchdog_again; insmod /lib/i6300esb.ko; grep i6300ESB /proc/iomem");
        vm.run("feed 1 4");
        vm.assert_no_reset();
        let alive = vm.kill_feeder();
        expect_reset(&mut vm, alive, Duration::ZERO);
    });
}

#[test]
fn a_watchdog_that_is_not_connected_as_configured_is_an_error() {
    with_cloud_hypervisor("a_watchdog_that_is_not_connected_as_configured_is_an_error", |pieces| {
        for (watchdog, message) in [
            ("i6300esb,action=dump", "accepted are [Reset, Shutdown, Poweroff] and None"),
            ("i6300esb,interrupt=intx", "interrupt= is not connected"),
            ("i6300esb,steal-limit=2", "steal-limit= is not connected"),
            ("diag288", "diag288 is no PCI device"),
            ("i6300esb,colour=red", "unknown watchdog option"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut vmm = pieces.vm(&api(&folder));
            vmm.args(["--pci-watchdog", watchdog]);
            let ended = cloud_hypervisor::start(vmm).wait(LIMIT).unwrap_or_else(|error| panic!("{error}"));
            println!("{watchdog}: {}", ended.record.lines().last().unwrap_or_default());
            assert!(!ended.status.success() && ended.record.contains(message), "{watchdog}: {}", ended.record);
        }
    });
}

//! A stock Debian guest in the VMM of this package, on an emulated processor that has KVM.
//!
//! The guests run one after the other in one outer guest, as `cli/tests/guest` of the project describes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu;
use vm_watchdog_test_support::{Unavailable, assets, skip};

const VMM: &str = env!("CARGO_BIN_EXE_vm-watchdog-alioth");
/// How long one guest may take. It takes 20 s on an idle machine.
const GUEST_LIMIT: Duration = Duration::from_secs(300);

/// 4 s are to Linux' driver two stages of 4 << 9 units of 983,040 ns.
const FOUR_SECONDS: Duration = Duration::from_nanos(2 * (4 << 9) * 983_040);
/// How late a timeout may be on a loaded machine. It is never early.
const LATEST: Duration = Duration::from_secs(10);

const POWERED_OFF_BY_GUEST: i32 = 0;
const POWERED_OFF_BY_WATCHDOG: i32 = 3;

struct Scenario {
    name: &'static str,
    guest: &'static str,
    said: &'static [&'static str],
    status: i32,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "a_guest_that_stops_feeding_is_powered_off",
        guest: "say bootstatus $(cat /sys/class/watchdog/watchdog0/bootstatus)
                feed 1 4; sleep 6; say fed for six seconds
                end_feeder KILL; say killed
                sleep 20; say survived",
        said: &["bootstatus 0", "fed for six seconds", "killed"],
        status: POWERED_OFF_BY_WATCHDOG,
    },
    Scenario {
        name: "a_guest_that_panics_is_powered_off",
        guest: "feed 1 4; say panics; echo c >/proc/sysrq-trigger",
        said: &["panics"],
        status: POWERED_OFF_BY_WATCHDOG,
    },
    Scenario {
        name: "a_pause_longer_than_the_timeout_causes_none",
        guest: "feed 1 4; say pause me 8; sleep 3
                say goes on; sleep 6; say fed for six seconds
                end_feeder KILL; say killed
                sleep 20; say survived",
        said: &["pause me 8", "goes on", "fed for six seconds", "killed"],
        status: POWERED_OFF_BY_WATCHDOG,
    },
    Scenario {
        name: "a_guest_that_stops_its_watchdog_may_power_off_itself",
        guest: "feed 1 4; end_feeder TERM; say closed; sleep 6; say alive; poweroff -f",
        said: &["closed", "alive"],
        status: POWERED_OFF_BY_GUEST,
    },
];

#[test]
fn a_stock_guest_has_a_watchdog() {
    match assets::machine_for_this_process().and_then(|()| boot_outer()) {
        Ok(mut outer) => SCENARIOS.iter().for_each(|scenario| judge(scenario, &mut outer)),
        Err(why) => skip::loudly("alioth", &why),
    }
}

fn judge(scenario: &Scenario, outer: &mut Process) {
    let Scenario { name, said, status, .. } = scenario;
    let cmdline = format!(
        "earlycon=uart8250,io,0x3f8 keep_bootcon 8250.nr_uarts=0 quiet panic=0 cryptomgr.notests no_timer_check \
         scenario={name}"
    );
    let run =
        format!("timeout -s KILL {} /vm-watchdog-alioth /vmlinux /guest.cpio '{cmdline}' 2>&1", GUEST_LIMIT.as_secs());
    let started = Instant::now();
    let reply = outer.run(&run, GUEST_LIMIT * 2).unwrap_or_else(|error| panic!("{name}: {error}"));
    eprintln!("{name}: {:?}\n{}", started.elapsed(), reply.output);
    let words: Vec<&str> =
        reply.output.lines().filter_map(|line| Some(line.split_once("said ")?.1.trim_end())).collect();
    assert_eq!(words, *said, "{name}");
    assert_eq!(reply.status, *status, "{name}");
    if *status == POWERED_OFF_BY_WATCHDOG {
        let waited = waited(&reply.output).unwrap_or_else(|| panic!("{name}: no time in {}", reply.output));
        assert!((FOUR_SECONDS..FOUR_SECONDS + LATEST).contains(&waited), "{name}: {waited:?}");
    }
}

/// The time in "vmm: timeout, poweroff, Some(4.026531841s) after the last of 7 heartbeats".
fn waited(output: &str) -> Option<Duration> {
    let (_, after) = output.split_once("vmm: timeout, poweroff, Some(")?;
    let (seconds, _) = after.split_once("s)")?;
    Duration::try_from_secs_f64(seconds.parse().ok()?).ok()
}

fn boot_outer() -> Result<Process, Unavailable> {
    let kernel = Kernel::x86()?;
    let elf = kernel.elf()?;
    let initramfs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outer.cpio");
    fs::write(&initramfs, outer_initramfs(&kernel, &elf)?).map_err(Unavailable::while_doing(initramfs.display()))?;
    let mut machine = Qemu::for_nested_kvm()?.system("x86_64");
    machine.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "2048", "-no-reboot"]);
    machine.args(["-display", "none", "-nodefaults", "-serial", "file:/dev/stderr", "-serial", "stdio"]);
    machine.arg("-kernel").arg(&elf).arg("-initrd").arg(&initramfs);
    machine.args(["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off"]);
    let mut outer = Process::start(machine).map_err(Unavailable::while_doing("QEMU"))?;
    outer.wait_until_ready(GUEST_LIMIT).map_err(Unavailable::while_doing("the outer guest"))?;
    Ok(outer)
}

fn outer_initramfs(kernel: &Kernel, elf: &Path) -> Result<Vec<u8>, Unavailable> {
    let busybox = kernel.busybox()?;
    let mut guest = Initramfs::with_busybox(&busybox, include_str!("init.sh")).modules(&kernel.module("i6300esb")?);
    for scenario in SCENARIOS {
        guest = guest.file(&format!("scenarios/{}", scenario.name), scenario.guest.as_bytes());
    }
    let modules = kernel.module("kvm-amd")?;
    let names: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    let mut outer = Initramfs::with_busybox(&busybox, include_str!("outer_init.sh"))
        .modules(&modules)
        .file("modules", names.as_bytes())
        .file("guest.cpio", &guest.build())
        .file("vmlinux", &read(elf)?)
        .program("vm-watchdog-alioth", &read(Path::new(VMM))?);
    for library in shared_libraries()? {
        outer = outer.program(library.to_string_lossy().trim_start_matches('/'), &read(&library)?);
    }
    Ok(outer.build())
}

/// The libraries that the VMM is linked with, and the loader that finds them.
fn shared_libraries() -> Result<Vec<PathBuf>, Unavailable> {
    let listing = Command::new("ldd").arg(VMM).output().map_err(Unavailable::while_doing("ldd"))?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    Ok(listing.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, Unavailable> {
    fs::read(path).map_err(Unavailable::while_doing(path.display()))
}

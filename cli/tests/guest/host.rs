//! Where guests under test run.
//!
//! Our VMM needs KVM. Where the machine has a real one, the VMM runs directly. Elsewhere it runs in an outer guest:
//! QEMU's emulation of an x86 processor includes AMD's SVM, so a stock kernel in it has a KVM that works. The outer
//! guest boots once for each thread of tests, and takes one command after the other on its channel.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::channel::{Decoder, Message, Piece};
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::nested::{self, CMDLINE, Image, SERIAL_PORTS};
use vm_watchdog_test_support::process::{self, Process, ProcessError, Reply};
use vm_watchdog_test_support::qemu::Qemu;

use crate::scenarios::{Flavour, SCENARIOS, Scenario};
use crate::transcript::Transcript;

const VMM: &str = env!("CARGO_BIN_EXE_vm-watchdog");

/// How long one guest may take from its start to its end. On an idle machine the longest takes 30 s.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// How long the outer guest may take to answer.
const OUTER_LIMIT: Duration = Duration::from_secs(300);

/// What guests run on.
pub struct Hosts {
    stock: Boot,
    cloud: Boot,
    qemu: Qemu,
    ours: Ours,
}

/// What a guest boots.
struct Boot {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// What our VMM runs on.
enum Ours {
    /// The KVM of this machine.
    Direct,
    /// The KVM of an outer guest, which has this initramfs.
    Nested { qemu: Qemu, initramfs: PathBuf },
}

thread_local! {
    /// The outer guest of this thread's tests; it is killed when the thread ends.
    static OUTER: RefCell<Option<Process>> = const { RefCell::new(None) };
}

impl Hosts {
    /// Fetches and builds everything; boots nothing yet.
    pub fn prepare() -> Result<Self, Unavailable> {
        let kernel = Kernel::x86()?;
        let qemu = Qemu::current()?;
        let stock = Boot::new(&kernel, "guest.cpio", &["i6300esb", "wdat_wdt", "evdev", "button"])?;
        let cloud = Boot::new(&Kernel::x86_cloud()?, "guest-cloud.cpio", &["wdat_wdt"])?;
        let ours = if nested::kvm_is_real() {
            Ours::Direct
        } else {
            let initramfs = write("outer.cpio", &outer_initramfs(&kernel, &[&stock, &cloud])?)?;
            Ours::Nested { qemu: Qemu::for_nested_kvm()?, initramfs }
        };
        Ok(Self { stock, cloud, qemu, ours })
    }

    fn boot(&self, kernel: Flavour) -> &Boot {
        match kernel {
            Flavour::Stock => &self.stock,
            Flavour::Cloud => &self.cloud,
        }
    }

    /// Runs a scenario in our VMM.
    pub fn run_on_ours(&self, scenario: &Scenario) -> Result<Transcript, String> {
        let boot = self.boot(scenario.kernel);
        match &self.ours {
            Ours::Direct => run_directly(scenario, boot),
            Ours::Nested { qemu, initramfs } => {
                let boot_outer = || {
                    let outer = nested::boot(qemu, &self.stock.kernel, initramfs, 1, 2048);
                    outer.map_err(|error| format!("the outer guest: {error}"))
                };
                let mut outer = OUTER.take().map_or_else(boot_outer, Ok)?;
                let mut result = run_nested(scenario, boot, &mut outer);
                if let Err(stopped @ ProcessError::TooSlow { .. }) = &result {
                    eprintln!("{}: once more, in a new outer guest: {stopped}", scenario.name);
                    outer = boot_outer()?;
                    result = run_nested(scenario, boot, &mut outer);
                }
                let transcript = result.map_err(|error| format!("in the outer guest: {error}"))??;
                // Kept only after a success: after an error the next test gets a new one.
                OUTER.set(Some(outer));
                Ok(transcript)
            }
        }
    }

    /// Runs a scenario in QEMU, with QEMU's own device.
    pub fn run_on_qemu(&self, scenario: &Scenario) -> Result<Transcript, String> {
        let Boot { kernel, initrd } = self.boot(scenario.kernel);
        let mut machine = self.qemu.system("x86_64");
        machine.args(["-accel", "tcg", "-cpu", "max", "-m", "256"]);
        machine.args(SERIAL_PORTS);
        // QEMU's watchdogs have one action and no escalation.
        let (model, options) = scenario.watchdogs[0].split_once(",action=").expect("an action");
        let action = options.split(',').next().unwrap_or_default();
        match model {
            // A part of the chipset.
            "wdat" => machine.args(["-machine", "q35,wdat=on"]),
            _ => machine.args(["-machine", "pc", "-device", model]),
        };
        machine.args(["-action", &format!("watchdog={action}")]);
        machine.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        machine.arg("-append").arg(format!("{CMDLINE} scenario={}", scenario.name));
        let mut machine = Process::start(machine).map_err(|error| error.to_string())?;
        let started = Instant::now();
        let ended = machine.wait(RUN_LIMIT).map_err(|error| error.to_string())?;
        Transcript::new(ended.status.code(), started.elapsed(), ended.record, ended.messages, "")
    }
}

/// What our VMM reads and writes.
struct Files<'a> {
    kernel: &'a Path,
    initrd: &'a Path,
    events: &'a Path,
    channel: &'a Path,
}

/// The arguments of our VMM.
fn arguments(scenario: &Scenario, files: Files<'_>) -> Vec<OsString> {
    let cmdline = format!("{CMDLINE} reboot=k no_timer_check scenario={}", scenario.name);
    let mut arguments: Vec<OsString> = ["boot", "--memory", "256M", "--events", "json"].map(Into::into).into();
    let options: [(&str, OsString); 5] = [
        ("--events-file", files.events.into()),
        ("--second-serial", files.channel.into()),
        ("--kernel", files.kernel.into()),
        ("--initrd", files.initrd.into()),
        ("--cmdline", cmdline.into()),
    ];
    let watchdogs = scenario.watchdogs.iter().map(|watchdog| ("--watchdog", watchdog.into()));
    for (option, value) in options.into_iter().chain(watchdogs) {
        arguments.extend([option.into(), value]);
    }
    arguments
}

fn run_directly(scenario: &Scenario, boot: &Boot) -> Result<Transcript, String> {
    let Boot { kernel, initrd } = boot;
    let [events, channel] = ["events", "channel"].map(|file| scratch(&format!("{}.{file}", scenario.name)));
    let mut vmm = process::that_dies_with_us(Path::new(VMM));
    vmm.args(arguments(scenario, Files { kernel, initrd, events: &events, channel: &channel }));
    let started = Instant::now();
    let mut vmm = Process::start(vmm).map_err(|error| error.to_string())?;
    let ended = vmm.wait(RUN_LIMIT).map_err(|error| error.to_string())?;
    let took = started.elapsed();
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    Transcript::new(ended.status.code(), took, ended.record, messages(&read(&channel)?), &read(&events)?)
}

/// Runs a scenario in our VMM in the outer guest, where `timeout` ends it at [`RUN_LIMIT`]. The error of the outer result
/// is of the outer guest, that of the inner one of our VMM.
///
/// An outer guest that is too slow in spite of that has stopped, and tells nothing of our VMM (docs/evidence.md).
fn run_nested(
    scenario: &Scenario,
    boot: &Boot,
    outer: &mut Process,
) -> Result<Result<Transcript, String>, ProcessError> {
    // The outer guest has kernel and initrd at the paths that they have here.
    let Boot { kernel, initrd } = boot;
    let [events, channel] = ["/events.json", "/channel"].map(Path::new);
    let quoted: Vec<String> = arguments(scenario, Files { kernel, initrd, events, channel })
        .iter()
        .map(|argument| format!("'{}'", argument.to_string_lossy()))
        .collect();
    let run = format!("timeout -s KILL {} /vm-watchdog {}", RUN_LIMIT.as_secs(), quoted.join(" "));
    outer.run("rm -f /events.json /channel", OUTER_LIMIT)?;
    let started = Instant::now();
    let Reply { status, output: console } = outer.run(&run, RUN_LIMIT + OUTER_LIMIT)?;
    let took = started.elapsed();
    let said = messages(&outer.run("cat /channel", OUTER_LIMIT)?.output);
    let events = outer.run("cat /events.json", OUTER_LIMIT)?.output;
    let killed_by_timeout = 128 + 9;
    Ok(Transcript::new((status != killed_by_timeout).then_some(status), took, console, said, &events))
}

/// The messages in what a guest wrote to its channel.
fn messages(channel: &str) -> Vec<Message> {
    let mut decoder = Decoder::default();
    let mut pieces = decoder.feed(channel.as_bytes());
    pieces.extend(decoder.finish());
    let message = |piece| match piece {
        Piece::Message(message) => Some(message),
        Piece::Text(_) => None,
    };
    pieces.into_iter().filter_map(message).collect()
}

impl Boot {
    /// A kernel with its own modules, and every scenario.
    fn new(kernel: &Kernel, initrd: &str, modules: &[&str]) -> Result<Self, Unavailable> {
        let initramfs = Initramfs::with_busybox(&kernel.busybox()?, include_str!("init.sh"));
        let mut initramfs = initramfs.modules(&kernel.modules(modules)?);
        for scenario in SCENARIOS {
            initramfs = initramfs.file(&format!("scenarios/{}", scenario.name), scenario.guest.as_bytes());
        }
        Ok(Self { kernel: kernel.elf()?, initrd: write(initrd, &initramfs.build())? })
    }
}

fn outer_initramfs(kernel: &Kernel, boots: &[&Boot]) -> Result<Vec<u8>, Unavailable> {
    let mut image = Image::new(kernel)?.program(Path::new("/vm-watchdog"), Path::new(VMM))?;
    for path in boots.iter().flat_map(|boot| [&boot.kernel, &boot.initrd]) {
        image = image.file(path, &read(path)?);
    }
    Ok(image.build())
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn write(name: &str, content: &[u8]) -> Result<PathBuf, Unavailable> {
    let path = scratch(name);
    fs::write(&path, content).map_err(Unavailable::while_doing(path.display()))?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>, Unavailable> {
    fs::read(path).map_err(Unavailable::while_doing(path.display()))
}

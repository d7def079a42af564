//! A stock Debian guest in QEMU, with a watchdog of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::channel::Message;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu;

/// How long a boot may take. It takes 10 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Pieces {
    qemu: Qemu,
    machine: Machine,
    kernel: PathBuf,
    initramfs: PathBuf,
    parameter: String,
}

/// A machine of QEMU.
#[derive(Clone, Copy, Debug)]
struct Machine {
    target: &'static str,
    options: &'static str,
    /// The kernel's command line: its console is the first serial port, and the guest's channel the second.
    append: &'static str,
}

const PC: Machine = Machine {
    target: "x86_64",
    options: "-machine pc -accel tcg -cpu max -m 256",
    append: "console=ttyS0 quiet panic=-1 cryptomgr.notests",
};

const VIRT: Machine = Machine {
    target: "aarch64",
    options: "-machine virt -accel tcg -cpu cortex-a57 -m 512",
    append: "console=ttyAMA0 channel=ttyAMA1 quiet panic=-1 cryptomgr.notests",
};

/// A guest that executes the commands of the test.
pub struct Guest {
    process: Process,
}

impl Pieces {
    /// A guest on x86. Fetches and builds its pieces, once for all tests.
    pub fn x86() -> Result<Self, Unavailable> {
        static PIECES: OnceLock<Result<Pieces, Unavailable>> = OnceLock::new();
        let make = || {
            let kernel = Kernel::x86()?;
            Self::x86_with("serve-guest.cpio", &kernel, guest_initramfs(&kernel)?)
        };
        PIECES.get_or_init(make).clone()
    }

    /// A guest on x86 with another initramfs, which is written to the file `name`.
    pub fn x86_with(name: &str, kernel: &Kernel, initramfs: Initramfs) -> Result<Self, Unavailable> {
        let (qemu, kernel, initramfs) = (Qemu::current()?, kernel.elf()?, write(name, initramfs)?);
        Ok(Self { qemu, machine: PC, kernel, initramfs, parameter: String::new() })
    }

    /// A guest on arm64. Fetches and builds its pieces.
    pub fn arm64() -> Result<Self, Unavailable> {
        let kernel = Kernel::arm64()?;
        let initramfs = write("serve-guest-arm64.cpio", guest_initramfs(&kernel)?)?;
        let (qemu, kernel) = (Qemu::for_arm64()?, kernel.image());
        Ok(Self { qemu, machine: VIRT, kernel, initramfs, parameter: String::new() })
    }

    /// The same with a further parameter on the kernel's command line, which is a variable of the guest's init.
    pub fn with_parameter(&self, parameter: &str) -> Self {
        Self { parameter: format!(" {parameter}"), ..self.clone() }
    }

    /// A QEMU whose guest has the watchdog at `socket`, and which serves QMP to the server at `folder/qmp` and to the
    /// test at `folder/test-qmp`.
    pub fn machine(&self, folder: &Path, socket: &Path) -> Command {
        let mut machine = self.machine_without_watchdog(folder);
        machine.arg("-device").arg(watchdog(socket).to_string());
        machine
    }

    /// The same without the watchdog.
    pub fn machine_without_watchdog(&self, folder: &Path) -> Command {
        let mut machine = self.qemu.system(self.machine.target);
        machine.args(self.machine.options.split_whitespace());
        // The kernel's console, and the guest's channel.
        machine.args(["-display", "none", "-nodefaults", "-serial", "file:/dev/stderr", "-serial", "stdio"]);
        serve_qmp(&mut machine, folder);
        machine.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        machine.arg("-append").arg(format!("{}{}", self.machine.append, self.parameter));
        machine
    }

    /// Starts a QEMU for x86 in the background, with the same sockets and nothing to boot.
    pub fn daemon(&self, folder: &Path, socket: &Path) -> Daemon {
        let pid = folder.join("pid");
        let mut machine = self.qemu.system("x86_64");
        machine.args(["-machine", "pc", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults"]);
        machine.arg("-daemonize").arg("-pidfile").arg(&pid);
        serve_qmp(&mut machine, folder);
        machine.arg("-device").arg(watchdog(socket).to_string());
        assert!(machine.status().unwrap().success());
        Daemon { pid }
    }
}

fn serve_qmp(machine: &mut Command, folder: &Path) {
    for name in ["qmp", "test-qmp"] {
        machine.arg("-qmp").arg(format!("unix:{},server=on,wait=off", folder.join(name).display()));
    }
}

/// A QEMU in the background, which is killed when the test ends.
pub struct Daemon {
    /// The file with its process id.
    pid: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

/// QEMU's device for the watchdog at `socket`.
pub fn watchdog(socket: &Path) -> Value {
    json!({ "driver": "vfio-user-pci", "id": "watchdog0", "socket": { "type": "unix", "path": socket } })
}

fn guest_initramfs(kernel: &Kernel) -> Result<Initramfs, Unavailable> {
    let initramfs = Initramfs::with_busybox(&kernel.busybox()?, include_str!("init.sh"));
    Ok(initramfs.modules(&kernel.module("i6300esb")?))
}

fn write(name: &str, initramfs: Initramfs) -> Result<PathBuf, Unavailable> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, initramfs.build()).map_err(Unavailable::while_doing(path.display()))?;
    Ok(path)
}

impl Guest {
    /// Starts a machine whose standard input and output are its guest's channel.
    pub fn boot(machine: Command) -> Self {
        Self::of(Process::start(machine).unwrap())
    }

    /// The guest of a machine that runs.
    pub fn of(process: Process) -> Self {
        Self { process }
    }

    /// Waits for the end of a boot, and gives the boot status that the driver reports.
    pub fn boot_status(&mut self) -> String {
        self.process.wait_until_ready(BOOT_LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Has the guest do something that must succeed, and gives what it printed.
    pub fn run(&mut self, command: &str) -> String {
        let reply = self.process.run(command, LIMIT).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.status, 0, "{command}: {}", reply.output);
        reply.output
    }

    /// Waits for the next message of the guest.
    pub fn message(&mut self) -> Message {
        self.process.wait_for_message(BOOT_LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Busybox feeds the watchdog every second, with a timeout of 4.
    pub fn feed(&mut self) {
        self.run("feed 1 4");
    }

    /// Has the guest kill busybox. Linux sends a last heartbeat when it closes a device without the magic character, so
    /// the last heartbeat is not before the returned instant.
    pub fn kill_feeder(&mut self) -> Instant {
        let before = Instant::now();
        self.run("afterwards='end_feeder KILL'");
        before
    }

    /// Waits for the VMM to end.
    pub fn end(mut self) {
        let ended = self.process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}"));
        assert!(ended.status.success(), "{}: {}", ended.status, ended.record);
    }
}

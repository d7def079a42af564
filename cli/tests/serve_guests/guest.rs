//! A stock Debian guest in QEMU, with a watchdog of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu;

/// How long a boot may take. It takes 10 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What guests are made of.
#[derive(Clone, Debug)]
pub struct Pieces {
    pub qemu: Qemu,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// A guest that executes the commands of the test.
pub struct Guest {
    process: Process,
}

impl Pieces {
    /// Fetches and builds them, once for all tests.
    pub fn get() -> Result<Self, Unavailable> {
        static PIECES: OnceLock<Result<Pieces, Unavailable>> = OnceLock::new();
        PIECES.get_or_init(Self::make).clone()
    }

    fn make() -> Result<Self, Unavailable> {
        let kernel = Kernel::x86()?;
        let initramfs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve-guest.cpio");
        fs::write(&initramfs, guest_initramfs(&kernel)?).map_err(Unavailable::while_doing(initramfs.display()))?;
        Ok(Self { qemu: Qemu::current()?, kernel: kernel.elf()?, initramfs })
    }

    /// A QEMU whose guest has the watchdog at `socket`, and which serves QMP to the server at `folder/qmp` and to the
    /// test at `folder/test-qmp`.
    pub fn machine(&self, folder: &Path, socket: &Path) -> Command {
        let mut machine = self.qemu.system("x86_64");
        machine.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "256"]);
        // The kernel's console, and the guest's channel.
        machine.args(["-display", "none", "-nodefaults", "-serial", "file:/dev/stderr", "-serial", "stdio"]);
        for name in ["qmp", "test-qmp"] {
            machine.arg("-qmp").arg(format!("unix:{},server=on,wait=off", folder.join(name).display()));
        }
        let socket = socket.display();
        machine.arg("-device");
        machine.arg(format!(r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}}}}"#));
        machine.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        machine.args(["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests"]);
        machine
    }
}

fn guest_initramfs(kernel: &Kernel) -> Result<Vec<u8>, Unavailable> {
    let initramfs = Initramfs::with_busybox(&kernel.busybox()?, include_str!("init.sh"));
    Ok(initramfs.modules(&kernel.module("i6300esb")?).build())
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

    /// Busybox feeds the watchdog every second, with a timeout of 4.
    pub fn feed(&mut self) {
        self.run("feed 1 4");
    }

    /// Kills busybox. Linux sends a last heartbeat when it closes a device without the magic character, so the last
    /// heartbeat is not before the returned instant.
    pub fn kill_feeder(&mut self) -> Instant {
        let before = Instant::now();
        self.run("end_feeder KILL");
        before
    }

    /// Waits for the VMM to end.
    pub fn end(mut self) {
        let ended = self.process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}"));
        assert!(ended.status.success(), "{}: {}", ended.status, ended.record);
    }
}

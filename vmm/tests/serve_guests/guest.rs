//! A stock Debian guest in QEMU, with a watchdog of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu;

/// How long a boot may take. It takes a tenth of that on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long anything else may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What guests are made of.
#[derive(Clone, Debug)]
pub struct Pieces {
    pub qemu: Qemu,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// A guest that does what it is told.
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
        machine.args(["-display", "none", "-nodefaults", "-serial", "stdio"]);
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
    /// Boots and waits for the guest to be up.
    pub fn boot(machine: Command) -> Self {
        Self { process: Process::start(machine).unwrap() }
    }

    /// Waits for the end of a boot, and gives the boot status that the driver reports.
    pub fn boot_status(&mut self) -> String {
        self.wait_for("guest: boot status ", BOOT_LIMIT);
        let status = self.wait_for("\n", LIMIT).trim().to_owned();
        self.wait_for("guest: ready\n", LIMIT);
        status
    }

    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        self.process.wait_for(text, limit).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Has the guest do something, and gives what it printed.
    pub fn run(&mut self, command: &str) -> String {
        self.process.send_line(command).unwrap();
        self.wait_for("guest: done\n", LIMIT).trim_end_matches("guest: done\n").to_owned()
    }

    /// Busybox feeds the watchdog every second, with a timeout of 4.
    pub fn feed(&mut self) {
        self.run("watchdog -F -t 1 -T 4 /dev/watchdog & feeder=$!");
    }

    /// Busybox can no longer.
    pub fn kill_feeder(&mut self) {
        self.run("kill -9 $feeder");
    }

    /// Waits for the VMM to end.
    pub fn end(self) {
        let (status, printed) = self.process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}"));
        assert!(status.success(), "{status}: {printed}");
    }
}

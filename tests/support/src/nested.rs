//! A KVM that works, on any machine: QEMU's emulation of an x86 processor includes AMD's SVM, so a stock kernel in it
//! has one. A VMM under test runs in that outer guest, and so may a whole test program.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Unavailable;
use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::process::{Process, ProcessError};
use crate::qemu::Qemu;

/// How long the outer guest may take to boot.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// For every kernel. The self-tests of its ciphers take a second of every boot.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";

/// The kernel's console is the first serial port, the guest's channel the second.
pub const SERIAL_PORTS: [&str; 7] =
    ["-display", "none", "-nodefaults", "-serial", "file:/dev/stderr", "-serial", "stdio"];

/// The outer guest: it loads KVM, and does what it is told on its second serial port. It has pseudo terminals.
const INIT: &str = "\
mkdir /dev/pts
mount -t devpts devpts /dev/pts
while read -r module; do
    insmod \"/lib/$module.ko\"
done </modules

obey /dev/ttyS1
poweroff -f
";

/// Whether KVM here is backed by the processor, and open to us. A software backend runs no stock Linux.
pub fn kvm_is_real() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can_virtualize = processor.split_whitespace().any(|flag| flag == "svm" || flag == "vmx");
    can_virtualize && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The files of an outer guest.
#[derive(Clone, Debug)]
pub struct Image {
    initramfs: Initramfs,
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    /// Busybox and the modules of KVM.
    pub fn new(kernel: &Kernel) -> Result<Self, Unavailable> {
        let modules = kernel.module("kvm-amd")?;
        let names: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
        let initramfs = Initramfs::with_busybox(&kernel.busybox()?, INIT).modules(&modules);
        Ok(Self { initramfs: initramfs.file("modules", names.as_bytes()), libraries: BTreeSet::new() })
    }

    /// Adds a program of this machine at `path`, with the libraries that it is linked with.
    pub fn program(mut self, path: &Path, program: &Path) -> Result<Self, Unavailable> {
        self.initramfs = self.initramfs.program(&relative(path), &read(program)?);
        for library in shared_libraries(program)? {
            if self.libraries.insert(library.clone()) {
                self.initramfs = self.initramfs.program(&relative(&library), &read(&library)?);
            }
        }
        Ok(self)
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, path: &Path, content: &[u8]) -> Self {
        Self { initramfs: self.initramfs.file(&relative(path), content), ..self }
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, path: &Path) -> Self {
        Self { initramfs: self.initramfs.folder(&relative(path)), ..self }
    }

    /// The initramfs of the outer guest.
    pub fn build(self) -> Vec<u8> {
        self.initramfs.build()
    }
}

/// Boots an outer guest with so many processors and MiB of memory, and waits until it takes commands.
pub fn boot(
    qemu: &Qemu,
    kernel: &Path,
    initramfs: &Path,
    processors: u32,
    memory: u32,
) -> Result<Process, ProcessError> {
    let mut machine = qemu.system("x86_64");
    machine.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-no-reboot"]);
    machine.args(["-smp", &processors.to_string(), "-m", &memory.to_string()]);
    machine.args(SERIAL_PORTS);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    machine.args(["-append", &format!("{CMDLINE} mitigations=off")]);
    let mut outer = Process::start(machine)?;
    outer.wait_until_ready(BOOT_LIMIT)?;
    Ok(outer)
}

/// An image in which this very program can run its tests: the program at the path that it has here, `setpriv` for
/// [`that_dies_with_us`](crate::process::that_dies_with_us), and a folder for temporary files.
pub fn image_with_this_program(kernel: &Kernel) -> Result<Image, Unavailable> {
    let program = std::env::current_exe().map_err(Unavailable::while_doing("the path of this program"))?;
    let setpriv = Path::new("/usr/bin/setpriv");
    let image = Image::new(kernel)?.program(&program, &program)?.program(setpriv, setpriv)?;
    Ok(image.folder(Path::new("/tmp")))
}

/// The libraries a program is linked with, and the loader that finds them.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>, Unavailable> {
    let listing = Command::new("ldd").arg(program).output().map_err(Unavailable::while_doing("ldd"))?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let paths = listing.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn relative(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, Unavailable> {
    fs::read(path).map_err(Unavailable::while_doing(path.display()))
}

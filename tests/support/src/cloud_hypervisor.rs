//! Cloud Hypervisor with a stock Debian guest, where the environment names its binary: here if KVM is real, and
//! otherwise in an outer guest, where the same test of the same program runs.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::process::Process;
use crate::qemu::Qemu;
use crate::{Unavailable, assets, nested, process, skip};

/// How long a test may take in the outer guest. On an idle machine the longest takes two minutes.
const TEST_LIMIT: Duration = Duration::from_secs(600);

/// How long a call of the API may take: a reboot answers when the new VM has been built.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// Set in the outer guest, where everything is in the root folder.
const NESTED_VARIABLE: &str = "VM_WATCHDOG_NESTED";

/// What a test of Cloud Hypervisor needs.
#[derive(Clone, Debug)]
pub struct Pieces {
    binary: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// A test of Cloud Hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a> {
    /// The variable that names the binary.
    pub variable: &'a str,
    /// The test's path in its program.
    pub name: &'a str,
    /// The script of the guest's init.
    pub init: &'a str,
    /// Modules of the guest's kernel.
    pub modules: &'a [&'a str],
    /// Programs that the test starts.
    pub programs: &'a [&'a str],
}

impl Test<'_> {
    /// Runs the test, or reports it as skipped.
    pub fn run(&self, test: impl FnOnce(&Pieces)) {
        if env::var_os(NESTED_VARIABLE).is_some() {
            return test(&Pieces::at(Path::new("/")));
        }
        let Some(binary) = env::var_os(self.variable) else {
            return skip::exempt(self.name, &Unavailable::new(format!("{} names no binary", self.variable)));
        };
        let binary = Path::new(&binary);
        let outcome = assets::machine_for_this_process().and_then(|()| {
            if nested::kvm_is_real() {
                let folder = assets::target_folder().join("tmp");
                let pieces = Pieces { binary: binary.to_owned(), ..Pieces::at(&folder) };
                let kernel = Kernel::x86()?;
                write(&pieces.initramfs, &self.guest(&kernel)?)?;
                test(&Pieces { kernel: kernel.elf()?, ..pieces });
                Ok(())
            } else {
                self.run_nested(binary)
            }
        });
        outcome.unwrap_or_else(|why| skip::loudly(self.name, &why));
    }

    /// Runs the same test of this program in an outer guest.
    fn run_nested(&self, binary: &Path) -> Result<(), Unavailable> {
        // One at a time: each is as large as the machine.
        static MACHINE: Mutex<()> = Mutex::new(());
        let _held = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);

        let kernel = Kernel::x86()?;
        let elf = kernel.elf()?;
        let there = Pieces::at(Path::new("/"));
        let mut image = nested::image_with_this_program(&kernel)?.program(&there.binary, binary)?;
        for program in self.programs {
            image = image.program(Path::new(program), Path::new(program))?;
        }
        let vmlinux = fs::read(&elf).map_err(Unavailable::while_doing(elf.display()))?;
        let image = image.file(&there.kernel, &vmlinux).file(&there.initramfs, &self.guest(&kernel)?);
        let initramfs = assets::target_folder().join(format!("tmp/outer-of-{}.cpio", self.variable));
        write(&initramfs, &image.build())?;

        let program = env::current_exe().map_err(Unavailable::while_doing("the path of this program"))?;
        let outer = nested::boot(&Qemu::for_nested_kvm()?, &elf, &initramfs, 2, 3072);
        let mut outer = outer.unwrap_or_else(|error| panic!("the outer guest: {error}"));
        let run = format!(
            "cd /; PATH=/usr/bin:/bin {NESTED_VARIABLE}=1 timeout -s KILL {} '{}' --exact {} --nocapture",
            TEST_LIMIT.as_secs(),
            program.display(),
            self.name,
        );
        let reply = outer.run(&run, TEST_LIMIT + Duration::from_secs(60));
        let reply = reply.unwrap_or_else(|error| panic!("in the outer guest: {error}"));
        println!("in the outer guest:\n{}", reply.output);
        assert!(reply.status == 0 && reply.output.contains("1 passed"), "in the outer guest: {}", reply.status);
        Ok(())
    }

    fn guest(&self, kernel: &Kernel) -> Result<Vec<u8>, Unavailable> {
        let mut guest = Initramfs::with_busybox(&kernel.busybox()?, self.init);
        for module in self.modules {
            guest = guest.modules(&kernel.module(module)?);
        }
        Ok(guest.build())
    }
}

impl Pieces {
    fn at(folder: &Path) -> Self {
        let [binary, kernel, initramfs] =
            ["cloud-hypervisor", "vmlinux", "guest-of-cloud-hypervisor.cpio"].map(|name| folder.join(name));
        Self { binary, kernel, initramfs }
    }

    /// Cloud Hypervisor with its API at `api`, and no VM.
    pub fn vmm(&self, api: &Path) -> Command {
        let mut vmm = process::that_dies_with_us(&self.binary);
        vmm.arg("-v").arg("--api-socket").arg(format!("path={}", api.display()));
        vmm
    }

    /// The same with a VM. Its only serial port is the guest's channel; its kernel prints nowhere.
    pub fn vm(&self, api: &Path) -> Command {
        let mut vmm = self.vmm(api);
        vmm.arg("--kernel").arg(&self.kernel).arg("--initramfs").arg(&self.initramfs);
        vmm.args(["--serial", "tty", "--console", "off", "--cpus", "boot=1", "--memory", "size=256M,shared=on"]);
        vmm.args(["--cmdline", "quiet panic=1 cryptomgr.notests channel=ttyS0"]);
        vmm
    }
}

/// Starts it. It reads its guest's input only from a terminal.
pub fn start(vmm: Command) -> Process {
    Process::start_on_terminal(vmm).unwrap_or_else(|error| panic!("{error}"))
}

/// Calls the API, with a body in JSON or none.
pub fn call(api: &Path, name: &str, body: &str) {
    let mut stream = UnixStream::connect(api).unwrap();
    stream.set_read_timeout(Some(CALL_LIMIT)).unwrap();
    let length = body.len();
    let head = format!("PUT /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut status = [0; 10];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 2", "{name}");
}

fn write(path: &Path, content: &[u8]) -> Result<(), Unavailable> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).and_then(|()| fs::write(path, content)).map_err(Unavailable::while_doing(path.display()))
}

//! An emulated s390x machine, with our watchdog or QEMU's.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu;

use crate::gdb::Gdb;
use crate::qmp::Qmp;

/// Size of a machine's memory, in bytes.
pub const MEMORY: u64 = 512 << 20;

/// A running QEMU with a channel to its guest, a QMP connection, and a socket for a debugger.
pub struct Machine {
    pub process: Process,
    pub qmp: Arc<Qmp>,
    folder: TempDir,
}

/// The watchdog of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// No QEMU device: QEMU answers every DIAGNOSE X'288' with a specification exception, as for unknown codes.
    None,
    /// QEMU's device, which performs this action: the oracle.
    Qemu {
        /// The name in `-action watchdog=`.
        action: &'static str,
    },
}

impl Machine {
    /// Starts a machine with `device`; `arguments` adds what it boots.
    pub fn start(
        qemu: &Qemu,
        device: Device,
        arguments: impl FnOnce(&Path, &mut Command) -> io::Result<()>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = TempDir::with_prefix("vm-watchdog-")?;
        let mut command = qemu.system("s390x");
        command
            .args(["-M", "s390-ccw-virtio", "-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults"])
            .args(["-chardev", "file,id=console,path=/dev/stderr", "-device", "sclpconsole,chardev=console"])
            // The guest's channel: a virtio-serial port, to which its kernel does not print.
            .args(["-chardev", "stdio,id=channel,signal=off", "-device", "virtio-serial-ccw"])
            .args(["-device", "virtserialport,chardev=channel"])
            .args(["-gdb", &listen_on(&gdb_socket(&folder))])
            .args(["-qmp", &listen_on(&qmp_socket(&folder))]);
        if let Device::Qemu { action } = device {
            command.args(["-device", "diag288", "-action", &format!("watchdog={action}")]);
        }
        arguments(folder.path(), &mut command)?;
        let process = Process::start(command)?;
        let qmp = Arc::new(Qmp::connect(&qmp_socket(&folder))?);
        Ok(Self { process, qmp, folder })
    }

    /// Connects a debugger. That stops the machine.
    pub fn debug(&self) -> io::Result<Gdb> {
        Gdb::connect(&gdb_socket(&self.folder))
    }
}

/// Keeps the machine's memory in a file, and returns the file, through which the test reads the memory.
pub fn memory_in_file(folder: &Path, command: &mut Command) -> io::Result<File> {
    let path = folder.join("memory");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(MEMORY)?;
    command.args(["-machine", "memory-backend=ram", "-object"]);
    command.arg(format!("memory-backend-file,id=ram,size={MEMORY},share=on,mem-path={}", path.display()));
    Ok(file)
}

fn gdb_socket(folder: &TempDir) -> PathBuf {
    folder.path().join("gdb")
}

fn qmp_socket(folder: &TempDir) -> PathBuf {
    folder.path().join("qmp")
}

fn listen_on(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

/// Reads guest memory as a VMM with `vm-memory` does.
pub fn reader(memory: &GuestMemoryMmap) -> impl FnOnce(u64, &mut [u8]) -> bool {
    |address, bytes| memory.read_slice(bytes, GuestAddress(address)).is_ok()
}

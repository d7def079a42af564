//! The configuration of a run.

use std::path::PathBuf;

use vm_watchdog::WatchdogConfig;
use vm_watchdog_timeline::Format;

use crate::builtin::table::BuiltInGuest;
use crate::memory_size::MemorySize;

/// What to boot, with which devices.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The kernel, a bzImage or a 64-bit ELF; `None` boots the built-in guest.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of the kernel.
    pub initrd: Option<PathBuf>,
    /// The command line of the kernel.
    pub cmdline: String,
    /// The file that the second serial port writes to; without it there is no second port.
    pub second_serial: Option<PathBuf>,
    /// Size of guest memory.
    pub memory: MemorySize,
    /// The watchdogs.
    pub watchdogs: Vec<WatchdogConfig>,
    /// How the timeline is written.
    pub events: Format,
    /// Where the timeline is written; `None` is standard error.
    pub events_file: Option<PathBuf>,
    /// Where the action `dump` writes guest memory.
    pub dump_file: PathBuf,
    /// Where SIGUSR1 saves the VM; `None` only pauses it.
    pub snapshot: Option<PathBuf>,
    /// A saved VM to continue, with its own watchdogs and memory.
    pub restore: Option<PathBuf>,
    /// Which built-in guest to boot without a kernel.
    pub built_in: BuiltInGuest,
    /// The KVM device.
    pub kvm_device: PathBuf,
}

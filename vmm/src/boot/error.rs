//! Why a VM could not be run: one line each, and the exit status it means.

use std::io;
use std::path::PathBuf;

use super::memory::MemorySize;
use crate::exit::ExitStatus;

/// Why a VM could not be run, or not any further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel cannot be read.
    #[error("kernel {}: {source}", path.display())]
    KernelUnreadable { path: PathBuf, source: io::Error },
    /// The kernel is no kernel.
    #[error("kernel {}: neither a bzImage nor a 64-bit x86 ELF kernel ({reason})", path.display())]
    KernelUnusable { path: PathBuf, reason: String },
    /// The initrd cannot be read.
    #[error("initrd {}: {source}", path.display())]
    InitrdUnreadable { path: PathBuf, source: io::Error },
    /// KVM cannot be used, and the guest needs it.
    #[error("{guest} needs KVM, and {reason}")]
    KvmUnusable { guest: &'static str, reason: String },
    /// The snapshot cannot be read, or holds what no VM can be in.
    #[error("snapshot {}: {reason}", path.display())]
    Snapshot { path: PathBuf, reason: String },
    /// The guest does not fit.
    #[error("{size} of memory is too little: {needed}")]
    TooLittleMemory { size: MemorySize, needed: String },
    /// The host has too little.
    #[error("{size} of guest memory cannot be had: {reason}")]
    MemoryUnavailable { size: MemorySize, reason: String },
    /// This is not the KVM that we know.
    #[error("its API version is {0}, not 12")]
    KvmVersion(i32),
    /// The options contradict each other or name something that this VMM does not have.
    #[error("{0}")]
    Usage(String),
    /// The events file cannot be written.
    #[error("events file {}: {source}", path.display())]
    EventsFile { path: PathBuf, source: io::Error },
    /// The file of the second serial port cannot be written.
    #[error("file of the second serial port {}: {source}", path.display())]
    SerialFile { path: PathBuf, source: io::Error },
    /// Guest memory refused what the loader wrote.
    #[error("the guest cannot be loaded: {0}")]
    Load(String),
    /// The host refused something while the VM was set up or ran.
    #[error("{doing}: {source}")]
    Host { doing: &'static str, source: io::Error },
    /// The vCPU stopped in a way that no guest of ours should cause.
    #[error("the vCPU stopped: {0}")]
    Vcpu(String),
    /// The vCPU does not answer.
    #[error("the vCPU did not stop within {0} s")]
    VcpuStuck(u64),
    /// The watchdog library refused.
    #[error(transparent)]
    Watchdog(#[from] vm_watchdog::Error),
    /// The main loop failed.
    #[error("the event loop failed: {0}")]
    EventLoop(#[from] event_manager::Error),
}

impl BootError {
    /// For `map_err` on a call of KVM or of the host: says what was being done.
    pub fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { doing, source: source.into() }
    }

    /// The exit status that the error means.
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::KernelUnreadable { .. } | Self::KernelUnusable { .. } | Self::InitrdUnreadable { .. } => {
                ExitStatus::BadImage
            }
            Self::KvmUnusable { .. } | Self::KvmVersion(_) => ExitStatus::NoKvm,
            Self::Snapshot { .. } => ExitStatus::BadSnapshot,
            Self::TooLittleMemory { .. } | Self::MemoryUnavailable { .. } => ExitStatus::NoMemory,
            Self::Usage(_) | Self::EventsFile { .. } | Self::SerialFile { .. } => ExitStatus::Usage,
            Self::Load(_)
            | Self::Host { .. }
            | Self::Vcpu(_)
            | Self::VcpuStuck(_)
            | Self::Watchdog(_)
            | Self::EventLoop(_) => ExitStatus::Failed,
        }
    }
}

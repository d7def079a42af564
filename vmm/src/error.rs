//! The errors of the VMM: one line each, with an exit status.

use std::io;
use std::path::PathBuf;

use crate::exit::ExitStatus;
use crate::memory_size::MemorySize;

/// Why a VM cannot be started, or has failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
#[non_exhaustive]
pub enum BootError {
    /// The kernel cannot be read.
    #[error("kernel {}: {source}", path.display())]
    KernelUnreadable { path: PathBuf, source: io::Error },
    /// The file is no supported kernel.
    #[error("kernel {}: neither a bzImage nor a 64-bit x86 ELF kernel ({reason})", path.display())]
    KernelUnusable { path: PathBuf, reason: String },
    /// The initrd cannot be read.
    #[error("initrd {}: {source}", path.display())]
    InitrdUnreadable { path: PathBuf, source: io::Error },
    /// KVM cannot be used, and the guest needs it.
    #[error("{guest} needs KVM, and {reason}")]
    KvmUnusable { guest: &'static str, reason: String },
    /// The snapshot cannot be read, or is invalid.
    #[error("snapshot {}: {reason}", path.display())]
    Snapshot { path: PathBuf, reason: String },
    /// The guest does not fit into its memory.
    #[error("{size} of memory is too little: {needed}")]
    TooLittleMemory { size: MemorySize, needed: String },
    /// The host cannot provide the memory.
    #[error("{size} of guest memory cannot be allocated: {reason}")]
    MemoryUnavailable { size: MemorySize, reason: String },
    /// The API version of KVM is not supported.
    #[error("its API version is {0}, not 12")]
    KvmVersion(i32),
    /// The options contradict each other or request something that this VMM does not have.
    #[error("{0}")]
    Usage(String),
    /// The events file cannot be written.
    #[error("events file {}: {source}", path.display())]
    EventsFile { path: PathBuf, source: io::Error },
    /// The file of the second serial port cannot be written.
    #[error("file of the second serial port {}: {source}", path.display())]
    SerialFile { path: PathBuf, source: io::Error },
    /// The loader cannot write to guest memory.
    #[error("the guest cannot be loaded: {0}")]
    Load(String),
    /// A call of the host failed.
    #[error("{doing}: {source}")]
    Host { doing: &'static str, source: io::Error },
    /// The vCPU stopped for an unsupported reason.
    #[error("the vCPU stopped: {0}")]
    Vcpu(String),
    /// The vCPU does not answer.
    #[error("the vCPU did not stop within {0} s")]
    VcpuStuck(u64),
    /// A watchdog cannot be built.
    #[error(transparent)]
    Watchdog(#[from] vm_watchdog::Error),
    /// The main loop failed.
    #[error("the event loop failed: {0}")]
    EventLoop(#[from] event_manager::Error),
}

impl BootError {
    /// For `map_err` on a call of KVM or of the host: adds what the VMM was doing.
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

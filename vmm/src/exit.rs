//! How a run ended, as the exit status of a process. The numbers are an interface: scripts and guest tests depend on them.

use std::fmt;
use std::process::ExitCode;

/// How a run of the VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered itself off. The built-in guest does so when it finds that its watchdog caused the last reset.
    GuestPoweredOff = 0,
    /// The VMM itself failed.
    Failed = 1,
    /// The options cannot be used.
    Usage = 2,
    /// A watchdog expired and its action powered the guest off.
    WatchdogPoweredOff = 3,
    /// The kernel or initrd cannot be read or used.
    BadImage = 4,
    /// KVM is needed and cannot be used.
    NoKvm = 5,
    /// Too little memory, for this guest or on this host.
    NoMemory = 6,
    /// The built-in guest read an unexpected value.
    Unexpected = 7,
    /// The snapshot cannot be read or used.
    BadSnapshot = 8,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestPoweredOff => "the guest powered itself off",
            Self::Failed => "the VMM failed",
            Self::Usage => "the command line cannot be used",
            Self::WatchdogPoweredOff => "the watchdog powered the guest off",
            Self::BadImage => "the kernel or initrd cannot be used",
            Self::NoKvm => "KVM cannot be used",
            Self::NoMemory => "too little memory",
            Self::Unexpected => "the built-in guest read an unexpected value",
            Self::BadSnapshot => "the snapshot cannot be used",
        })
    }
}

//! Exit statuses of the command. The numbers are an interface: scripts and guest tests depend on them.

use std::fmt;
use std::process::ExitCode;

/// How a run of `vm-watchdog boot` ended. [`Failed`](Self::Failed) and [`Usage`](Self::Usage) are those of
/// `vm-watchdog serve`, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered itself off; the built-in guest does so after it has been bitten and has found out.
    GuestPoweredOff = 0,
    /// The VMM itself failed.
    Failed = 1,
    /// The command line cannot be used.
    Usage = 2,
    /// A watchdog expired and its action powered the guest off.
    Bitten = 3,
    /// A kernel or initrd that cannot be read or used.
    BadImage = 4,
    /// KVM is needed and cannot be used.
    NoKvm = 5,
    /// Too little memory, for this guest or on this host.
    NoMemory = 6,
    /// The built-in guest saw something that it did not expect.
    Unexpected = 7,
    /// A snapshot that cannot be read or used.
    BadSnapshot = 8,
}

/// What the statuses mean after `vm-watchdog serve`, for its `--help`.
pub const SERVE_HELP: &str = "\
Exit status:
  0  SIGTERM or SIGINT ended the server
  1  a socket, a state file or the address for the metrics cannot be used, or the host refuses something else
  2  the command line cannot be used";

/// The table above, for `--help`.
pub const HELP: &str = "\
Exit status:
  0  the guest powered itself off (the built-in guest: after it was bitten and found out)
  1  the VMM failed
  2  the command line cannot be used
  3  a watchdog expired and its action powered the guest off
  4  the kernel or initrd cannot be read or used
  5  a kernel was given and KVM cannot be used
  6  too little memory
  7  the built-in guest saw something that it did not expect
  8  the snapshot cannot be read or used

Linux powers itself off by ACPI; a guest without it writes the word 0x2000 to port 0x604.
A guest that resets itself (port 0x64, value 0xfe, or a triple fault) is rebooted in place.";

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
            Self::Bitten => "the watchdog powered the guest off",
            Self::BadImage => "the kernel or initrd cannot be used",
            Self::NoKvm => "KVM cannot be used",
            Self::NoMemory => "too little memory",
            Self::Unexpected => "the built-in guest saw something that it did not expect",
            Self::BadSnapshot => "the snapshot cannot be used",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_status() {
        for status in 0..=ExitStatus::BadSnapshot as u8 {
            assert!(HELP.contains(&format!("\n  {status}  ")), "{status}");
        }
    }
}

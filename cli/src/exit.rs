//! The last message of the process, and exit statuses, as `--help` explains them. The numbers are an interface: scripts
//! and guest tests depend on them.

use std::fmt;
use std::io::{self, Write};

/// Writes an error to standard error. If that is full or closed, the exit status says it.
pub fn report(error: &dyn fmt::Display) {
    let _ = io::stderr().write_all(format!("vm-watchdog: {error}\n").as_bytes());
}

/// The status after a command line that cannot be used.
pub const USAGE: u8 = 2;

/// What the statuses mean after `vm-watchdog serve`, for its `--help`.
pub const SERVE_HELP: &str = "\
Exit status:
  0  SIGTERM or SIGINT ended the server
  1  a socket, a file or the address for the metrics cannot be used, too few files may be open, the process that runs
     the commands has ended, or the host refuses something else, as the sandbox
  2  the command line or the manifest cannot be used
  159  the sandbox forbids a system call that the server has made, and standard error names";

/// The status of a server that has made a system call that its sandbox forbids: 128 and the number of SIGSYS, as in a shell.
pub const FORBIDDEN_CALL: u8 = 159;

/// What the statuses mean after `vm-watchdog check`, for its `--help`.
pub const CHECK_HELP: &str = "\
Exit status:
  0  the file can be used
  1  the file cannot be read, or has an error
  2  the command line cannot be used";

/// What the statuses mean after `vm-watchdog sidecar`, for its `--help`.
pub const SIDECAR_HELP: &str = "\
The hook is this program under the name onDefineDomain, in a folder of PATH.

Exit status:
  0  a signal has ended sidecar-shim, or it has ended with 0
  1  a folder or sidecar-shim cannot be used
  2  the command line cannot be used
Otherwise the status is that of sidecar-shim.";

/// What the statuses mean after `vm-watchdog status`, for its `--help`.
pub const STATUS_HELP: &str = "\
Exit status:
  0  every VM is well: armed, alive and ready; or there is none; or ctrl-C has ended --watch
  1  the folder cannot be read
  2  the command line cannot be used
  3  a VM is critical: its server does not answer, its guest has timed out or is not protected although it believes so,
     its last action has failed, or its liveness probe has
  4  no VM is critical, and one has a warning: no VMM is connected, the guest has not armed its watchdog, an action is
     delayed, or the guest is not ready";

/// What the statuses mean after `vm-watchdog boot`, for its `--help`.
#[cfg(target_arch = "x86_64")]
pub const BOOT_HELP: &str = "\
Exit status:
  0  the guest powered itself off (the built-in guest: when its watchdog caused the last reset)
  1  the VMM failed
  2  the command line cannot be used
  3  a watchdog expired and its action powered the guest off
  4  the kernel or initrd cannot be read or used
  5  a kernel was given and KVM cannot be used
  6  too little memory
  7  the built-in guest read an unexpected value
  8  the snapshot cannot be read or used

Linux powers itself off by ACPI; a guest without it writes the word 0x2000 to port 0x604.
A guest that resets itself (port 0x64, value 0xfe, or a triple fault) is rebooted in place.";

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use vm_watchdog_vmm::ExitStatus;

    #[test]
    fn help_lists_every_status() {
        for status in 0..=ExitStatus::BadSnapshot as u8 {
            assert!(BOOT_HELP.contains(&format!("\n  {status}  ")), "{status}");
        }
        assert!(SERVE_HELP.contains(&format!("\n  {FORBIDDEN_CALL}  ")));
    }
}

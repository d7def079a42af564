//! Support code for the tests of this workspace: guests, and QEMU to run them or to compare with.
//!
//! All programs come from Debian packages. The tests fetch them without root on first use, and keep them in
//! `target/guest-assets` (or the folder in `VM_WATCHDOG_GUEST_ASSETS`), so that later runs need no network. A test
//! whose packages are unavailable is skipped with a report; with `VM_WATCHDOG_REQUIRE_GUESTS=1` it fails.
//!
//! - [`acpica`]: the disassembler of ACPI tables
//! - [`assets`]: folders that are created once, atomically
//! - [`channel`]: the protocol of a guest and its harness
//! - [`debian`]: packages, with a private apt configuration
//! - [`kernel`]: Debian's kernel, its modules and its busybox
//! - [`initramfs`]: the archive that a kernel boots from
//! - [`guest_agent`]: QEMU's guest agent, to be put into such an archive
//! - [`libraries`]: the libraries of unpacked packages
//! - [`nested`]: an outer guest whose KVM works
//! - [`cloud_hypervisor`]: Cloud Hypervisor as the VMM, where the environment names its binary
//! - [`python`]: programs from the Python package index
//! - [`qemu`]: a current QEMU, independent of the machine's own
//! - [`prometheus`]: promtool, for the alert rules
//! - [`process`]: a program that runs a guest, with time limits
//! - [`random`]: random numbers that are the same in every run
//! - [`systemd`]: systemd for guests, and its programs
//! - [`skip`]: tests that cannot run on this machine

pub mod acpica;
pub mod assets;
pub mod channel;
pub mod cloud_hypervisor;
pub mod debian;
pub mod guest_agent;
pub mod initramfs;
pub mod kernel;
pub mod libraries;
pub mod nested;
pub mod process;
pub mod prometheus;
pub mod python;
pub mod qemu;
pub mod random;
pub mod skip;
pub mod systemd;

/// Why a part of the test environment is unavailable on this machine: one line for the person who runs the test.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

impl Unavailable {
    /// An error with this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// For `map_err`: adds the operation that failed.
    pub fn while_doing<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

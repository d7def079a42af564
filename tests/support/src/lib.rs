//! What the tests of this workspace share: real guests, and QEMU to run or to compare them with.
//!
//! Everything comes from Debian's own packages, fetched without root on first use and kept under `target/guest-assets`
//! (or where `VM_WATCHDOG_GUEST_ASSETS` says), so that later runs need no network. Where that is impossible a test is
//! skipped loudly; with `VM_WATCHDOG_REQUIRE_GUESTS=1` a skip is a failure.
//!
//! - [`assets`]: folders that are made once, whole or not at all
//! - [`channel`]: how a guest and its harness talk
//! - [`debian`]: packages, through a private apt
//! - [`kernel`]: Debian's kernel, its modules and its busybox
//! - [`initramfs`]: the archive a kernel boots from
//! - [`qemu`]: a current QEMU beside the machine's own
//! - [`process`]: a program with a guest in it, and a hard time limit
//! - [`skip`]: what becomes of a test whose pieces cannot be had

pub mod assets;
pub mod channel;
pub mod debian;
pub mod initramfs;
pub mod kernel;
pub mod process;
pub mod qemu;
pub mod skip;

/// Why a piece of a test environment cannot be had on this machine: one line for the person who runs the test.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

impl Unavailable {
    /// With this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// For `map_err`: says what was being done.
    pub fn while_doing<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

//! What a server can no longer do once it has started, so that a client that takes it over gains little.
//!
//! Two mechanisms of Linux that need no privileges: a filter of system calls ([`seccomp`]), and rules for files, ports and
//! processes ([`landlock`]). docs/sandbox.md describes both. Everything that they forbid and the server has to
//! do is done before, or by a helper process.

mod landlock;
pub mod mode;
pub mod needs;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "x86_64"))]
mod seccomp;
#[cfg(test)]
mod tests;

/// There is none where the crates have no table of system calls.
#[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "x86_64")))]
mod seccomp {
    use crate::serve::sandbox::needs::Needs;

    pub type SeccompError = std::convert::Infallible;

    pub fn restrict(_: &Needs) -> Result<bool, SeccompError> {
        Ok(false)
    }
}

use crate::serve::sandbox::landlock::LandlockError;
use crate::serve::sandbox::mode::SandboxMode;
use crate::serve::sandbox::needs::Needs;
use crate::serve::sandbox::seccomp::SeccompError;

pub use crate::serve::sandbox::landlock::Landlock;

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// on, off, or none where there is no filter for the architecture.
    pub seccomp: &'static str,
    pub landlock: Landlock,
}

/// The sandbox cannot be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The rules for files, ports and processes.
    #[error("sandbox: {0} (--sandbox=off starts without)")]
    Landlock(#[from] LandlockError),
    /// The filter of system calls.
    #[error("sandbox: {0} (--sandbox=off starts without)")]
    Seccomp(#[from] SeccompError),
}

/// Enters the sandbox, and returns what is in force. To be called while this process has one thread: the
/// rules are those of a thread, and of the threads that it starts.
///
/// # Errors
///
/// [`SandboxError`]. A kernel without Landlock is none, and one without filters is.
pub fn enter(mode: SandboxMode, needs: &Needs) -> Result<InForce, SandboxError> {
    if mode == SandboxMode::Off {
        return Ok(InForce { seccomp: "off", landlock: Landlock { status: "off", abi: None } });
    }
    let landlock = landlock::restrict(needs)?;
    let seccomp = if seccomp::restrict(needs)? { "on" } else { "none" };
    Ok(InForce { seccomp, landlock })
}

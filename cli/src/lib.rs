//! The `vm-watchdog` command, as a library for its own program and for `packaging/manual`, which writes manual pages and
//! completions. It is no interface for other packages.

#![cfg_attr(fuzzing, allow(missing_docs))]

mod arguments;
#[cfg(target_arch = "x86_64")]
mod boot;
mod check;
mod exit;
mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kubevirt;
mod local_socket;
mod serve;
mod status;

use std::process::ExitCode;

use crate::arguments::Command;
use crate::kubevirt::{hook, sidecar};

pub use crate::arguments::definition;

/// Runs the command that the arguments of the process name, or the hook of KubeVirt.
pub fn main() -> ExitCode {
    if hook::is_called(std::env::args_os().next().as_deref()) {
        return hook::run();
    }
    match arguments::parse() {
        #[cfg(target_arch = "x86_64")]
        Ok(Command::Boot(arguments)) => boot::run(arguments).into(),
        Ok(Command::Serve(options)) => serve::run(*options),
        Ok(Command::Check(arguments)) => check::run(&arguments),
        Ok(Command::Sidecar(arguments)) => sidecar::run(&arguments),
        Ok(Command::Status(arguments)) => status::run(&arguments),
        Ok(Command::Helper) => serve::helper::process::run(),
        Err(code) => code,
    }
}

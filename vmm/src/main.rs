//! The `vm-watchdog` command.

mod boot;
mod cli;
mod exit;
mod serve;
mod timeline;

use std::process::ExitCode;

use crate::cli::Command;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(Command::Boot(options)) => boot::run(options).into(),
        Ok(Command::Serve(options)) => serve::run(options),
        Err(code) => code,
    }
}

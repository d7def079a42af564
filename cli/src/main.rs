//! The `vm-watchdog` command.

mod arguments;
mod boot;
mod exit;
mod format;
mod serve;

use std::process::ExitCode;

use crate::arguments::Command;

fn main() -> ExitCode {
    match arguments::parse() {
        Ok(Command::Boot(arguments)) => boot::run(arguments).into(),
        Ok(Command::Serve(options)) => serve::run(options),
        Err(code) => code,
    }
}

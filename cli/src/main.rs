//! The `vm-watchdog` command.

mod arguments;
mod boot;
mod check;
mod exit;
mod format;
mod serve;

use std::process::ExitCode;

use crate::arguments::Command;

fn main() -> ExitCode {
    match arguments::parse() {
        Ok(Command::Boot(arguments)) => boot::run(arguments).into(),
        Ok(Command::Serve(options)) => serve::run(*options),
        Ok(Command::Check(arguments)) => check::run(&arguments),
        Err(code) => code,
    }
}

//! The command line: the commands, and what their arguments share.

use std::process::ExitCode;

#[cfg(not(target_arch = "x86_64"))]
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

#[cfg(target_arch = "x86_64")]
use crate::boot::BootArguments;
use crate::check::CheckArguments;
use crate::exit;
use crate::kubevirt::sidecar::SidecarArguments;
use crate::serve;
use crate::serve::options::ServeOptions;
use crate::status::StatusArguments;

/// Watchdog devices for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "vm-watchdog", version)]
#[cfg_attr(target_arch = "x86_64", command(after_help = exit::BOOT_HELP))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// A command. The small VMM of `boot` is one for x86.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Boot a guest in a small VMM (the default, with its built-in guest)
    #[cfg(target_arch = "x86_64")]
    #[command(after_help = exit::BOOT_HELP)]
    Boot(BootArguments),
    /// Serve watchdogs to VMs of QEMU and Cloud Hypervisor, over vfio-user
    #[command(after_help = exit::SERVE_HELP)]
    Serve(Box<ServeOptions>),
    /// Check a manifest of KubeVirt, libvirt or QEMU, and say what it means
    #[command(after_help = exit::CHECK_HELP)]
    Check(CheckArguments),
    /// Run in the hook sidecar of a KubeVirt VM
    #[command(after_help = exit::SIDECAR_HELP)]
    Sidecar(SidecarArguments),
    /// Show the VMs of this host and their watchdogs
    #[command(after_help = exit::STATUS_HELP)]
    Status(StatusArguments),
    /// Do what the sandbox of a server forbids (the server starts it)
    #[command(hide = true, name = serve::helper::COMMAND)]
    Helper,
}

/// The definition of the command line, for manual pages and completions.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// The command to run, or the status to end with after help or an error was printed.
pub fn parse() -> Result<Command, ExitCode> {
    parse_from(std::env::args_os()).map_err(|error| {
        if error.use_stderr() {
            exit::report(&one_line(&error));
            ExitCode::from(exit::USAGE)
        } else {
            // It is no failure if help cannot be written, as to a closed pipe.
            let _ = error.print();
            ExitCode::SUCCESS
        }
    })
}

pub fn parse_from<T: Into<std::ffi::OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> clap::error::Result<Command> {
    match Cli::try_parse_from(arguments)?.command {
        Some(command) => Ok(command),
        #[cfg(target_arch = "x86_64")]
        None => parse_from(["vm-watchdog", "boot"]),
        #[cfg(not(target_arch = "x86_64"))]
        None => Err(Cli::command().error(ErrorKind::MissingSubcommand, "no command; --help lists them")),
    }
}

/// The message alone, without the usage that clap adds to it.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    message.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn nothing_means_boot_with_the_built_in_guest() {
        let Command::Boot(arguments) = parse_from(["vm-watchdog"]).unwrap() else { panic!() };
        assert_eq!((arguments.kernel, arguments.watchdogs.len()), (None, 1));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn mistakes_are_one_line() {
        let mistakes = [
            ("--watchdog=i6300esb,action=explode", "explode"),
            ("--watchdog=tco", "tco"),
            ("--memory=lots", "lots"),
            ("--initrd=x", "--kernel"),
            ("--events=xml", "text, json"),
            ("--nonsense", "--nonsense"),
        ];
        for (argument, mentions) in mistakes {
            let line = one_line(&parse_from(["vm-watchdog", "boot", argument]).expect_err(argument));
            assert!(line.contains(mentions) && !line.contains('\n'), "{line}");
        }
    }
}

//! Writes the manual pages and the shell completions of `vm-watchdog` from the definition of its command line:
//!
//!     cargo run --package vm-watchdog-manual -- FOLDER
//!
//! The folder gets `man/vm-watchdog.1` and a page for each subcommand, and `completions/vm-watchdog.bash`, `_vm-watchdog`
//! for zsh and `vm-watchdog.fish`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::{Generator, Shell};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

const NAME: &str = "vm-watchdog";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: manual FOLDER");
        return ExitCode::from(2);
    };
    match write(&PathBuf::from(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut vm_watchdog_cli::definition(), NAME, &mut script);
        let script = String::from_utf8(script).map_err(io::Error::other)?;
        // In bash the options of subcommands of a name with a dash are not completed: clap-rs/clap#6421.
        let script = script.replace("vm__subcmd__watchdog", "vm__watchdog");
        fs::write(completions.join(shell.file_name(NAME)), script)?;
    }

    let pages = folder.join("man");
    fs::create_dir_all(&pages)?;
    let mut definition = vm_watchdog_cli::definition().disable_help_subcommand(true);
    // Names the pages of the subcommands.
    definition.build();
    for command in
        std::iter::once(&definition).chain(definition.get_subcommands().filter(|command| !command.is_hide_set()))
    {
        let name = command.get_display_name().unwrap_or(NAME);
        fs::write(pages.join(format!("{name}.1")), page(command, name, &definition)?)?;
    }
    Ok(())
}

/// The page of a command, with what is after its help as a section of its own.
fn page(command: &Command, name: &str, whole: &Command) -> io::Result<Vec<u8>> {
    let source = format!("{NAME} {}", whole.get_version().unwrap_or_default());
    let page = Man::new(command.clone()).title(name.to_uppercase()).source(source).manual(NAME);
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    // Without it long words are stretched over a line.
    text.extend(b".ad l\n");
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(help) = command.get_after_help() {
        exit_status(&help.to_string()).to_writer(&mut text)?;
    }
    let mut section = Roff::new();
    section.control("SH", ["SEE ALSO"]).text([roman(see_also(name, whole))]);
    section.to_writer(&mut text)?;
    Ok(text)
}

/// The exit statuses, of which help has a line each and perhaps further lines that are indented, and text after them.
fn exit_status(help: &str) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["EXIT STATUS"]);
    for line in help.lines().filter(|line| *line != "Exit status:") {
        let status = line.strip_prefix("  ").and_then(|line| line.split_once("  "));
        match status {
            Some((number, meaning)) if number.parse::<u8>().is_ok() => {
                section.control("TP", ["4"]).text([roman(number)]).text([roman(meaning)]);
            }
            _ if line.is_empty() => {
                section.control("PP", []);
            }
            _ => {
                section.text([roman(line.trim_start())]);
            }
        }
    }
    section
}

fn see_also(name: &str, whole: &Command) -> String {
    let commands = std::iter::once(whole).chain(whole.get_subcommands());
    let names = commands.map(|command| command.get_display_name().unwrap_or(NAME)).filter(|other| *other != name);
    let mut pages: Vec<_> = names.map(|other| format!("{other}(1)")).collect();
    pages.push("/usr/share/doc/vm-watchdog".to_owned());
    pages.join(", ")
}

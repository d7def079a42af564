//! `vm-watchdog status`: the VMs of this host and their watchdogs, read from the sockets of their servers.
//!
//! [`targets`] says which sockets there are, [`ask`] asks them all at the same time, [`judgement`] says what is not as it
//! should be, [`row`] and [`table`] make lines of it, and [`watch`] draws them again and again.

pub mod ask;
pub mod document;
mod judgement;
pub mod row;
pub mod table;
pub mod targets;
mod watch;

use std::io::{self, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::exit::report;
use crate::status::ask::ask;
use crate::status::document::{VERSION, is_visible};
use crate::status::judgement::Severity;
use crate::status::row::Vm;
use crate::status::table::{Look, lines};
use crate::status::targets::targets;

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// The least width of a table.
const LEAST_WIDTH: usize = 20;

/// Shows the VMs of this host: who is protected, how much time is left, and what was done last.
///
/// Without NAME or SOCKET every VM that has a socket /run/vm-watchdog/NAME/metrics is shown, which is the socket of
/// "vm-watchdog serve --metrics unix:...". A VM with several watchdogs has a row for each.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArguments {
    /// The name of a VM, or a socket (a path with a slash) [default: every VM of the folder]
    #[arg(value_name = "NAME|SOCKET")]
    named: Vec<PathBuf>,

    /// Where the folders of the VMs are
    #[arg(long, value_name = "PATH", default_value = "/run/vm-watchdog")]
    folder: PathBuf,

    /// Show them again every second, or every so many seconds, until ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,

    /// Write one JSON object a line instead of a table
    #[arg(long)]
    json: bool,

    /// Whether the table has colours; auto is on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    color: clap::ColorChoice,
}

/// Runs the command. `exit::STATUS_HELP` has its statuses.
pub fn run(arguments: &StatusArguments) -> ExitCode {
    let outcome = match arguments.watch {
        Some(seconds) => watch::run(arguments, Duration::from_secs(seconds)),
        None => once(arguments),
    };
    outcome.unwrap_or_else(|error| {
        report(&error);
        ExitCode::FAILURE
    })
}

fn once(arguments: &StatusArguments) -> io::Result<ExitCode> {
    let Some(vms) = arguments.look(LIMIT, None)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let text = if arguments.json {
        json_line(&vms)
    } else if vms.is_empty() {
        report(&format!("{}: no VM", arguments.folder.display()));
        String::new()
    } else {
        let mut text = lines(&vms, arguments.appearance()).join("\n");
        text.push('\n');
        text
    };
    // It is no failure if the text cannot be written, as to a closed pipe.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(match vms.iter().map(Vm::severity).max().unwrap_or_default() {
        Severity::Ok => ExitCode::SUCCESS,
        Severity::Critical => ExitCode::from(3),
        Severity::Warning => ExitCode::from(4),
    })
}

impl StatusArguments {
    /// Asks every VM; `None` if `end` became readable before all had answered.
    fn look(&self, limit: Duration, end: Option<BorrowedFd<'_>>) -> io::Result<Option<Vec<Vm>>> {
        let folder = |error| io::Error::other(format!("{}: {error}", self.folder.display()));
        let targets = targets(&self.folder, &self.named).map_err(folder)?;
        let sockets: Vec<&Path> = targets.iter().map(|target| target.socket.as_path()).collect();
        let Some(answers) = ask(&sockets, limit, end) else {
            return Ok(None);
        };
        Ok(Some(targets.into_iter().zip(answers).map(|(target, answer)| Vm::new(target, answer)).collect()))
    }

    /// How a table looks on standard output. One that a program reads is not cut.
    fn appearance(&self) -> Look {
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|&it| it > 0);
        let width = columns.or_else(|| terminal_size().map(|(_, columns)| columns));
        let colour = match self.color {
            clap::ColorChoice::Always => true,
            clap::ColorChoice::Never => false,
            clap::ColorChoice::Auto => anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never,
        };
        Look { width: width.map(|width: usize| width.max(LEAST_WIDTH)), colour }
    }
}

/// Lines and columns of the terminal that standard output is; `None` if it is none, or does not tell.
fn terminal_size() -> Option<(usize, usize)> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())??;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row.into(), size.ws_col.into()))
}

/// The VMs as a line of JSON, in which what a terminal acts on is escaped.
pub fn json_line(vms: &[Vm]) -> String {
    let mut line = String::new();
    for character in object(vms).to_string().chars() {
        if is_visible(character) {
            line.push(character);
        } else {
            // Only in strings, where each UTF-16 unit may be written so.
            character.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
        }
    }
    line + "\n"
}

fn object(vms: &[Vm]) -> Value {
    let vm = |vm: &Vm| {
        let findings: Vec<_> = vm.findings.iter().map(|finding| &finding.text).collect();
        json!({
            "name": vm.target.name,
            "socket": vm.target.socket.to_string_lossy(),
            "severity": vm.severity(),
            "findings": findings,
            "error": vm.answer.as_ref().err().map(ToString::to_string),
            "status": vm.answer.as_ref().ok(),
        })
    };
    json!({ "version": VERSION, "vms": vms.iter().map(vm).collect::<Vec<_>>() })
}

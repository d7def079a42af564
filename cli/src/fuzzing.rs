//! What the fuzz targets reach of the command: the code between the bytes of a peer, or the text of an operator or tenant,
//! and what becomes of them. It exists with `--cfg fuzzing` alone, which cargo-fuzz sets.

use std::path::{Path, PathBuf};

use crate::arguments::{one_line, parse_from};
use crate::kubevirt::folders::Folders;
use crate::kubevirt::hook;
use crate::serve::options;
use crate::status::ask::parse;
use crate::status::json_line;
use crate::status::row::Vm;
use crate::status::table::{Look, lines};
use crate::status::targets::Target;

pub use crate::serve::control::{cloud_hypervisor, messages};
pub use crate::serve::device::{Pauses, WatchdogDevice};

/// Parses the arguments of the command, or says in a line what is wrong with them.
///
/// # Errors
///
/// The line.
pub fn command_line(words: &[&str]) -> Result<(), String> {
    match parse_from(words) {
        Ok(_) => Ok(()),
        // Help, or the version.
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(one_line(&error)),
    }
}

/// The values of single options of `serve`, with what they mean in text.
pub fn option_values(text: &str) -> [(&'static str, Result<String, String>); 4] {
    [
        ("--socket-mode", options::parse_mode(text).map(|mode| format!("{:o}", mode.bits()))),
        ("--name", options::parse_name(text)),
        ("--dump-size", options::parse_size(text).map(|size| size.to_string())),
        ("--metrics", options::parse_address(text).map(|address| format!("{address:?}"))),
    ]
}

/// The domain and the arguments of the server that the hook of KubeVirt makes of a VM and its domain.
///
/// # Errors
///
/// The message of the hook.
pub fn kubevirt_hook(vmi: &str, domain: &str) -> Result<(String, Option<Vec<String>>), String> {
    let folder = |name: &str| Path::new("/var/run").join(name);
    let folders = Folders { shared: folder("shared"), launcher: folder("launcher"), private: folder("private") };
    let definition = hook::definition(vmi, domain, Some(&folders)).map_err(|error| error.to_string())?;
    Ok((definition.domain, definition.server))
}

/// What `vm-watchdog status` makes of an answer.
pub struct Screen {
    /// The lines of the table, and of the reasons below it.
    pub lines: Vec<String>,
    /// The line of `--json`.
    pub json: String,
    /// The status in the answer as `serve` writes it, if it is one.
    pub status: Option<String>,
}

/// Shows an answer to `GET /status`.
pub fn status_screen(answer: &[u8], width: Option<usize>, colour: bool) -> Screen {
    let answer = parse(answer);
    let status = answer.as_ref().ok().and_then(|status| serde_json::to_string(status).ok());
    let vms = [Vm::new(Target { name: "vm".into(), socket: PathBuf::from("/run/metrics") }, answer)];
    Screen { lines: lines(&vms, Look { width, colour }), json: json_line(&vms), status }
}

//! `onDefineDomain --vmi JSON --domain XML`: the hook that KubeVirt calls before it defines the domain of a VM.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::one_line;
use crate::exit;
use crate::kubevirt::edit::with_device;
use crate::kubevirt::error::HookError;
use crate::kubevirt::folders::Folders;
use crate::kubevirt::request::request;
use crate::kubevirt::settings::Settings;

/// The name by which sidecar-shim calls this program.
const NAME: &str = "onDefineDomain";

/// Adds a watchdog to the domain of a KubeVirt VM, as its annotations ask, and writes the new XML to standard output.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct HookArguments {
    /// The VirtualMachineInstance, as JSON
    #[arg(long = "vmi", value_name = "JSON", allow_hyphen_values = true)]
    vmi: String,

    /// The domain, as XML of libvirt
    #[arg(long = "domain", value_name = "XML", allow_hyphen_values = true)]
    domain: String,
}

/// What a hook answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The new XML.
    pub domain: String,
    /// The arguments of the server, if the VM asks for a watchdog.
    pub server: Option<Vec<String>>,
}

/// Whether this program was called as the hook.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()) == Some(OsStr::new(NAME))
}

/// Runs the hook. The status is 0 if there is a new domain, and the server for its watchdog listens.
pub fn run() -> ExitCode {
    let arguments = match HookArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            exit::report(&one_line(&error));
            return ExitCode::from(exit::USAGE);
        }
        Err(error) => {
            // It is no failure if help cannot be written, as to a closed pipe.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    match define(&arguments).and_then(|domain| write(&domain)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report(&error);
            ExitCode::FAILURE
        }
    }
}

fn define(arguments: &HookArguments) -> Result<String, HookError> {
    let folders = Folders::of_environment();
    let Definition { domain, server } = definition(&arguments.vmi, &arguments.domain, folders.as_ref())?;
    if let Some((folders, server)) = folders.zip(server) {
        request(&folders.requests(), &server).map_err(HookError::Server)?;
    }
    Ok(domain)
}

fn write(domain: &str) -> Result<(), HookError> {
    let mut output = io::stdout().lock();
    let written = output.write_all(domain.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| HookError::Server(format!("the new domain cannot be written: {error}")))
}

/// The domain with what the VM asks for, and the server for it.
pub fn definition(vmi: &str, domain: &str, folders: Option<&Folders>) -> Result<Definition, HookError> {
    let Some(settings) = Settings::of_vmi(vmi)? else {
        return Ok(Definition { domain: domain.to_owned(), server: None });
    };
    let outside = "it runs in a sidecar whose command is `vm-watchdog sidecar`, and this is none";
    let folders = folders.ok_or_else(|| HookError::Server(outside.to_owned()))?;
    let domain = with_device(domain, &folders.launcher)?;
    Ok(Definition { domain, server: Some(server(&settings, folders)) })
}

/// The arguments of the server.
fn server(settings: &Settings, folders: &Folders) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let Settings { watchdog, metrics, state } = settings.clone();
    let metrics = metrics.unwrap_or_else(|| format!("unix:{}", path(&folders.shared.join("metrics"))));
    let state = state.unwrap_or_else(|| path(&folders.private.join("state")));
    let options = [
        ("--socket", path(&folders.watchdog())),
        ("--watchdog", watchdog),
        ("--qmp", path(&folders.shared.join("qmp"))),
        ("--state", state),
        ("--metrics", metrics),
        ("--events", "json".to_owned()),
    ];
    let words = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    // QEMU is in another container, so the host does not tell which process it is.
    std::iter::once("serve".to_owned()).chain(words).chain(["--any-control-process".to_owned()]).collect()
}

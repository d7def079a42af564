//! `vm-watchdog check`: what a manifest says about the health of its VM, in plain words or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_manifest::{Dialect, Located, Manifest, ManifestError, Position, Problem, Watchdog};
use vm_watchdog_probes::{Handler, Probe, ProbeKind, Scheme};

use crate::exit::report;

/// Checks a manifest, and says what it means for the VM.
///
/// FILE is a manifest of KubeVirt (VirtualMachine or VirtualMachineInstance, as YAML or JSON), XML of libvirt (a domain, or
/// a watchdog alone), or text with the options of a QEMU.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArguments {
    /// The file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The VM, if the file has several
    #[arg(long = "vm", value_name = "[NAMESPACE/]NAME")]
    vm: Option<String>,

    /// Write one JSON object to standard output, also if the file has errors
    #[arg(long = "json")]
    json: bool,
}

/// Runs the command. The status is 0 if the file can be used, and 1 if it cannot.
pub fn run(arguments: &CheckArguments) -> ExitCode {
    let CheckArguments { file, vm, json } = arguments;
    let vm = vm.as_deref();
    let (name, manifest) = if file == Path::new("-") {
        let name = "standard input".to_owned();
        let manifest = Manifest::read(&name, io::stdin().lock(), vm);
        (name, manifest)
    } else {
        (file.display().to_string(), Manifest::open(file, vm))
    };
    let text = match &manifest {
        Ok(manifest) if *json => object(&name, manifest).to_string() + "\n",
        Ok(manifest) => {
            for warning in manifest.warnings.iter().chain(&unserved(manifest)) {
                report(&format!("{name}:{warning} (warning)"));
            }
            words(&name, manifest)
        }
        Err(error) if *json => errors(&name, error).to_string() + "\n",
        Err(error) => {
            error.to_string().lines().for_each(|line| report(&line));
            String::new()
        }
    };
    // It is no failure if the text cannot be written, as to a closed pipe.
    let _ = io::stdout().write_all(text.as_bytes());
    if manifest.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a manifest may have and `serve` does not.
fn unserved(manifest: &Manifest) -> Vec<Problem> {
    let is_other = |watchdog: &&Located<Watchdog>| watchdog.value.model != DeviceModel::I6300esb;
    let problem = |watchdog: &Located<Watchdog>| {
        let message = format!("vm-watchdog serve has no {}, only i6300esb", watchdog.value.model);
        watchdog.problem(message)
    };
    manifest.watchdogs.iter().filter(is_other).map(problem).collect()
}

/// The manifest in plain words.
fn words(file: &str, manifest: &Manifest) -> String {
    let mut text = format!("{file}: ");
    let name = match (&manifest.namespace, &manifest.name) {
        (Some(namespace), Some(name)) => format!(" {namespace}/{name}"),
        (None, Some(name)) => format!(" {name}"),
        (_, None) => String::new(),
    };
    let what = match manifest.dialect {
        Dialect::KubeVirt => "VM of KubeVirt",
        Dialect::Libvirt => "VM of libvirt",
        Dialect::Qemu => "VM of QEMU",
        _ => "VM",
    };
    let _ = writeln!(text, "{what}{name}");
    for watchdog in &manifest.watchdogs {
        let Watchdog { model, action, name, .. } = &watchdog.value;
        let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let line = watchdog.position.line;
        let _ = writeln!(
            text,
            "Watchdog{name} ({model}, line {line}): if the guest stops its heartbeats, {}.",
            done(*action)
        );
    }
    if manifest.watchdogs.is_empty() {
        text.push_str("Watchdog: none.\n");
    }
    if let Some(liveness) = &manifest.liveness {
        let grace = liveness
            .value
            .termination_grace_period_s
            .or_else(|| manifest.termination_grace_period_s.as_ref().map(|grace| grace.value));
        let stop = match grace.unwrap_or(Manifest::DEFAULT_TERMINATION_GRACE_PERIOD_S) {
            0 => "the VM is powered off at once".to_owned(),
            grace => format!("the guest is asked to shut down, and the VM is powered off {grace} s later"),
        };
        let _ = writeln!(text, "{}, {stop}.", probe_words(liveness, ProbeKind::Liveness));
    } else if manifest.dialect == Dialect::KubeVirt {
        text.push_str("Liveness: no probe.\n");
    }
    if let Some(readiness) = &manifest.readiness {
        let Probe { success_threshold, .. } = readiness.value;
        let again = times(success_threshold, "success", "successes");
        let _ = writeln!(
            text,
            "{}, the VM is not ready; after {again} it is.",
            probe_words(readiness, ProbeKind::Readiness)
        );
    } else if manifest.dialect == Dialect::KubeVirt {
        text.push_str("Readiness: no probe.\n");
    }
    text
}

fn done(action: Action) -> &'static str {
    match action {
        Action::Reset => "the VM is reset",
        Action::Shutdown => "the guest is asked to shut down",
        Action::Poweroff => "the VM is powered off",
        Action::Pause => "the VM is paused",
        Action::InjectNmi => "the guest gets a non-maskable interrupt",
        Action::Dump => "the memory of the guest is written to a file",
        _ => "that is reported, and nothing else happens",
    }
}

/// `Liveness (line 8): every 10 s, the first time 120 s after the VM has started, GET ... has to ... After 3 failures in a row`
fn probe_words(probe: &Located<Probe>, kind: ProbeKind) -> String {
    let Probe { handler, initial_delay_s, period_s, timeout_s, failure_threshold, .. } = &probe.value;
    let (name, line) = (if kind == ProbeKind::Liveness { "Liveness" } else { "Readiness" }, probe.position.line);
    let first = match initial_delay_s {
        0 => "as soon as the VM has started".to_owned(),
        seconds => format!("the first time {seconds} s after the VM has started"),
    };
    let failures = times(*failure_threshold, "failure", "failures");
    let attempt = attempt(handler);
    format!("{name} (line {line}): every {period_s} s, {first}, {attempt} within {timeout_s} s. After {failures}")
}

fn attempt(handler: &Handler) -> String {
    let host = |host: &Option<String>| host.clone().unwrap_or_else(|| "the guest".to_owned());
    match handler {
        Handler::HttpGet { scheme, host: name, port, path, headers } => {
            let slash = if path.starts_with('/') { "" } else { "/" };
            let with: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
            let with = if with.is_empty() { String::new() } else { format!(" with {}", with.join(", ")) };
            let unverified = if *scheme == Scheme::Https { ", whose certificate is not verified," } else { "" };
            let host = host(name);
            format!(
                "{scheme} GET {slash}{path}{with} from port {port} of {host}{unverified} has to have a status of 200 to 399"
            )
        }
        Handler::TcpSocket { host: name, port } => {
            format!("TCP port {port} of {} has to accept a connection", host(name))
        }
        Handler::Exec { command } => {
            format!("the command {} in the guest (by its QEMU guest agent) has to end with exit code 0", line(command))
        }
        Handler::GuestAgentPing => "the QEMU guest agent has to answer a ping".to_owned(),
        other => format!("{} has to pass", other.name()),
    }
}

/// A command, with quotes where an argument is not a plain word.
fn line(command: &[String]) -> String {
    let is_plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte))
    };
    let word = |word: &String| if is_plain(word) { word.clone() } else { format!("{word:?}") };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn times(count: u32, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many} in a row") }
}

/// The manifest as JSON.
fn object(file: &str, manifest: &Manifest) -> Value {
    let watchdog = |watchdog: &Located<Watchdog>| {
        let Watchdog { model, action, name, .. } = &watchdog.value;
        place(watchdog.position, json!({ "model": model.as_str(), "action": action.as_str(), "name": name }))
    };
    let warnings: Vec<_> = manifest.warnings.iter().chain(&unserved(manifest)).map(problem).collect();
    json!({
        "file": file,
        "dialect": manifest.dialect.as_str(),
        "name": manifest.name,
        "namespace": manifest.namespace,
        "watchdogs": manifest.watchdogs.iter().map(watchdog).collect::<Vec<_>>(),
        "liveness": manifest.liveness.as_ref().map(probe_object),
        "readiness": manifest.readiness.as_ref().map(probe_object),
        "termination_grace_period_s": manifest.termination_grace_period_s.as_ref().map(|grace| grace.value),
        "warnings": warnings,
        "errors": [],
    })
}

fn probe_object(probe: &Located<Probe>) -> Value {
    let handler = match &probe.value.handler {
        Handler::HttpGet { scheme, host, port, path, headers } => {
            let headers: Vec<_> = headers.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
            json!({ "scheme": scheme.as_str(), "host": host, "port": port, "path": path, "headers": headers })
        }
        Handler::TcpSocket { host, port } => json!({ "host": host, "port": port }),
        Handler::Exec { command } => json!({ "command": command }),
        _ => json!({}),
    };
    let Probe { initial_delay_s, period_s, timeout_s, failure_threshold, success_threshold, .. } = probe.value;
    let object = json!({
        probe.value.handler.name(): handler,
        "initial_delay_s": initial_delay_s,
        "period_s": period_s,
        "timeout_s": timeout_s,
        "failure_threshold": failure_threshold,
        "success_threshold": success_threshold,
        "termination_grace_period_s": probe.value.termination_grace_period_s,
    });
    place(probe.position, object)
}

fn errors(file: &str, error: &ManifestError) -> Value {
    let errors = match error {
        ManifestError::Invalid { problems, .. } => problems.iter().map(problem).collect(),
        ManifestError::Unreadable { source, .. } => vec![json!({ "message": source.to_string() })],
        other => vec![json!({ "message": other.to_string() })],
    };
    json!({ "file": file, "errors": errors })
}

fn problem(problem: &Problem) -> Value {
    place(problem.position(), json!({ "path": problem.path(), "message": problem.message() }))
}

/// The object with its line and column.
fn place(position: Position, mut object: Value) -> Value {
    object["line"] = position.line.into();
    object["column"] = position.column.into();
    object
}

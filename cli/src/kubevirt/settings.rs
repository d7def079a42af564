//! What the annotations of a VM ask for.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::de::IgnoredAny;
use vm_watchdog::{Action, ConfigError, WatchdogConfig};
use vm_watchdog_timeline::bounded;

use crate::kubevirt::MAX_LENGTH;
use crate::kubevirt::error::{HookError, quoted};

/// What the names of our annotations begin with.
const PREFIX: &str = "vm-watchdog/";
/// The annotation that asks for the device. Its value is the action on a timeout.
const DEVICE: &str = "i6300esb";
/// Options of `--watchdog` that are annotations. `id` is the name of the VM.
const OPTIONS: [&str; 7] = ["pretimeout", "before", "grace", "then", "action-interval", "action-burst", "interrupt"];
/// Annotations for other options of the server.
const METRICS: &str = "metrics";
const STATE: &str = "state";
/// The actions that a server in a sidecar can perform. A dump would need a folder that QEMU and the server see at the same path.
const ACTIONS: [Action; 6] =
    [Action::Reset, Action::Shutdown, Action::Poweroff, Action::Pause, Action::InjectNmi, Action::None];
/// The longest name of a VM, as in Kubernetes.
const MAX_NAME: usize = 253;

/// What a VM asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The value of `--watchdog`.
    pub watchdog: String,
    /// Where metrics are served by TCP, if they are.
    pub metrics: Option<String>,
    /// The state file, if it is not the one that ends with the sidecar.
    pub state: Option<String>,
}

/// The part of a VirtualMachineInstance that matters.
#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct Spec {
    domain: Option<Domain>,
}

#[derive(Deserialize)]
struct Domain {
    devices: Option<Devices>,
}

#[derive(Deserialize)]
struct Devices {
    watchdog: Option<Watchdog>,
}

#[derive(Deserialize)]
struct Watchdog {
    i6300esb: Option<IgnoredAny>,
}

impl Settings {
    /// Reads the JSON of a VirtualMachineInstance. `None` if it asks for nothing.
    ///
    /// # Errors
    ///
    /// The annotation that cannot be used, its value, and what is accepted.
    pub fn of_vmi(json: &str) -> Result<Option<Self>, HookError> {
        if json.len() > MAX_LENGTH {
            return Err(HookError::TooLong { argument: "vmi", length: json.len() });
        }
        let Instance { metadata, spec } =
            serde_json::from_str(json).map_err(|error| HookError::Vmi(bounded(&error)))?;
        let annotations: BTreeMap<&str, &str> =
            metadata.annotations.iter().flatten().filter_map(|(name, value)| ours(name, value)).collect();
        let Some(&first) = annotations.keys().next() else { return Ok(None) };
        let known = [&[DEVICE], &OPTIONS[..], &[METRICS, STATE]].concat();
        if let Some(name) = annotations.keys().find(|name| !known.contains(name)) {
            let message = format!("unknown: accepted are {PREFIX}{}", known.join(&format!(", {PREFIX}")));
            return Err(wrong(&bounded(name), message));
        }
        let Some(&action) = annotations.get(DEVICE) else {
            return Err(wrong(first, format!("needs the annotation {PREFIX}{DEVICE}, which is missing")));
        };
        let watchdog = spec.domain.and_then(|domain| domain.devices?.watchdog?.i6300esb);
        if watchdog.is_some() {
            let message =
                "the VM has an i6300esb of KubeVirt as well, in spec.domain.devices.watchdog: remove one of the two";
            return Err(wrong(DEVICE, message));
        }
        let name = metadata.name.as_deref().unwrap_or_default();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_name) {
            let message = "accepted are letters, digits, hyphens and dots";
            return Err(HookError::Vmi(format!("metadata.name: invalid value {}: {message}", quoted(name))));
        }
        let metrics = annotations.get(METRICS).map(|value| metrics(value)).transpose()?;
        let state = annotations.get(STATE).map(|value| state(value)).transpose()?;
        Ok(Some(Self { watchdog: watchdog_option(name, action, &annotations)?, metrics, state }))
    }
}

fn ours<'a>(name: &'a str, value: &'a str) -> Option<(&'a str, &'a str)> {
    Some((name.strip_prefix(PREFIX)?, value))
}

/// An annotation that cannot be used.
fn wrong(name: &str, message: impl Into<String>) -> HookError {
    HookError::Annotation { name: format!("{PREFIX}{name}"), message: message.into() }
}

fn invalid(name: &str, value: &str, accepted: &str) -> HookError {
    wrong(name, format!("invalid value {}: accepted are {accepted}", quoted(value)))
}

/// The value of `--watchdog`.
fn watchdog_option(name: &str, action: &str, annotations: &BTreeMap<&str, &str>) -> Result<String, HookError> {
    let mut text = format!("{DEVICE},action={}", checked_action(DEVICE, action)?);
    for option in OPTIONS {
        let Some(&value) = annotations.get(option) else { continue };
        let value = match option {
            "pretimeout" | "then" => checked_action(option, value)?.to_owned(),
            // No value can begin another option.
            _ => value.replace(|char: char| !char.is_ascii_alphanumeric() && char != '-', "?"),
        };
        text.push_str(&format!(",{option}={value}"));
    }
    match text.parse::<WatchdogConfig>() {
        Ok(_) => Ok(format!("{text},id={name}")),
        Err(ConfigError::Value { key, accepted, .. }) => {
            Err(invalid(key, annotations.get(key).copied().unwrap_or_default(), accepted))
        }
        Err(ConfigError::Incomplete { given, missing }) => {
            Err(wrong(given, format!("needs the annotation {PREFIX}{missing}, which is missing")))
        }
        Err(error) => Err(wrong(DEVICE, bounded(&error))),
    }
}

fn checked_action(name: &str, value: &str) -> Result<&'static str, HookError> {
    let names = ACTIONS.map(Action::as_str);
    names.into_iter().find(|action| *action == value).ok_or_else(|| invalid(name, value, &names.join(", ")))
}

/// A port is one of all addresses of the pod.
fn metrics(value: &str) -> Result<String, HookError> {
    let port = value.parse::<u16>().ok().map(|port| SocketAddr::from(([0, 0, 0, 0], port)));
    let address = port.or_else(|| value.parse().ok()).filter(|address| address.port() != 0);
    let address =
        address.ok_or_else(|| invalid(METRICS, value, "a port like 9560, and an address with one, [::]:9560"))?;
    Ok(address.to_string())
}

fn state(value: &str) -> Result<String, HookError> {
    let is_path = value.starts_with('/') && !value.ends_with('/') && !value.contains(|char: char| char.is_control());
    if !is_path {
        return Err(invalid(STATE, value, "absolute paths of a file, like /var/lib/vm-watchdog/state"));
    }
    Ok(value.to_owned())
}

//! The watchdog of a VM: `watchdog: {name: NAME, MODEL: {action: ACTION}}`.

use vm_watchdog::{Action, DeviceModel};

use crate::actions::{MODEL_NAMES, MODELS, action};
use crate::manifest::{Located, Watchdog};
use crate::problem::plain;
use crate::reader::{Fields, Others, Reader, Value};

const ACTIONS: [Action; 3] = [Action::Poweroff, Action::Reset, Action::Shutdown];

/// Reads the watchdog of a VM with this architecture.
pub fn read(
    reader: &mut Reader<'_, '_>,
    device: &Value,
    architecture: Option<&(String, Value)>,
) -> Option<Located<Watchdog>> {
    let fields = reader.fields(device, &["name", MODEL_NAMES[0], MODEL_NAMES[1]], Others::Ignored)?;
    let name = match fields.get("name") {
        Some(name) => reader.name(name),
        None => {
            reader.report.error(fields.position, &fields.path("name"), "missing: KubeVirt wants a name");
            None
        }
    };
    let mut watchdogs = MODELS.into_iter().filter_map(|model| Some((model, fields.get(model.as_str())?)));
    let (model, settings) = match (watchdogs.next(), watchdogs.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => {
            reader.error(device, format!("{}: accepted is exactly one model", MODEL_NAMES.join(" and ")));
            return None;
        }
        (None, _) => {
            no_model(reader, &fields);
            return None;
        }
    };
    let settings = reader.fields(settings, &["action"], Others::Warned)?;
    let action = match settings.get("action") {
        None => Action::default(),
        Some(value) => {
            // KubeVirt takes empty text as absent.
            let name = reader.line(value)?;
            let action = if name.is_empty() { Ok(Action::default()) } else { action(&name, &ACTIONS) };
            action.map_err(|message| reader.error(value, message)).ok()?
        }
    };
    if let Some((architecture, value)) = architecture {
        check_architecture(reader, model, architecture, value);
    }
    Some(Located::new(Watchdog::new(model, action, name), device.position(), device.path.as_str()))
}

fn no_model(reader: &mut Reader<'_, '_>, fields: &Fields) {
    let accepted = MODEL_NAMES.join(", ");
    if let Some((model, position)) = fields.nulls.iter().find(|(name, _)| MODEL_NAMES.contains(name)) {
        let message = format!("has no value, which means no watchdog: write {model}: {{}}");
        reader.report.error(*position, &fields.path(model), message);
    } else if let Some((name, position)) = fields.unknown.first() {
        let message = format!("unknown watchdog model: accepted are {accepted}");
        reader.report.error(*position, &fields.path(name), message);
    } else if !fields.has_reported {
        reader.report.error(fields.position, &fields.path, format!("no model: accepted are {accepted}"));
    }
}

/// Which processors a model exists for. KubeVirt has no i6300esb on arm64; QEMU and this project have.
fn check_architecture(reader: &mut Reader<'_, '_>, model: DeviceModel, architecture: &str, value: &Value) {
    let accepted: &[&str] = match model {
        DeviceModel::Diag288 => &["s390x"],
        _ => &["amd64", "arm64"],
    };
    if accepted.contains(&architecture) {
        return;
    }
    let architecture = plain(architecture, b"");
    let message = format!("{model} does not exist on {architecture}: accepted are {}", accepted.join(", "));
    reader.error(value, message);
}

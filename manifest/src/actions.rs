//! Names of models and actions, as each dialect accepts them.

use vm_watchdog::{Action, DeviceModel};

use crate::near::{hint, is_placeholder};
use crate::problem::quoted;

/// The models that manifests know, in the order in which messages list them.
pub const MODELS: [DeviceModel; 2] = [DeviceModel::I6300esb, DeviceModel::Diag288];
/// Their names.
pub const MODEL_NAMES: [&str; 2] = [MODELS[0].as_str(), MODELS[1].as_str()];

/// The action of this name, if the dialect accepts it.
pub fn action(name: &str, accepted: &[Action]) -> Result<Action, String> {
    let known = accepted.iter().copied().find(|action| action.as_str() == name);
    known.ok_or_else(|| {
        let names: Vec<_> = accepted.iter().map(|action| action.as_str()).collect();
        if is_placeholder(name) {
            return format!("{} is a placeholder: accepted are {}", quoted(name), names.join(", "));
        }
        format!("unknown watchdog action {}: {}", quoted(name), hint(name, &names))
    })
}

/// The model of this name.
pub fn model(name: &str) -> Result<DeviceModel, String> {
    let known = MODELS.into_iter().find(|model| model.as_str() == name);
    known.ok_or_else(|| {
        if is_placeholder(name) {
            return format!("{} is a placeholder: accepted are {}", quoted(name), MODEL_NAMES.join(", "));
        }
        format!("unknown watchdog model {}: {}", quoted(name), hint(name, &MODEL_NAMES))
    })
}

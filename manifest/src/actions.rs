//! Names of models and actions, as each dialect accepts them.

use vm_watchdog::{Action, DeviceModel};

use crate::near::{hint, is_placeholder};
use crate::problem::quoted;

/// The names of the models, in the order in which messages list them.
pub const MODELS: [&str; 2] = [DeviceModel::I6300esb.as_str(), DeviceModel::Diag288.as_str()];

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
    let known = DeviceModel::ALL.into_iter().find(|model| model.as_str() == name);
    known.ok_or_else(|| {
        if is_placeholder(name) {
            return format!("{} is a placeholder: accepted are {}", quoted(name), MODELS.join(", "));
        }
        format!("unknown watchdog model {}: {}", quoted(name), hint(name, &MODELS))
    })
}

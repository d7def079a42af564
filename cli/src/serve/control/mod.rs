//! Backends that perform the actions of a watchdog. They run on the watchdog's own thread, each with a timeout.

pub mod cloud_hypervisor;
pub mod connect;
pub mod exec;
pub mod qmp;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_watchdog::{Event, HandlerError};

use crate::serve::control::cloud_hypervisor::CloudHypervisor;
use crate::serve::control::exec::Commands;
use crate::serve::control::qmp::Qmp;

/// The backend that performs the actions of a watchdog.
pub enum Control {
    /// No backend: the watchdog only reports.
    None,
    /// QEMU, and the folder for its dumps.
    Qmp { qmp: Arc<Qmp>, dump_folder: Option<PathBuf> },
    /// Cloud Hypervisor.
    CloudHypervisor(CloudHypervisor),
    /// A command of the operator.
    Exec { command: String, commands: Arc<Commands> },
}

impl Control {
    /// Performs `event.action`.
    ///
    /// # Errors
    ///
    /// Why the action was not performed.
    pub fn perform(&self, event: &Event, socket: &Path) -> Result<(), HandlerError> {
        match self {
            Self::None => Err("no backend can perform it".into()),
            Self::Qmp { qmp, dump_folder } => qmp.perform(event, dump_folder.as_deref()),
            Self::CloudHypervisor(api) => api.perform(event.action),
            Self::Exec { command, commands } => commands.run(command, event, socket),
        }
    }

    /// Its name in the timeline.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Qmp { .. } => "QMP",
            Self::CloudHypervisor(_) => "Cloud Hypervisor",
            Self::Exec { .. } => "command",
        }
    }
}

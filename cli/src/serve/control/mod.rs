//! Backends that perform the actions of a watchdog. They run on the watchdog's own thread, each with a timeout.

pub mod cloud_hypervisor;
pub mod connect;
pub mod dumps;
pub mod exec;
pub mod messages;
pub mod qmp;
pub mod remap;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vm_watchdog::{Event, HandlerError};

use crate::serve::control::cloud_hypervisor::CloudHypervisor;
use crate::serve::control::dumps::Dumps;
use crate::serve::control::exec::Exec;
use crate::serve::control::qmp::Qmp;
use crate::serve::helper::Helper;
use crate::serve::helper::messages::Subject;
use crate::serve::options::ControlOptions;
use crate::serve::peer::{Owner, Peer};

/// The backend that performs the actions of a VM's watchdogs.
pub enum Control {
    /// No backend: the watchdogs only report.
    None,
    /// QEMU.
    Qmp(Arc<Qmp>),
    /// Cloud Hypervisor.
    CloudHypervisor(CloudHypervisor),
    /// A command of the operator. QMP, if there is one, only reports the events of the VM.
    Exec { exec: Exec, qmp: Option<Arc<Qmp>> },
}

impl Control {
    /// The backend that the options name. Starts the process that runs a command for one of `watchdogs`.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start that.
    pub fn new(options: ControlOptions, watchdogs: Vec<Subject>) -> io::Result<Self> {
        Ok(match options {
            ControlOptions::None => Self::None,
            ControlOptions::Qmp { path, dumps } => Self::Qmp(Qmp::new(path, dumps.map(Dumps::new))),
            ControlOptions::CloudHypervisor { path, poweroff } => {
                Self::CloudHypervisor(CloudHypervisor::new(path, poweroff))
            }
            ControlOptions::Exec { command, qmp } => {
                let exec = Exec::spawn(&command, watchdogs)?;
                Self::Exec { exec, qmp: qmp.map(|path| Qmp::new(path, None)) }
            }
        })
    }

    /// The process that runs commands, if there is one.
    pub fn helper(&self) -> Option<&Arc<Helper>> {
        match self {
            Self::Exec { exec, .. } => Some(&exec.helper),
            Self::None | Self::Qmp(_) | Self::CloudHypervisor(_) => None,
        }
    }

    /// The QMP connection, if there is one.
    pub fn qmp(&self) -> Option<&Arc<Qmp>> {
        match self {
            Self::Qmp(qmp) => Some(qmp),
            Self::Exec { qmp, .. } => qmp.as_ref(),
            Self::None | Self::CloudHypervisor(_) => None,
        }
    }

    /// The control socket in words, and the process behind it if it can be connected. May wait for the file system of a
    /// Cloud Hypervisor's socket.
    pub fn process(&self) -> Option<(String, Arc<Peer>)> {
        match self {
            Self::CloudHypervisor(api) => api.process(),
            control => control.qmp()?.process(),
        }
    }

    /// Performs `event.action`. The control socket has to belong to `owner`.
    ///
    /// # Errors
    ///
    /// Why the action was not performed.
    pub fn perform(&self, event: &Event, socket: &Path, owner: &Owner) -> Result<(), HandlerError> {
        match self {
            Self::None => Err("no backend can perform it".into()),
            Self::Qmp(qmp) => qmp.perform(event, owner),
            Self::CloudHypervisor(api) => api.perform(event.action, owner),
            Self::Exec { exec, .. } => exec.perform(event, socket),
        }
    }

    /// How long one action may take before it fails.
    pub fn action_limit(&self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            // A dump takes four commands.
            Self::Qmp(_) => 4 * (qmp::ANSWER_TIMEOUT + connect::WRITE_TIMEOUT),
            Self::CloudHypervisor(_) => cloud_hypervisor::ANSWER_TIMEOUT + connect::WRITE_TIMEOUT,
            Self::Exec { .. } => exec::COMMAND_TIMEOUT,
        }
    }

    /// Its name in the timeline.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Qmp(_) => "QMP",
            Self::CloudHypervisor(_) => "Cloud Hypervisor",
            Self::Exec { .. } => "command",
        }
    }
}

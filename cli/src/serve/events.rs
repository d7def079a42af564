//! The entries of the server's timeline.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use vm_watchdog::{Action, HandlerError};
use vm_watchdog_timeline::{GuestExpiry, Kind, LogLine, TimelineEntry};
use vm_watchdog_vfio_user::CloseReason;

use crate::serve::control::messages::VmEvent;

/// The timeline of one watchdog.
pub type Timeline = vm_watchdog_timeline::Timeline<Entry>;

/// Something that happened to the watchdog `id`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub id: String,
    #[serde(flatten)]
    pub event: ServerEvent,
}

/// What happened. The JSON form is the serialization; its field `event` is the name in kebab case.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ServerEvent {
    /// What the server can no longer do.
    Sandbox {
        /// on, or none where there is no filter of system calls for the architecture.
        seccomp: &'static str,
        /// full, partial or none, as far as the kernel has it.
        landlock: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        landlock_abi: Option<i32>,
        #[serde(rename = "root")]
        is_root: bool,
    },
    /// The socket listens.
    Listening { socket: String, actions: &'static str },
    /// Metrics are served at this address and port.
    Metrics { address: String },
    /// A VMM has connected: the watchdog was powered on.
    Connected,
    /// The VMM has disconnected: the watchdog is disarmed.
    Disconnected { reason: CloseReason },
    /// A second VMM was refused.
    Refused,
    /// The guest has started its watchdog.
    Armed,
    /// The guest has stopped it, or a reset has.
    Disarmed,
    /// The guest has fed a watchdog that a reset had disarmed: it is armed again.
    Rearmed,
    /// QEMU had restored the guest without the address of its watchdog, which is put back.
    Remapped,
    /// The guest believes that its watchdog protects it, and a reset has disarmed it.
    Unprotected { reason: String },
    /// A stage of the watchdog has expired.
    Expiry(GuestExpiry),
    /// Its action was performed.
    Performed { action: Action },
    /// Its action failed.
    ActionFailed { action: Action, reason: String },
    /// The action is delayed until this time of the VM, because the rate of the actions is used up.
    ActionDelayed { action: Action, until_ns: u64 },
    /// So many actions were left out since the last entry like this.
    ActionSuppressed { actions: u64 },
    /// The result of a probe has changed.
    Probe { result: &'static str, reason: String },
    /// An attempt of a probe has failed, could not be made, or has succeeded with a remark.
    Attempt { outcome: &'static str, message: String },
    /// Restarts of the VM do not help: the next one is delayed.
    BackOff { seconds: u64 },
    /// The control socket of the VM is connected, or no longer.
    Control { socket: String, connected: bool, reason: Option<String> },
    /// The control socket is not that of the VMM: no action is sent to it, and its events do not count.
    ForeignControl { socket: String, reason: String },
    /// The VM is paused, and with it the clock of its watchdogs.
    Paused,
    /// The VM is resumed.
    Resumed,
    /// The VM reports an event.
    Vm { name: &'static str, reason: Option<String> },
    /// A saved state was found.
    Restored { wdt_timeout: bool, was_armed: bool },
    /// A log line of the watchdog library or of the server.
    Log(LogLine),
    /// So many events before this one could not be written.
    Lost { events: u64 },
    /// The socket is closed.
    Stopped,
}

impl ServerEvent {
    /// The outcome of an action.
    pub fn of_outcome(action: Action, outcome: &Result<(), HandlerError>) -> Self {
        match outcome {
            Ok(()) => Self::Performed { action },
            Err(error) => Self::ActionFailed { action, reason: error.to_string() },
        }
    }

    /// What the timeline has of an event of the VM.
    pub fn of_vm(event: VmEvent) -> Option<Self> {
        match event {
            VmEvent::Runs(true) => Some(Self::Resumed),
            VmEvent::Runs(false) => Some(Self::Paused),
            VmEvent::Reset { reason } => Some(Self::Vm { name: "reset", reason }),
            VmEvent::Powerdown => Some(Self::Vm { name: "powerdown", reason: None }),
            VmEvent::Shutdown { reason } => Some(Self::Vm { name: "shutdown", reason }),
            VmEvent::Control { socket, connected, reason } => Some(Self::Control { socket, connected, reason }),
            VmEvent::Client { .. } | VmEvent::DumpEnded { .. } => None,
        }
    }
}

impl Entry {
    /// An entry of the server itself.
    pub fn of_server(event: ServerEvent) -> Self {
        Self { id: "server".to_owned(), event }
    }
}

/// A log line of the server.
impl From<LogLine> for Entry {
    fn from(line: LogLine) -> Self {
        Self::of_server(ServerEvent::Log(line))
    }
}

impl TimelineEntry for Entry {
    fn kind(&self) -> Option<Kind> {
        match self.event {
            ServerEvent::Armed
            | ServerEvent::Disarmed
            | ServerEvent::Rearmed
            | ServerEvent::Remapped
            | ServerEvent::Unprotected { .. } => Some(Kind::Feeding),
            ServerEvent::Expiry(_) => Some(Kind::Expiry),
            ServerEvent::Performed { .. }
            | ServerEvent::ActionFailed { .. }
            | ServerEvent::ActionDelayed { .. }
            | ServerEvent::ActionSuppressed { .. } => Some(Kind::Action),
            ServerEvent::Sandbox { .. }
            | ServerEvent::Listening { .. }
            | ServerEvent::Metrics { .. }
            | ServerEvent::Restored { .. }
            | ServerEvent::Probe { .. }
            | ServerEvent::BackOff { .. }
            | ServerEvent::Lost { .. }
            | ServerEvent::Stopped => None,
            ServerEvent::Connected
            | ServerEvent::Disconnected { .. }
            | ServerEvent::Refused
            | ServerEvent::Attempt { .. }
            | ServerEvent::Control { .. }
            | ServerEvent::ForeignControl { .. }
            | ServerEvent::Paused
            | ServerEvent::Resumed
            | ServerEvent::Vm { .. }
            | ServerEvent::Log(_) => Some(Kind::Remark),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |reason: &Option<String>| reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        write!(f, "{}: ", self.id)?;
        match &self.event {
            ServerEvent::Sandbox { seccomp, landlock, landlock_abi, is_root } => {
                write!(f, "sandbox: system calls {seccomp}, Landlock {landlock}")?;
                if let Some(abi) = landlock_abi {
                    write!(f, " (the kernel has ABI {abi})")?;
                }
                f.write_str(if *is_root { ", as root" } else { "" })
            }
            ServerEvent::Listening { socket, actions } => write!(f, "listening on {socket}, actions by {actions}"),
            ServerEvent::Metrics { address } => write!(f, "metrics at {address}"),
            ServerEvent::Connected => f.write_str("a VMM has connected"),
            ServerEvent::Disconnected { reason } => write!(f, "{reason}"),
            ServerEvent::Refused => f.write_str("a second VMM was refused"),
            ServerEvent::Armed => f.write_str("armed"),
            ServerEvent::Disarmed => f.write_str("disarmed"),
            ServerEvent::Rearmed => f.write_str("armed again, because the guest does not know that it was reset"),
            ServerEvent::Remapped => f.write_str("QEMU had lost its address, which is put back"),
            ServerEvent::Unprotected { reason } => {
                write!(f, "the guest is not protected, and does not know it: {reason}")
            }
            ServerEvent::Expiry(expiry) => write!(f, "{expiry}"),
            ServerEvent::Performed { action } => write!(f, "{action} done"),
            ServerEvent::ActionFailed { action, reason } => write!(f, "{action} failed: {reason}"),
            ServerEvent::ActionDelayed { action, until_ns } => {
                let until = Duration::from_nanos(*until_ns).as_secs_f64();
                write!(f, "{action} delayed until {until:.3} s by the rate of the actions")
            }
            ServerEvent::ActionSuppressed { actions } => {
                write!(f, "{actions} actions left out")
            }
            ServerEvent::Probe { result, reason } => write!(f, "{result}: {reason}"),
            ServerEvent::Attempt { outcome, message } => write!(f, "{outcome}: {message}"),
            ServerEvent::BackOff { seconds } => {
                write!(f, "the action is due in {seconds} s, because restarts did not help")
            }
            ServerEvent::Control { socket, connected: true, .. } => write!(f, "{socket} connected"),
            ServerEvent::Control { socket, connected: false, reason } => {
                write!(f, "{socket} not connected{}", because(reason))
            }
            ServerEvent::ForeignControl { socket, reason } => write!(f, "{socket} is not that of the VMM: {reason}"),
            ServerEvent::Paused => f.write_str("the VM is paused"),
            ServerEvent::Resumed => f.write_str("the VM is resumed"),
            ServerEvent::Vm { name, reason } => write!(f, "the VM reports {name}{}", because(reason)),
            ServerEvent::Restored { wdt_timeout, was_armed } => {
                f.write_str("saved state found")?;
                if *wdt_timeout {
                    f.write_str("; the last reset came from the watchdog")?;
                }
                if *was_armed {
                    f.write_str("; it was armed then, and is disarmed until a VM connects and arms it or feeds it")?;
                }
                Ok(())
            }
            ServerEvent::Log(line) => write!(f, "{line}"),
            ServerEvent::Lost { events } => write!(f, "{events} events could not be written"),
            ServerEvent::Stopped => f.write_str("no longer listening"),
        }
    }
}

//! Actions of a watchdog, with the names that libvirt, QEMU and KubeVirt use.

use std::fmt;
use std::str::FromStr;

use vm_watchdog_devices::{AfterTimeout, Request};

/// Action of the VMM on a timeout or pretimeout.
///
/// The names are those of libvirt's `<watchdog action=>`, QEMU's `-action watchdog=` and KubeVirt's watchdog spec.
/// The library does not perform actions: it passes them to the VMM's [`ActionHandler`](crate::ActionHandler).
///
/// ```
/// use vm_watchdog::Action;
///
/// assert_eq!("inject-nmi".parse(), Ok(Action::InjectNmi));
/// assert_eq!(Action::Poweroff.to_string(), "poweroff");
/// let error = "reboot".parse::<Action>().unwrap_err();
/// assert!(error.to_string().contains("accepted are reset, shutdown,"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Action {
    /// Reset the platform immediately, as a reset button does.
    #[default]
    Reset,
    /// Ask the guest to shut down, as a power button does.
    Shutdown,
    /// End the VM immediately, as a loss of power does.
    Poweroff,
    /// Stop the VM's processors and clock, so that an operator can examine it.
    Pause,
    /// Inject a non-maskable interrupt; guests write a crash dump or a backtrace.
    InjectNmi,
    /// Write the guest's memory to a file; the guest continues.
    Dump,
    /// Only report the event.
    None,
    /// Write a line to the log; the guest continues.
    Debug,
}

impl Action {
    /// Every action, in the order in which messages list them.
    pub const ALL: [Self; 8] = [
        Self::Reset,
        Self::Shutdown,
        Self::Poweroff,
        Self::Pause,
        Self::InjectNmi,
        Self::Dump,
        Self::None,
        Self::Debug,
    ];

    /// The action's name in libvirt, QEMU and KubeVirt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Shutdown => "shutdown",
            Self::Poweroff => "poweroff",
            Self::Pause => "pause",
            Self::InjectNmi => "inject-nmi",
            Self::Dump => "dump",
            Self::None => "none",
            Self::Debug => "debug",
        }
    }

    /// Whether the guest continues after this action, so that a later heartbeat means that it has recovered.
    pub const fn leaves_guest_running(self) -> bool {
        match self {
            Self::Reset | Self::Shutdown | Self::Poweroff => false,
            Self::Pause | Self::InjectNmi | Self::Dump | Self::None | Self::Debug => true,
        }
    }

    /// [`AfterTimeout`] of a watchdog with this action: an action that affects the guest disarms it.
    pub(crate) const fn after_timeout(self) -> AfterTimeout {
        match self {
            Self::Reset | Self::Shutdown | Self::Poweroff | Self::InjectNmi => AfterTimeout::Disarmed,
            Self::Pause | Self::Dump | Self::None | Self::Debug => AfterTimeout::Armed,
        }
    }
}

/// The action for a guest's request. A restart is an NMI: on s390x an NMI restarts the operating system.
impl From<Request> for Action {
    fn from(request: Request) -> Self {
        match request {
            Request::Restart => Self::InjectNmi,
            Request::Reset => Self::Reset,
            Request::Poweroff => Self::Poweroff,
            Request::Pause => Self::Pause,
            Request::Dump => Self::Dump,
            Request::Nothing => Self::None,
            // Requests that a newer model adds become the default action.
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(name: &str) -> Result<Self, UnknownAction> {
        let action = Self::ALL.into_iter().find(|action| action.as_str() == name);
        action.ok_or_else(|| UnknownAction(name.to_owned()))
    }
}

/// Error: the name is not an [`Action`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown watchdog action {0:?}: accepted are {names}", names = Action::ALL.map(Action::as_str).join(", "))]
pub struct UnknownAction(pub String);

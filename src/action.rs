//! What a VMM can be asked to do, under the names that operators know.

use std::fmt;
use std::str::FromStr;

use vm_watchdog_devices::{AfterTimeout, Request};

/// What the VMM does when a watchdog fires.
///
/// The names are those of libvirt's `<watchdog action=>`, QEMU's `-action watchdog=` and KubeVirt's watchdog spec.
/// The library performs none of these itself: it hands the action to the VMM's [`ActionHandler`](crate::ActionHandler).
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
    /// Reset the platform at once, as its reset button would.
    #[default]
    Reset,
    /// Ask the guest to shut down, as its power button would.
    Shutdown,
    /// End the VM at once, as pulling the plug would.
    Poweroff,
    /// Stop the VM's processors and clock, for an operator to examine it.
    Pause,
    /// Inject a non-maskable interrupt, which guests answer with a crash dump or a backtrace.
    InjectNmi,
    /// Write the guest's memory to a file, and go on.
    Dump,
    /// Do nothing to the guest; the event is still reported.
    None,
    /// Write a line to the log, and go on.
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

    /// The name that libvirt, QEMU and KubeVirt give it.
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

    /// Whether the guest goes on by design after this action, so that a later heartbeat means that it has recovered.
    pub const fn leaves_guest_running(self) -> bool {
        match self {
            Self::Reset | Self::Shutdown | Self::Poweroff => false,
            Self::Pause | Self::InjectNmi | Self::Dump | Self::None | Self::Debug => true,
        }
    }

    /// What a watchdog that tells the guest of its timeout is after this action: disarmed if the action reaches the guest.
    pub(crate) const fn after_timeout(self) -> AfterTimeout {
        match self {
            Self::Reset | Self::Shutdown | Self::Poweroff | Self::InjectNmi => AfterTimeout::Disarmed,
            Self::Pause | Self::Dump | Self::None | Self::Debug => AfterTimeout::Armed,
        }
    }
}

/// What a guest asks for, where its device lets it. A restart is an NMI: on s390x that is what an NMI does.
impl From<Request> for Action {
    fn from(request: Request) -> Self {
        match request {
            Request::Restart => Self::InjectNmi,
            Request::Reset => Self::Reset,
            Request::Poweroff => Self::Poweroff,
            Request::Pause => Self::Pause,
            Request::Dump => Self::Dump,
            Request::Nothing => Self::None,
            // A request of a newer model is what the action's default is for.
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

/// A name that is no [`Action`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown watchdog action {0:?}: accepted are {names}", names = Action::ALL.map(Action::as_str).join(", "))]
pub struct UnknownAction(pub String);

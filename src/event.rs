//! The callback: what a VMM is told when a watchdog fires.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::action::Action;

/// The error of an [`ActionHandler`].
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// The VMM's side of a watchdog: performs the actions. Implemented for closures.
///
/// The library calls it from the thread that runs [`Watchdog::on_readable`](crate::Watchdog::on_readable), one call at
/// a time for a watchdog, never while the VM is paused, and with no lock held: it may call anything of the watchdog
/// and of its clock, [`reset`](crate::Watchdog::reset) and [`pause`](crate::VmClock::pause) included.
///
/// A slow handler delays later events of its own watchdog, and of every watchdog served by the same event loop. One
/// with a [thread of its own](crate::Watchdog::spawn) delays no other.
///
/// The library logs after the handler has been called, with no lock held, so a slow logger delays neither the action
/// nor a pause. It does hold the thread that logs: the one that serves the timer, until which returns the next event
/// waits, and a vCPU's after an access that could not set the interrupt line or read the run delay.
///
/// Where panics abort (`panic = "abort"`), a panic of a handler, an interrupt line or a run-delay reader ends the VMM's
/// process: it is neither counted nor logged, and no retry and no escalation follow.
///
/// ```
/// use vm_watchdog::{ActionHandler, Event, HandlerError};
///
/// let (to_vmm, actions) = std::sync::mpsc::channel();
/// let handler = move |event: &Event| -> Result<(), HandlerError> { Ok(to_vmm.send(event.action)?) };
/// # fn takes(_: impl ActionHandler) {} takes(handler); drop(actions);
/// ```
pub trait ActionHandler: Send + Sync {
    /// Performs `event.action`, or starts to.
    ///
    /// # Errors
    ///
    /// An error, or a panic, means that the action was not performed. It is counted and logged, and the same event
    /// comes again after 100 ms, with [`attempt`](Event::attempt) one higher and the pause doubled each time up to
    /// 10 s. After [`MAX_ATTEMPTS`] the policy's escalation takes its place; without one the retries go on. A heartbeat
    /// of the guest ends the retries: it has recovered without the action. The event is then over, a new timeout is a
    /// new event, and a VMM that wants the guest reset all the same has to do it itself.
    fn perform(&self, event: &Event) -> Result<(), HandlerError>;

    /// Takes note of a timeout or an escalation whose action is `none`: there is nothing to perform.
    ///
    /// Does nothing by default. Called as [`perform`](Self::perform) is.
    fn note(&self, _event: &Event) {}

    /// Takes note of a timeout whose action the policy's [rate](crate::ActionRate) delays until this instant of the VM's
    /// clock, or until the policy permits it earlier. [`perform`](Self::perform) follows then, with
    /// [`delayed`](Event::delayed) set, unless a reset or an acknowledgement drops the action. Timeouts that come until
    /// then are covered by it, and not told.
    ///
    /// Does nothing by default. Called as [`perform`](Self::perform) is.
    fn delayed(&self, _event: &Event, _until: VmInstant) {}

    /// Takes note of a pretimeout whose action the policy's [rate](crate::ActionRate) suppresses.
    ///
    /// Does nothing by default. Called as [`perform`](Self::perform) is.
    fn suppressed(&self, _event: &Event) {}
}

/// How often an action is tried before the policy's escalation takes its place.
pub const MAX_ATTEMPTS: u32 = 5;

impl<F> ActionHandler for F
where
    F: Fn(&Event) -> Result<(), HandlerError> + Send + Sync,
{
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        self(event)
    }
}

/// A watchdog fired.
///
/// ```
/// use vm_watchdog::Event;
///
/// fn log(event: &Event) {
///     println!("{}: {} asks for {}, {:?} late", event.id, event.stage, event.action, event.lateness());
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The id that the VMM gave the watchdog.
    pub id: Arc<str>,
    /// What happened.
    pub stage: Stage,
    /// What the policy asks for.
    pub action: Action,
    /// When it happened, or was due, on the VM's clock.
    pub deadline: VmInstant,
    /// When the library saw that, on the VM's clock; never before `deadline`. A retry has the instant of its own call.
    pub observed: VmInstant,
    /// When the guest last fed the watchdog, as known when the event is reported.
    pub last_heartbeat: Option<VmInstant>,
    /// 1 at first, one more each time the handler failed.
    pub attempt: u32,
    /// Whether the policy's rate has delayed the action, and the handler was [told](ActionHandler::delayed); false for a retry.
    pub delayed: bool,
}

impl Event {
    /// How long after its deadline the event is reported.
    pub fn lateness(&self) -> Duration {
        self.observed.saturating_duration_since(self.deadline)
    }
}

/// The point of a watchdog's life at which an event comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Stage {
    /// The first stage of a two-stage watchdog is over, and the timeout is
    /// [near](crate::Policy::with_pretimeout_before).
    Pretimeout,
    /// The watchdog timed out.
    Timeout,
    /// The VM is still there after the timeout's action and the grace period, or that action could not be done.
    Escalation,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pretimeout => "pretimeout",
            Self::Timeout => "timeout",
            Self::Escalation => "escalation",
        })
    }
}

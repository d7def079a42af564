//! What every watchdog model answers, whatever its registers look like.

use crate::{StateError, VmInstant};

/// A watchdog without a clock: a state machine that is told the time.
///
/// A runtime needs two answers of a model, *when must you be polled?* ([`poll_at`](Self::poll_at)) and, when polled,
/// *what expired?* ([`poll`](Self::poll)). An expiry that has happened stays latched in the model until it is polled
/// or the platform resets, whatever the guest does in between, so none is lost between a late timer and an early
/// guest. Instants given to a model must not run backwards; one that does is taken for the latest one seen.
///
/// A runtime calls a model under its lock, so a model must not block, and must not call the runtime.
pub trait Model: Sized {
    /// The saved state: plain data, times that remain instead of instants.
    type State: Send + Sync + 'static;

    /// The next instant at which [`poll`](Self::poll) has something to do, or None while the watchdog is stopped.
    ///
    /// It has something to report then too, unless the guest has disabled the device's output.
    /// An instant in the past means that an expiry is waiting to be polled.
    fn poll_at(&self) -> Option<VmInstant>;

    /// When the watchdog times out if the guest does nothing, or None while nothing counts towards that.
    fn timeout_at(&self) -> Option<VmInstant> {
        self.poll_at()
    }

    /// Lets time pass up to `now` and takes what has expired since the last poll.
    fn poll(&mut self, now: VmInstant) -> Expired;

    /// What the guest asked for about the timeout that was last polled, if the device lets a guest ask.
    fn timeout_request(&self) -> Option<Request> {
        None
    }

    /// The level of the interrupt line, true while the device asserts it.
    fn interrupt_level(&self) -> bool {
        false
    }

    /// Whether the guest has the watchdog running, or expired and not yet disabled.
    fn is_armed(&self) -> bool;

    /// Says what the timeout leads to, before a guest sees the device and whenever that changes. Ignored by models to
    /// which it means nothing.
    fn set_after_timeout(&mut self, _after: AfterTimeout) {}

    /// The platform resets: everything pending is cancelled, only what hardware keeps across a reset stays.
    fn reset(&mut self);

    /// The whole state at `now`. A device [restored](Self::restored) from it cannot be told from this one.
    fn save(&mut self, now: VmInstant) -> Self::State;

    /// A device that was made like this one and is in `state` at `now`.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the first field that holds what no device can be in.
    fn restored(&self, state: &Self::State, now: VmInstant) -> Result<Self, StateError>;
}

/// What a watchdog is after its timeout, in the eyes of a guest that is still there to look.
///
/// Some watchdogs disarm themselves when they are about to end the guest, and stay armed when the host only takes note.
/// The model cannot know which of the two its host will do, and must know at the very instant of the timeout, because
/// the guest's next access may come before the host's action. So the host, which knows its policy, tells it beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterTimeout {
    /// Armed still: the guest goes on as if nothing had happened, and a heartbeat restarts the watchdog.
    #[default]
    Armed,
    /// Disarmed: the guest learns of the timeout, and has to arm the watchdog anew if it survives.
    Disarmed,
}

/// What a guest wants to happen at the timeout of its watchdog, where the device lets it say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Request {
    /// Interrupt the operating system, for it to restart, or to dump itself.
    Restart,
    /// Reset the platform.
    Reset,
    /// End the VM.
    Poweroff,
    /// Stop the VM.
    Pause,
    /// Write the guest's memory to a file.
    Dump,
    /// Nothing.
    Nothing,
}

/// What [`Model::poll`] found expired. Each field holds the exact instant of the expiry, however late the poll.
///
/// ```
/// use vm_watchdog_devices::{Expired, VmInstant};
///
/// let nothing = Expired::default();
/// assert!(nothing.is_empty());
/// let timeout = Expired::new(None, Some(VmInstant::from_nanos(7)));
/// assert!(!timeout.is_empty());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expired {
    /// The first stage of a two-stage watchdog ended at this instant.
    pub pretimeout: Option<VmInstant>,
    /// The watchdog timed out at this instant. Where several timeouts came since the last poll, the first of them.
    pub timeout: Option<VmInstant>,
}

impl Expired {
    /// What expired, and when.
    pub const fn new(pretimeout: Option<VmInstant>, timeout: Option<VmInstant>) -> Self {
        Self { pretimeout, timeout }
    }

    /// Whether nothing expired.
    pub const fn is_empty(&self) -> bool {
        self.pretimeout.is_none() && self.timeout.is_none()
    }
}

/// What a guest's access did, for statistics. An access never fails: what hardware ignores is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Access {
    /// Nothing: outside the registers, read-only, locked, or not unlocked.
    Ignored,
    /// A register was read or written.
    Accepted,
    /// The guest proved that it lives: a running (or expired) watchdog was restarted.
    Heartbeat,
}

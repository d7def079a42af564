//! The interface that every watchdog model implements.

use core::time::Duration;

use crate::{MsiMessage, StateError, VmInstant};

/// A watchdog without a clock: a state machine that takes the time as an argument.
///
/// A runtime asks a model when to poll it ([`poll_at`](Self::poll_at)), and polls it for what has expired
/// ([`poll`](Self::poll)). An expiry stays latched in the model until the runtime polls or the platform resets, so that
/// no guest access between the expiry and a late poll can discard it. The instants passed to a model must not decrease;
/// an earlier instant is replaced by the latest one seen.
///
/// The runtime calls a model with its lock held, so a model must not block and must not call the runtime.
pub trait Model: Sized {
    /// The saved state: plain data, with durations instead of instants.
    type State: Send + Sync + 'static;

    /// The next instant at which [`poll`](Self::poll) has something to do, or `None` while the watchdog is stopped.
    ///
    /// A poll at this instant reports an expiry, unless the guest has disabled the device's output.
    /// An instant in the past means that an expiry is latched and not yet polled.
    fn poll_at(&self) -> Option<VmInstant>;

    /// The next instant at which something shows outside the device without an access. It is later than
    /// [`poll_at`](Self::poll_at) if a first stage ends before, and that raises no interrupt.
    ///
    /// A runtime that does nothing at the end of a first stage need not wake before this.
    fn next_effect_at(&self) -> Option<VmInstant> {
        self.poll_at()
    }

    /// When the watchdog times out unless the guest sends a heartbeat; `None` while no counter runs.
    fn timeout_at(&self) -> Option<VmInstant> {
        self.poll_at()
    }

    /// Advances to `now` and returns what has expired since the last poll.
    fn poll(&mut self, now: VmInstant) -> Expired;

    /// The guest's request for the timeout that was polled last, if the device supports requests.
    fn timeout_request(&self) -> Option<Request> {
        None
    }

    /// The level of the interrupt line: true while the device asserts it.
    fn interrupt_level(&self) -> bool {
        false
    }

    /// The interrupt message that is due, for a device with MSI.
    ///
    /// It is due from the beginning of an interrupt until the host [takes](Self::take_message) it, or the guest clears
    /// the interrupt. An interrupt has one message.
    fn message(&self) -> Option<MsiMessage> {
        None
    }

    /// The host sends the [message](Self::message) that is due.
    fn take_message(&mut self) {}

    /// The host could not send the message that it has taken: it is due again, unless the guest has cleared the interrupt.
    fn put_back_message(&mut self) {}

    /// Whether the guest may be the one from before the last reset, and not know of it: it has neither armed nor disarmed
    /// the watchdog since. False for models whose guests notice that the watchdog is disarmed.
    fn guest_may_predate_reset(&self) -> bool {
        false
    }

    /// The timeout of the watchdog that [`rearm`](Self::rearm) would arm; `None` if it would not.
    fn rearm_timeout(&self) -> Option<Duration> {
        None
    }

    /// Arms the watchdog as it was before the last reset, with a full period from `now`, for a guest [from before
    /// it](Self::guest_may_predate_reset). False if the watchdog was not armed before the reset; then nothing has changed.
    fn rearm(&mut self, _now: VmInstant) -> bool {
        false
    }

    /// Whether the guest has enabled the watchdog. An expired watchdog stays armed, except as [`AfterTimeout`] says.
    fn is_armed(&self) -> bool;

    /// Sets what the timeout does to the device. The host calls this before a guest accesses the device, and on every
    /// change of its policy, which holds for a timeout whose action is still pending too. Models with only one behaviour
    /// ignore it.
    fn set_after_timeout(&mut self, _after: AfterTimeout) {}

    /// What a reset keeps: whether the watchdog has timed out since the guest last cleared that, or armed it anew.
    fn last_reset(&self) -> LastReset {
        LastReset::default()
    }

    /// Takes over what the device before this one kept, for a platform whose devices are made anew at a reset. Models
    /// without anything to keep ignore it.
    fn set_last_reset(&mut self, _last: LastReset) {}

    /// Resets the device: volatile registers and pending expiries are cleared.
    fn reset(&mut self);

    /// Returns the whole state at `now`. A device [restored](Self::restored) from it behaves as this one does.
    fn save(&mut self, now: VmInstant) -> Self::State;

    /// Returns a device with the configuration of this one that is in `state` at `now`.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the first field with a value that no device can reach.
    fn restored(&self, state: &Self::State, now: VmInstant) -> Result<Self, StateError>;
}

/// Whether a watchdog is armed after its timeout, as the guest sees it.
///
/// Some watchdogs disarm themselves if the action ends the guest, and stay armed if the guest continues. The guest may
/// access the device before the host performs the action, so the model needs the answer at the timeout itself. The
/// model does not know the host's policy; the host sets the answer in advance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterTimeout {
    /// Still armed: the guest does not notice the timeout, and a heartbeat restarts the watchdog.
    #[default]
    Armed,
    /// Disarmed: a guest that survives the timeout notices it, and must arm the watchdog again.
    Disarmed,
}

/// What a watchdog knows of the last reset of its platform, and what outlives the device.
///
/// ```
/// use vm_watchdog_devices::i6300esb::I6300esb;
/// use vm_watchdog_devices::{LastReset, Model};
///
/// // A platform that makes its devices anew at a reset passes the cause from the old device to the new one.
/// let mut new = I6300esb::new(Default::default());
/// new.set_last_reset(LastReset::new(true));
/// assert!(new.timed_out());
/// assert!(new.last_reset().by_watchdog);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct LastReset {
    /// The watchdog timed out before it. With an i6300esb the guest reads this as WDT_TIMEOUT (Linux: `bootstatus` 32).
    pub by_watchdog: bool,
}

impl LastReset {
    /// With a watchdog that timed out before the reset, or one that did not.
    pub const fn new(by_watchdog: bool) -> Self {
        Self { by_watchdog }
    }
}

/// A guest's request for the action at the timeout, with devices that support requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Request {
    /// Interrupt the operating system, which then restarts or writes a dump.
    Restart,
    /// Reset the platform.
    Reset,
    /// End the VM.
    Poweroff,
    /// Stop the VM.
    Pause,
    /// Write the guest's memory to a file.
    Dump,
    /// Take no action.
    Nothing,
}

/// Result of [`Model::poll`]: the exact instant of each expiry, even if the poll is late.
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
    /// The watchdog timed out at this instant. After several timeouts since the last poll: the first of them.
    pub timeout: Option<VmInstant>,
}

impl Expired {
    /// The given expiries.
    pub const fn new(pretimeout: Option<VmInstant>, timeout: Option<VmInstant>) -> Self {
        Self { pretimeout, timeout }
    }

    /// Whether nothing expired.
    pub const fn is_empty(&self) -> bool {
        self.pretimeout.is_none() && self.timeout.is_none()
    }
}

/// Effect of a guest access, for statistics. An access never fails: the model ignores what the hardware ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Access {
    /// No effect: outside the registers, read-only, locked, or without the unlock sequence.
    Ignored,
    /// A register was read or written.
    Accepted,
    /// A heartbeat of a watchdog that is not armed. It has no effect.
    HeartbeatWhileDisarmed,
    /// A heartbeat: the guest restarted a running or expired watchdog.
    Heartbeat,
}

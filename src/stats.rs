//! What a watchdog has counted.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

/// Counters of one watchdog since it was built, as of one instant. They never wrap.
///
/// ```
/// # use vm_watchdog::{Policy, VmClock, Watchdog, Event};
/// # use vm_watchdog::i6300esb::I6300esb;
/// # let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// let stats = watchdog.stats();
/// if let Some(last) = stats.last_heartbeat {
///     println!("{} heartbeats, the last {:?} ago", stats.heartbeats, stats.now.saturating_duration_since(last));
/// }
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// The VM's time when the counters were read.
    pub now: VmInstant,
    /// Whether the guest has the watchdog running, or expired and not disabled.
    pub armed: bool,
    /// How long until the timeout if the guest does nothing; None while nothing counts.
    pub time_left: Option<Duration>,
    /// Reloads of a running or expired watchdog.
    pub heartbeats: u64,
    /// When the last of them came, on the VM's clock.
    pub last_heartbeat: Option<VmInstant>,
    /// Heartbeats that came while the watchdog was disarmed, and had no effect. Drivers send some before they arm it.
    pub heartbeats_while_disarmed: u64,
    /// Whether the guest believes that it is protected, and is not: since the last reset it has fed the disarmed watchdog at
    /// least three times over at least a second of the VM's time, and has neither armed nor disarmed it.
    ///
    /// A VMM sees this if it resets the device, or makes a new one, although its guest runs on: after a snapshot or a
    /// migration that has left out the [state](crate::Watchdog::save) of the watchdog.
    pub unprotected: bool,
    /// How often a guest was found [unprotected](Self::unprotected).
    pub found_unprotected: u64,
    /// How often the watchdog was armed again for a guest that would have been, see
    /// [`rearm_after_reset`](crate::WatchdogBuilder::rearm_after_reset).
    pub rearmed: u64,
    /// First stages that ended.
    pub pretimeouts: u64,
    /// Timeouts that went out. Several within one millisecond count once.
    pub expiries: u64,
    /// Accesses that hardware ignores: out of range, read-only, locked, not unlocked.
    pub ignored_accesses: u64,
    /// Actions that the handler has performed.
    pub actions: u64,
    /// Calls of the handler that failed.
    pub action_failures: u64,
    /// Actions of timeouts that the policy's [rate](crate::ActionRate) has delayed.
    pub delayed_actions: u64,
    /// Actions that were left out: of pretimeouts beyond the policy's [rate](crate::ActionRate), of timeouts that came before
    /// the handler was called with an earlier one (which covers both), and delayed ones that a reset or an acknowledgement
    /// has dropped.
    pub suppressed_actions: u64,
    /// Changes of the interrupt line, and interrupt messages, that failed.
    pub interrupt_failures: u64,
    /// How long the guest was starved and not charged for it.
    pub starved: Duration,
    /// Readings of the run delay that failed.
    pub run_delay_failures: u64,
    /// How often the serving thread was woken: by the timer, and by a guest that armed the watchdog or moved its deadline
    /// nearer.
    pub wakes: u64,
}

/// Adds one, and stays at the top.
#[inline]
pub(crate) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

//! How long restarts are delayed when they do not help.

use std::time::Duration;

/// The delay of the second restart in a row.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(5 * 60);
/// A VM that has run for this long was restarted with success.
const FORGET_AFTER: Duration = Duration::from_secs(10 * 60);

/// The delays of restarts as kubelet has them for containers: none for the first restart, then 10 s, doubled each time
/// up to 5 minutes. A VM that has run for 10 minutes starts over.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog_probes::RestartBackOff;
///
/// let mut back_off = RestartBackOff::new();
/// let ran = Duration::from_secs(40);
/// let delays: Vec<u64> = (0..8).map(|_| back_off.next_delay(ran).as_secs()).collect();
/// assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
/// assert_eq!(back_off.next_delay(Duration::from_secs(600)), Duration::ZERO);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartBackOff {
    next: Duration,
}

impl RestartBackOff {
    /// The back-off of a VM that has not been restarted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait before this restart. `ran` is how long the VM has run since it started or was reset, on its own
    /// clock; time in which it was paused does not count.
    pub fn next_delay(&mut self, ran: Duration) -> Duration {
        let delay = if ran >= FORGET_AFTER { Duration::ZERO } else { self.next };
        self.next = (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        delay
    }
}

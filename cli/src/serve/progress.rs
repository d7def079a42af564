//! Whether the threads that protect the guest make progress, for the watchdog of the service manager.
//!
//! Three things count: the thread of a socket serves its client, the thread of a watchdog completes its actions, and it
//! acts on a timeout, as does the thread that acts on liveness failures. The other threads do not count. A restart of the
//! server disarms the guest's watchdog, which is worse than what they do: the lines of events, the metrics and the state
//! file may wait for a slow reader or disk, QMP may be silent for ever, a probe ends in its own time, and the threads that
//! close descriptors and signal interrupts are there to be blocked by a client. An action that needs one of them fails in
//! its own time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_watchdog::Stats;

/// How long the thread of a socket may be busy, how much longer than its limit an action may take, and how late a timeout
/// may be acted on: much longer than on a busy host, and than a write to a slow disk before an action.
const PATIENCE: Duration = Duration::from_secs(10);

/// The progress of one watchdog.
#[derive(Debug, Default)]
pub struct Progress {
    /// The thread of its socket, from one poll() to the next.
    pub serving: Work,
    /// The thread of the watchdog, in an action.
    pub acting: Work,
    due: Mutex<Option<Due>>,
    /// Whether it made no progress when it was asked last.
    is_stalled: AtomicBool,
}

/// Work that a thread does from time to time.
#[derive(Debug, Default)]
pub struct Work {
    since: Mutex<Option<Instant>>,
}

/// Ends the work when it is dropped.
#[must_use]
pub struct AtWork<'a>(&'a Work);

/// A timeout that was found to be due.
#[derive(Clone, Copy, Debug)]
struct Due {
    since: Instant,
    /// How often the thread of the watchdog had woken then.
    wakes: u64,
}

/// What makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The thread of the socket has been busy for so long.
    Serving(Duration),
    /// An action has taken so long.
    Acting(Duration),
    /// A timeout has been due for so long.
    Due(Duration),
}

impl Progress {
    /// Whether the threads of the watchdog `id` make progress. Reports when they no longer do. An action may take up to
    /// `action_limit`. `stats` are those of the watchdog.
    pub fn is_made(&self, id: &str, action_limit: Duration, is_paused: bool, stats: &Stats) -> bool {
        let stall = self.stall(Instant::now(), action_limit, is_paused, stats);
        let was_stalled = self.is_stalled.swap(stall.is_some(), Ordering::Relaxed);
        if let Some(stall) = stall.filter(|_| !was_stalled) {
            log::error!("watchdog {id}: {stall}, so the watchdog of the service manager is not notified");
        }
        stall.is_none()
    }

    fn stall(&self, now: Instant, action_limit: Duration, is_paused: bool, stats: &Stats) -> Option<Stall> {
        let acting = self.acting.duration(now);
        let due = self.due(now, !is_paused && acting.is_none() && stats.time_left == Some(Duration::ZERO), stats.wakes);
        let serving = self.serving.duration(now).filter(|busy| *busy > PATIENCE).map(Stall::Serving);
        let acting = acting.filter(|busy| *busy > action_limit.saturating_add(PATIENCE)).map(Stall::Acting);
        serving.or(acting).or(due.filter(|late| *late > PATIENCE).map(Stall::Due))
    }

    /// How long a timeout has been due, while the thread that acts on it has not woken. Not counted in an action: the next
    /// timeout waits for that.
    fn due(&self, now: Instant, is_due: bool, wakes: u64) -> Option<Duration> {
        let mut due = lock(&self.due);
        let before = due.filter(|due| due.wakes == wakes).unwrap_or(Due { since: now, wakes });
        *due = is_due.then_some(before);
        due.map(|due| now.saturating_duration_since(due.since))
    }
}

impl Work {
    /// The thread is busy until the value is dropped.
    pub fn begin(&self, now: Instant) -> AtWork<'_> {
        *lock(&self.since) = Some(now);
        AtWork(self)
    }

    fn duration(&self, now: Instant) -> Option<Duration> {
        lock(&self.since).map(|since| now.saturating_duration_since(since))
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *lock(&self.0.since) = None;
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving(busy) => write!(f, "the thread of its socket has been busy for {busy:.0?}"),
            Self::Acting(busy) => write!(f, "its action has taken {busy:.0?}"),
            Self::Due(late) => write!(f, "its timeout has been due for {late:.0?}"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: Duration = Duration::from_secs(30);

    /// A watchdog whose timeout is due, or not.
    fn stats(is_due: bool, wakes: u64) -> Stats {
        let mut stats = Stats::default();
        stats.time_left = Some(if is_due { Duration::ZERO } else { Duration::from_secs(1) });
        stats.wakes = wakes;
        stats
    }

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_thread_may_be_busy_for_ten_seconds_and_idle_for_ever() {
        let (progress, start) = (Progress::default(), Instant::now());
        let stall = |at| progress.stall(seconds(start, at), ACTION, false, &stats(false, 0));
        assert_eq!(stall(1_000_000), None);
        let busy = progress.serving.begin(start);
        assert_eq!(stall(10), None);
        assert_eq!(stall(11), Some(Stall::Serving(Duration::from_secs(11))));
        drop(busy);
        assert_eq!(stall(12), None);
    }

    #[test]
    fn an_action_may_take_its_limit_and_ten_seconds() {
        let (progress, start) = (Progress::default(), Instant::now());
        // The timeout after it, which waits for it, is due.
        let stall = |at| progress.stall(seconds(start, at), ACTION, false, &stats(true, 1));
        let action = progress.acting.begin(start);
        assert_eq!(stall(0), None);
        assert_eq!(stall(40), None);
        assert_eq!(stall(41), Some(Stall::Acting(Duration::from_secs(41))));
        drop(action);
        assert_eq!(stall(42), None);
    }

    #[test]
    fn a_timeout_may_be_due_for_ten_seconds_while_its_thread_does_not_wake() {
        let (progress, start) = (Progress::default(), Instant::now());
        let stall = |at, is_paused, stats| progress.stall(seconds(start, at), ACTION, is_paused, &stats);
        assert_eq!(stall(0, false, stats(true, 1)), None);
        assert_eq!(stall(10, false, stats(true, 1)), None);
        assert_eq!(stall(11, false, stats(true, 1)), Some(Stall::Due(Duration::from_secs(11))));
        // The thread has acted, and the guest has let it time out again.
        assert_eq!(stall(12, false, stats(true, 2)), None);
        assert_eq!(stall(23, false, stats(true, 2)), Some(Stall::Due(Duration::from_secs(11))));
        // Nothing is due for a paused VM, and the wait begins anew after the pause.
        assert_eq!(stall(24, true, stats(true, 2)), None);
        assert_eq!(stall(25, false, stats(true, 2)), None);
        assert_eq!(stall(35, false, stats(true, 2)), None);
        assert_eq!(stall(36, false, stats(false, 2)), None);
    }
}

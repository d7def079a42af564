//! Patience with a guest that wanted to run and could not.
//!
//! On a host with too much to do a healthy guest misses its deadline, and a reset helps nobody. With this policy the
//! watchdog's time advances by wall time less the time for which the guest's vCPU threads stood runnable in the host's
//! queue. A vCPU that spins, or is halted with interrupts off, has no such delay: it is bitten as ever.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::VmInstant;

/// How many times the timeout passes before a starved guest is bitten all the same, unless the VMM says otherwise.
pub const DEFAULT_PATIENCE: u32 = 4;

/// The least time between two readings, so that a guest with a fast timer does not keep the host reading.
const READING_INTERVAL: Duration = Duration::from_millis(100);

/// Tells how long each vCPU of a VM was kept from running.
///
/// It is asked when a deadline comes, never for a heartbeat, at most ten times a second, and with no lock held.
/// [`ThreadRunDelay`] asks Linux; a VMM that knows better implements its own.
pub trait RunDelay: Send + Sync {
    /// For each vCPU, always in the same order, how long it has wanted to run and could not, since it was made.
    ///
    /// # Errors
    ///
    /// An error is counted and logged, and the guest gets no allowance this time.
    fn run_delays(&self) -> io::Result<Vec<Duration>>;
}

/// The run delay of threads as Linux accounts it: the second field of `/proc/<pid>/task/<tid>/schedstat`.
///
/// It needs no privilege. Each vCPU thread registers itself; one that ends is forgotten.
///
/// ```
/// use vm_watchdog::{DEFAULT_PATIENCE, Event, RunDelay, ThreadRunDelay, Watchdog, i6300esb::I6300esb};
///
/// let run_delay = ThreadRunDelay::new();
/// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default()))
///     .starvation(run_delay.clone(), DEFAULT_PATIENCE)
///     .build(|_: &Event| Ok(()))?;
/// let vcpu = std::thread::spawn(move || {
///     run_delay.register_current_thread()?;
///     // ... the vCPU runs ...
///     run_delay.run_delays()
/// });
/// assert_eq!(vcpu.join().unwrap()?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ThreadRunDelay {
    threads: Arc<Mutex<Vec<Thread>>>,
}

impl ThreadRunDelay {
    /// The delay of no thread yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the thread that calls this.
    ///
    /// # Errors
    ///
    /// The host's error if `/proc` is not there or keeps no schedstat.
    pub fn register_current_thread(&self) -> io::Result<()> {
        // The link names the thread by numbers, which go on to mean it when another thread reads.
        let folder = Path::new("/proc").join(fs::read_link("/proc/thread-self")?);
        let thread = Thread { last: Schedstat::read(&folder)?, folder, since: Instant::now() };
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}

impl RunDelay for ThreadRunDelay {
    fn run_delays(&self) -> io::Result<Vec<Duration>> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| thread.folder.exists());
        threads.iter_mut().map(Thread::run_delay).collect()
    }
}

#[derive(Debug)]
struct Thread {
    /// `/proc/<pid>/task/<tid>`
    folder: PathBuf,
    /// What was read last, and since when it has been the same.
    last: Schedstat,
    since: Instant,
}

impl Thread {
    /// The delay so far. Linux accounts a wait when it is over, so one that goes on is added by what is known of it: the
    /// thread is runnable and has not run since it was read before.
    fn run_delay(&mut self) -> io::Result<Duration> {
        let schedstat = Schedstat::read(&self.folder)?;
        if schedstat != self.last || !is_runnable(&self.folder)? {
            (self.last, self.since) = (schedstat, Instant::now());
        }
        Ok(schedstat.run_delay + self.since.elapsed())
    }
}

/// The three numbers of a `schedstat` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedstat {
    processor_time: Duration,
    run_delay: Duration,
    timeslices: u64,
}

impl Schedstat {
    fn read(folder: &Path) -> io::Result<Self> {
        let path = folder.join("schedstat");
        let text = fs::read_to_string(&path)?;
        let numbers: Vec<u64> = text.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
        match numbers[..] {
            [processor_time, run_delay, timeslices] => Ok(Self {
                processor_time: Duration::from_nanos(processor_time),
                run_delay: Duration::from_nanos(run_delay),
                timeslices,
            }),
            _ => {
                let reason = format!("{}: {text:?} are not the three numbers of a schedstat", path.display());
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            }
        }
    }
}

/// Whether the state in `stat`, which follows the name in parentheses, is R.
fn is_runnable(folder: &Path) -> io::Result<bool> {
    let stat = fs::read_to_string(folder.join("stat"))?;
    Ok(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('R')))
}

/// How far a watchdog's time lies behind its VM's, for the guest was starved.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// By how much in all.
    pub total: Duration,
    /// By how much of that since the guest last started or fed the watchdog.
    since_restart: Duration,
    restarted_at: VmInstant,
    /// The latest instant that the model was given: time does not go back behind it.
    seen: VmInstant,
    last_delays: Vec<Duration>,
    next_reading: Option<VmInstant>,
}

impl Allowance {
    /// Notes that the model is told that it is `now`.
    pub fn see(&mut self, now: VmInstant) {
        self.seen = self.seen.max(now);
    }

    /// Notes that the guest started or fed the watchdog.
    pub fn restart(&mut self, now: VmInstant) {
        self.since_restart = Duration::ZERO;
        self.restarted_at = now;
    }

    /// Whether a reading may be taken at `vm_now`, the VM's own time.
    pub fn is_due(&self, vm_now: VmInstant) -> bool {
        self.next_reading.is_none_or(|next| vm_now >= next)
    }

    /// Takes a reading into account and gives what it adds to the allowance.
    ///
    /// The least delayed vCPU counts. The allowance is no more than the time since the model last looked, and the
    /// whole wait for `timeout_at` no more than `patience` times what it was meant to be.
    pub fn grant(&mut self, delays: Vec<Duration>, vm_now: VmInstant, timeout_at: VmInstant, patience: u32) {
        self.next_reading = Some(vm_now + READING_INTERVAL);
        let starved = least_growth(&self.last_delays, &delays);
        self.last_delays = delays;

        let unseen = (vm_now - self.total).saturating_duration_since(self.seen);
        let timeout = timeout_at.saturating_duration_since(self.restarted_at);
        let most = timeout.saturating_mul(patience.saturating_sub(1)).saturating_sub(self.since_restart);
        let granted = starved.min(unseen).min(most);
        self.total += granted;
        self.since_restart += granted;
    }
}

/// By how much the least delayed vCPU's delay has grown; nothing if a vCPU has come or gone.
fn least_growth(before: &[Duration], after: &[Duration]) -> Duration {
    if before.len() != after.len() {
        return Duration::ZERO;
    }
    let growth = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before));
    growth.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> VmInstant {
        VmInstant::ZERO + SECOND * seconds
    }

    /// A watchdog fed at 10 s, for a deadline at 14 s, with delays of `before` read before that.
    fn fed_at_ten(before: &[u32]) -> Allowance {
        let mut allowance = Allowance::default();
        allowance.grant(seconds(before), at(9), at(14), 4);
        allowance.see(at(10));
        allowance.restart(at(10));
        allowance
    }

    fn seconds(delays: &[u32]) -> Vec<Duration> {
        delays.iter().map(|&delay| SECOND * delay).collect()
    }

    #[test]
    fn the_least_delayed_vcpu_counts() {
        for (before, after, granted) in [(&[5, 5], &[8, 6], 1), (&[5, 5], &[8, 5], 0), (&[1, 9], &[3, 12], 2)] {
            let mut allowance = fed_at_ten(before);
            allowance.grant(seconds(after), at(14), at(14), 4);
            assert_eq!(allowance.total, SECOND * granted);
        }
    }

    #[test]
    fn a_vcpu_that_comes_or_goes_has_no_delay_to_compare() {
        let mut allowance = fed_at_ten(&[]);
        allowance.grant(seconds(&[7]), at(14), at(14), 4);
        assert_eq!(allowance.total, Duration::ZERO);
        allowance.grant(seconds(&[]), at(15), at(14), 4);
        assert_eq!(allowance.total, Duration::ZERO);
    }

    #[test]
    fn time_does_not_go_back_behind_what_the_device_has_seen() {
        let mut allowance = fed_at_ten(&[0]);
        allowance.see(at(13));
        allowance.grant(seconds(&[4]), at(14), at(14), 4);
        assert_eq!(allowance.total, SECOND);
    }

    #[test]
    fn patience_ends_at_its_multiple_of_the_timeout() {
        let mut allowance = fed_at_ten(&[0]);
        for second in 14..200 {
            allowance.grant(seconds(&[second]), at(second), at(14), 4);
        }
        // 4 s of the guest's own time, and three times that for which it was starved.
        assert_eq!(allowance.total, SECOND * 12);
        allowance.restart(at(100));
        allowance.grant(seconds(&[300]), at(300), at(104), 4);
        assert_eq!(allowance.total, SECOND * 24);
    }

    #[test]
    fn readings_are_few() {
        let allowance = fed_at_ten(&[0]);
        assert!(!allowance.is_due(at(9) + READING_INTERVAL / 2));
        assert!(allowance.is_due(at(9) + READING_INTERVAL));
    }
}

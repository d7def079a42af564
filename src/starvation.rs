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

/// What a thread is credited with that waits for nobody knows how long: enough for another reading, which knows.
const BENEFIT_OF_DOUBT: Duration = Duration::from_millis(1);

/// Tells how long each vCPU of a VM was kept from running.
///
/// It is asked when the guest starts the watchdog and when a deadline comes, never for a heartbeat, at most ten times a
/// second, and with no lock held. [`ThreadRunDelay`] asks Linux; a VMM that knows better implements its own.
pub trait RunDelay: Send + Sync {
    /// For each vCPU, always in the same order, how long it has wanted to run and could not, since it was made.
    ///
    /// # Errors
    ///
    /// An error is counted and logged, and the guest gets no allowance this time.
    fn run_delays(&self) -> io::Result<Vec<Duration>>;
}

/// The run delay of threads by Linux's account: the second field of `/proc/<pid>/task/<tid>/schedstat`, and beside it
/// the wait that goes on, which Linux adds when it is over.
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
        let thread = Thread { wait: Wait::since(Reading::take(&folder)?), folder };
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}

impl RunDelay for ThreadRunDelay {
    fn run_delays(&self) -> io::Result<Vec<Duration>> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| thread.folder.exists());
        threads.iter_mut().map(|thread| Ok(thread.wait.run_delay(Reading::take(&thread.folder)?))).collect()
    }
}

#[derive(Debug)]
struct Thread {
    /// `/proc/<pid>/task/<tid>`
    folder: PathBuf,
    wait: Wait,
}

/// What is known of the wait that goes on.
#[derive(Debug)]
struct Wait {
    last: Reading,
    /// How much of it was reported, which Linux accounts for when it is over.
    ahead: Duration,
}

impl Wait {
    fn since(reading: Reading) -> Self {
        Self { last: reading, ahead: Duration::ZERO }
    }

    /// The delay up to this reading.
    ///
    /// A thread that was runnable before, is runnable now, and has not slept in between has waited whenever it has not
    /// run. Of one that has slept, nobody knows when it woke.
    fn run_delay(&mut self, now: Reading) -> Duration {
        let before = std::mem::replace(&mut self.last, now);
        self.ahead = if now.is_runnable && before.is_runnable && now.sleeps == before.sleeps {
            let ran = now.ran.saturating_sub(before.ran);
            let accounted = now.delayed.saturating_sub(before.delayed);
            (self.ahead + now.at.duration_since(before.at)).saturating_sub(ran + accounted)
        } else if now.is_runnable {
            BENEFIT_OF_DOUBT
        } else {
            Duration::ZERO
        };
        now.delayed + self.ahead
    }
}

/// What Linux says of a thread.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    /// It runs or waits for a processor.
    is_runnable: bool,
    /// How often it has gone to sleep.
    sleeps: u64,
    /// For how long it ran.
    ran: Duration,
    /// For how long it waited for a processor, without the wait that goes on.
    delayed: Duration,
}

impl Reading {
    fn take(folder: &Path) -> io::Result<Self> {
        let status = FileOf::read(folder.join("status"))?;
        let schedstat = FileOf::read(folder.join("schedstat"))?;
        let mut times = schedstat.text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let mut time = || times.next().map(Duration::from_nanos).ok_or_else(|| schedstat.lacks("two times"));
        Ok(Self {
            at: Instant::now(),
            is_runnable: status.field("State:")?.starts_with('R'),
            sleeps: status.field("voluntary_ctxt_switches:")?.parse().map_err(|_| status.lacks("a count of sleeps"))?,
            ran: time()?,
            delayed: time()?,
        })
    }
}

/// A file of Linux's about a thread.
struct FileOf {
    path: PathBuf,
    text: String,
}

impl FileOf {
    fn read(path: PathBuf) -> io::Result<Self> {
        Ok(Self { text: fs::read_to_string(&path)?, path })
    }

    /// What follows a name at the beginning of a line.
    fn field(&self, name: &str) -> io::Result<&str> {
        let value = self.text.lines().find_map(|line| line.strip_prefix(name));
        value.map(str::trim).ok_or_else(|| self.lacks(name))
    }

    fn lacks(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: no {what} in {:?}", self.path.display(), self.text))
    }
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
    /// When the last reading was begun, on the watchdog's time.
    read_at: Option<VmInstant>,
    /// When the next may be begun, on the VM's.
    next_reading: VmInstant,
    /// A thread is reading.
    is_reading: bool,
}

impl Allowance {
    /// The watchdog's time.
    pub fn time(&self, vm_now: VmInstant) -> VmInstant {
        vm_now - self.total
    }

    /// When the watchdog's time is, or was, this.
    pub fn vm_time(&self, time: VmInstant) -> VmInstant {
        time + self.total
    }

    /// The time to tell a model with these deadlines. It stops short of one that no reading has looked at.
    pub fn model_time(
        &self,
        vm_now: VmInstant,
        poll_at: Option<VmInstant>,
        timeout_at: Option<VmInstant>,
    ) -> VmInstant {
        let now = self.time(vm_now);
        // A watchdog without a timeout is not read for.
        let deadlines = timeout_at.into_iter().chain(poll_at.filter(|_| timeout_at.is_some()));
        let unread = deadlines.filter(|&deadline| self.is_unread(deadline)).min();
        unread.map_or(now, |deadline| now.min(deadline - Duration::from_nanos(1)))
    }

    /// When to act on a deadline, on the VM's clock: as it comes, or with the reading that has to come before.
    pub fn wake_for(&self, deadline: VmInstant) -> VmInstant {
        let comes = self.vm_time(deadline);
        if self.is_unread(deadline) { comes.max(self.next_reading) } else { comes }
    }

    fn is_unread(&self, deadline: VmInstant) -> bool {
        self.read_at.is_some_and(|read_at| deadline > read_at.max(self.seen))
    }

    /// Notes that the model is told that it is `now`.
    pub fn see(&mut self, now: VmInstant) {
        self.seen = self.seen.max(now);
    }

    /// Notes that the guest is told that it is `now`: if that is less than the time, then the time it is from here on.
    pub fn settle(&mut self, vm_now: VmInstant, now: VmInstant) {
        let held_back = self.time(vm_now).saturating_duration_since(now);
        self.total += held_back;
        self.since_restart += held_back;
        self.see(now);
    }

    /// Notes that the guest started or fed the watchdog, or that it has timed out.
    pub fn restart(&mut self, now: VmInstant) {
        self.since_restart = Duration::ZERO;
        self.restarted_at = now;
    }

    /// Whether a reading may be taken; then it is the caller's to take.
    pub fn begin_reading(&mut self, vm_now: VmInstant) -> bool {
        let begins = !self.is_reading && vm_now >= self.next_reading;
        self.is_reading |= begins;
        begins
    }

    /// Takes a reading into account that was begun at `begun`.
    ///
    /// The least delayed vCPU counts. The allowance is no more than the time since the model last looked, and the
    /// whole wait for `timeout_at` no more than `patience` times what it was meant to be.
    pub fn grant(&mut self, delays: Vec<Duration>, begun: VmInstant, timeout_at: Option<VmInstant>, patience: u32) {
        let starved = least_growth(&self.last_delays, &delays);
        self.last_delays = delays;

        let unseen = self.time(begun).saturating_duration_since(self.seen);
        let timeout = timeout_at.unwrap_or_default().saturating_duration_since(self.restarted_at);
        let most = timeout.saturating_mul(patience.saturating_sub(1)).saturating_sub(self.since_restart);
        let granted = starved.min(unseen).min(most);
        self.total += granted;
        self.since_restart += granted;
        self.end_reading(begun);
    }

    /// Notes that a reading failed.
    pub fn grant_nothing(&mut self, begun: VmInstant) {
        self.last_delays.clear();
        self.end_reading(begun);
    }

    fn end_reading(&mut self, begun: VmInstant) {
        self.is_reading = false;
        self.read_at = Some(self.time(begun));
        self.next_reading = begun + READING_INTERVAL;
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
        allowance.grant(seconds(before), at(9), Some(at(14)), 4);
        allowance.settle(at(10), at(10));
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
            allowance.grant(seconds(after), at(14), Some(at(14)), 4);
            assert_eq!(allowance.total, SECOND * granted);
        }
    }

    #[test]
    fn a_vcpu_that_comes_or_goes_has_no_delay_to_compare() {
        let mut allowance = fed_at_ten(&[]);
        allowance.grant(seconds(&[7]), at(14), Some(at(14)), 4);
        assert_eq!(allowance.total, Duration::ZERO);
        allowance.grant(seconds(&[]), at(15), Some(at(14)), 4);
        assert_eq!(allowance.total, Duration::ZERO);
    }

    #[test]
    fn time_does_not_go_back_behind_what_the_device_has_seen() {
        let mut allowance = fed_at_ten(&[0]);
        allowance.see(at(13));
        allowance.grant(seconds(&[4]), at(14), Some(at(14)), 4);
        assert_eq!(allowance.total, SECOND);
    }

    #[test]
    fn patience_ends_at_its_multiple_of_the_timeout() {
        let mut allowance = fed_at_ten(&[0]);
        for second in 14..200 {
            allowance.grant(seconds(&[second]), at(second), Some(at(14)), 4);
        }
        // 4 s of the guest's own time, and three times that for which it was starved.
        assert_eq!(allowance.total, SECOND * 12);
        allowance.restart(at(100));
        allowance.grant(seconds(&[300]), at(300), Some(at(104)), 4);
        assert_eq!(allowance.total, SECOND * 24);
    }

    #[test]
    fn readings_are_few() {
        let mut allowance = fed_at_ten(&[0]);
        assert!(!allowance.begin_reading(at(9) + READING_INTERVAL / 2));
        assert!(allowance.begin_reading(at(9) + READING_INTERVAL));
    }

    #[test]
    fn a_deadline_that_no_reading_has_looked_at_waits_for_one() {
        let mut allowance = fed_at_ten(&[0]);
        allowance.grant(seconds(&[0]), at(14), Some(at(14)), 4);
        assert_eq!(allowance.model_time(at(14), Some(at(14)), Some(at(14))), at(14), "the reading was taken for it");

        let (soon, next) = (at(14) + READING_INTERVAL / 2, at(14) + READING_INTERVAL);
        let just_before = soon - Duration::from_nanos(1);
        assert_eq!(allowance.wake_for(soon), next);
        assert_eq!(allowance.model_time(just_before, Some(soon), Some(soon)), just_before);
        assert_eq!(allowance.model_time(next - Duration::from_nanos(1), Some(soon), Some(soon)), just_before);
        assert_eq!(allowance.model_time(next, Some(soon), Some(soon)), just_before);
        assert_eq!(allowance.wake_for(at(15)), at(15));

        // A guest that gets there before the reading does so in time, and goes on from there.
        allowance.settle(next - Duration::from_nanos(1), just_before);
        assert_eq!(allowance.time(next), soon);
    }

    /// Readings of one thread, in milliseconds since the first.
    struct Script(Instant);

    impl Script {
        fn at(&self, at: u64, state: char, sleeps: u64, ran: u64, delayed: u64) -> Reading {
            let [at, ran, delayed] = [at, ran, delayed].map(Duration::from_millis);
            Reading { at: self.0 + at, is_runnable: state == 'R', sleeps, ran, delayed }
        }
    }

    fn delays<const N: usize>(readings: [(u64, char, u64, u64, u64); N]) -> [u128; N] {
        let script = Script(Instant::now());
        let mut wait = Wait::since(script.at(0, 'R', 7, 0, 0));
        readings.map(|(at, state, sleeps, ran, delayed)| {
            wait.run_delay(script.at(at, state, sleeps, ran, delayed)).as_millis()
        })
    }

    #[test]
    fn a_wait_that_goes_on_counts_and_is_not_counted_again_when_linux_does() {
        let waits = [
            (1000, 'R', 7, 200, 0),
            (2000, 'R', 7, 200, 0),
            // It has run a little, and Linux has accounted for what came before.
            (3000, 'R', 7, 210, 2790),
            (4000, 'R', 7, 1200, 2800),
        ];
        assert_eq!(delays(waits), [800, 1800, 2790, 2800]);
    }

    #[test]
    fn a_thread_that_runs_all_the_time_has_no_more_delay_than_its_account_is_late() {
        let spins = [(100, 'R', 7, 96, 0), (200, 'R', 7, 192, 0), (300, 'R', 7, 300, 0), (310, 'R', 7, 302, 0)];
        assert_eq!(delays(spins), [4, 8, 0, 8]);
        let spins_on_after_a_late_account = [(100, 'R', 7, 104, 0), (200, 'R', 7, 204, 0), (1300, 'R', 7, 1304, 0)];
        assert_eq!(delays(spins_on_after_a_late_account), [0; 3]);
    }

    #[test]
    fn a_thread_that_sleeps_has_no_delay_but_what_linux_says() {
        assert_eq!(delays([(1000, 'S', 8, 5, 3), (2000, 'S', 8, 5, 3), (3000, 'S', 9, 6, 4)]), [3, 3, 4]);
    }

    #[test]
    fn of_a_thread_that_slept_and_waits_another_reading_tells() {
        let woken = [(1000, 'R', 8, 5, 3), (1100, 'R', 8, 5, 3), (1200, 'R', 8, 10, 900)];
        assert_eq!(delays(woken), [4, 104, 900]);
        let slept_in_between = [(1000, 'R', 8, 5, 3), (1100, 'R', 9, 5, 3)];
        assert_eq!(delays(slept_in_between), [4, 4]);
    }

    #[test]
    fn linux_says_what_is_asked() {
        let reading = Reading::take(Path::new("/proc/thread-self")).unwrap();
        assert!(reading.is_runnable);
        std::thread::sleep(Duration::from_millis(20));
        let later = Reading::take(Path::new("/proc/thread-self")).unwrap();
        assert!(later.sleeps > reading.sleeps);
        assert!(later.at - reading.at >= Duration::from_millis(20));
        assert!(later.ran - reading.ran < Duration::from_millis(20));
    }

    #[test]
    fn a_file_that_says_something_else_is_named() {
        let error = Reading::take(Path::new("/proc")).unwrap_err().to_string();
        assert!(!error.is_empty());
        let file = FileOf { path: "status".into(), text: "Name:\tx\n".into() };
        assert_eq!(file.field("State:").unwrap_err().to_string(), r#"status: no State: in "Name:\tx\n""#);
    }
}

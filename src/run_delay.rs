//! Run delay: how long vCPU threads were runnable and did not run. KVM calls it steal time.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many times the timeout steal time may make a period last, unless the VMM says otherwise.
pub const DEFAULT_STEAL_LIMIT: u32 = 4;

/// Tells how long each vCPU of a VM was kept from running.
///
/// It is asked when the guest starts the watchdog and when a deadline comes, never for a heartbeat, at most ten times a
/// second, never while the VM is paused, and with no lock held. Two threads may ask at the same time. A call that does
/// not return delays the watchdog's timer. [`ThreadRunDelay`] asks Linux; a VMM that knows better implements its own.
pub trait RunDelay: Send + Sync {
    /// The delay of each vCPU so far.
    ///
    /// # Errors
    ///
    /// An error is counted and logged, and the guest gets no compensation this time.
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>>;
}

/// How long one vCPU was kept from running.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::VcpuDelay;
///
/// let delay = VcpuDelay::new(0, Duration::from_millis(350));
/// assert_eq!((delay.vcpu, delay.waits), (0, false));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VcpuDelay {
    /// Which vCPU. A number is never used for another one.
    pub vcpu: u64,
    /// For how long in all it has been runnable and has not run. It never decreases, except for a measuring error.
    pub delay: Duration,
    /// It is waiting for a processor, and `delay` lacks the beginning of that wait. A deadline that comes is held back
    /// until the length of the wait is known.
    pub waits: bool,
}

impl VcpuDelay {
    /// The delay of a vCPU that runs, sleeps, or waits since a known moment.
    pub const fn new(vcpu: u64, delay: Duration) -> Self {
        Self { vcpu, delay, waits: false }
    }

    /// The same for a vCPU that waits since an unknown moment.
    pub const fn waiting(self) -> Self {
        Self { waits: true, ..self }
    }
}

/// The run delay of threads as Linux accounts for it: the second field of `/proc/<pid>/task/<tid>/schedstat`, and beside
/// it the wait that goes on, which Linux adds when it is over.
///
/// It needs no privilege. Each vCPU thread registers itself; one that ends is forgotten. The files are opened then and
/// stay open, two for each thread: a sandbox may forbid to open them later, and a thread that gets the number of one
/// that has ended is not taken for it.
///
/// ```
/// use vm_watchdog::{DEFAULT_STEAL_LIMIT, Event, RunDelay, ThreadRunDelay, Watchdog, i6300esb::I6300esb};
///
/// let run_delay = ThreadRunDelay::new();
/// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default()))
///     .compensate_steal_time(run_delay.clone(), DEFAULT_STEAL_LIMIT)
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
    threads: Arc<Mutex<Threads>>,
}

#[derive(Debug, Default)]
struct Threads {
    next: u64,
    running: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    vcpu: u64,
    files: Files,
    wait: Wait,
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
        let files = Files::open(Path::new("/proc/thread-self"))?;
        let wait = Wait::since(files.read()?);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let vcpu = threads.next;
        threads.next += 1;
        threads.running.push(Thread { vcpu, files, wait });
        Ok(())
    }

    /// The descriptors of the threads that are registered, for a VMM that closes all others when it enters a jail.
    pub fn keep_fds(&self) -> Vec<RawFd> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.running.iter().flat_map(|thread| thread.files.descriptors()).collect()
    }
}

impl RunDelay for ThreadRunDelay {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failure = None;
        let mut delays = Vec::with_capacity(threads.running.len());
        threads.running.retain_mut(|Thread { vcpu, files, wait }| match files.read() {
            Ok(reading) => {
                delays.push(wait.run_delay(*vcpu, reading));
                true
            }
            Err(error) if has_ended(&error) => false,
            Err(error) => {
                failure = Some(error);
                true
            }
        });
        failure.map_or(Ok(delays), Err)
    }
}

/// What Linux answers to a read of a file about a thread that has ended (ESRCH).
fn has_ended(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.raw_os_error() == Some(ESRCH)
}

/// What is known of the wait of a thread.
#[derive(Debug)]
struct Wait {
    last: Reading,
    /// How much of the wait was reported, which Linux accounts for when it is over.
    ahead: Duration,
    /// The wait began between two readings.
    began_unseen: bool,
}

impl Wait {
    fn since(reading: Reading) -> Self {
        Self { last: reading, ahead: Duration::ZERO, began_unseen: false }
    }

    /// The delay up to this reading.
    ///
    /// A thread that was runnable before, is runnable now, and has not slept in between has waited whenever it has not
    /// run. Of one that has slept, it is not known when it woke. If it does not run until its wait is over, then Linux
    /// will say how long it was; if it sleeps again before the next reading, then what is not known is less than lies
    /// between the two.
    fn run_delay(&mut self, vcpu: u64, now: Reading) -> VcpuDelay {
        let before = std::mem::replace(&mut self.last, now);
        let ran = now.ran.saturating_sub(before.ran);
        let has_slept = now.sleeps != before.sleeps || !before.is_runnable;
        if !now.is_runnable {
            (self.ahead, self.began_unseen) = (Duration::ZERO, false);
        } else if has_slept {
            (self.ahead, self.began_unseen) = (Duration::ZERO, !self.began_unseen);
        } else {
            let accounted = now.delayed.saturating_sub(before.delayed);
            self.ahead = (self.ahead + now.at.duration_since(before.at)).saturating_sub(ran + accounted);
            self.began_unseen &= ran.is_zero();
        }
        VcpuDelay { vcpu, delay: now.delayed + self.ahead, waits: self.began_unseen }
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

/// The files of Linux about a thread.
#[derive(Debug)]
struct Files {
    status: ThreadFile,
    schedstat: ThreadFile,
}

impl Files {
    fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            status: ThreadFile::open(folder.join("status"))?,
            schedstat: ThreadFile::open(folder.join("schedstat"))?,
        })
    }

    fn descriptors(&self) -> [RawFd; 2] {
        [&self.status, &self.schedstat].map(|file| file.file.as_raw_fd())
    }

    fn read(&self) -> io::Result<Reading> {
        let status = self.status.read()?;
        let schedstat = self.schedstat.read()?;
        let mut times = schedstat.text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let mut time = || times.next().map(Duration::from_nanos).ok_or_else(|| schedstat.lacks("two times"));
        Ok(Reading {
            at: Instant::now(),
            is_runnable: status.field("State:")?.starts_with('R'),
            sleeps: status.field("voluntary_ctxt_switches:")?.parse().map_err(|_| status.lacks("a count of sleeps"))?,
            ran: time()?,
            delayed: time()?,
        })
    }
}

#[derive(Debug)]
struct ThreadFile {
    path: PathBuf,
    file: File,
}

impl ThreadFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::open(&path)?, path })
    }

    /// The whole file as it is now.
    fn read(&self) -> io::Result<Content<'_>> {
        let mut bytes = Vec::with_capacity(2048);
        loop {
            let mut chunk = [0; 1024];
            match self.file.read_at(&mut chunk, bytes.len() as u64)? {
                0 => break,
                length => bytes.extend_from_slice(&chunk[..length]),
            }
        }
        Ok(Content { path: &self.path, text: String::from_utf8_lossy(&bytes).into_owned() })
    }
}

/// What stood in a file.
struct Content<'a> {
    path: &'a Path,
    text: String,
}

impl Content<'_> {
    /// What follows a name at the beginning of a line.
    fn field(&self, name: &str) -> io::Result<&str> {
        let value = self.text.lines().find_map(|line| line.strip_prefix(name));
        value.map(str::trim).ok_or_else(|| self.lacks(name))
    }

    fn lacks(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: no {what} in {:?}", self.path.display(), self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of one thread, in milliseconds since the first.
    struct Script(Instant);

    impl Script {
        fn at(&self, at: u64, state: char, sleeps: u64, ran: u64, delayed: u64) -> Reading {
            let [at, ran, delayed] = [at, ran, delayed].map(Duration::from_millis);
            Reading { at: self.0 + at, is_runnable: state == 'R', sleeps, ran, delayed }
        }
    }

    /// Delays in milliseconds, and whether the beginning of a wait is not known.
    fn delays<const N: usize>(readings: [(u64, char, u64, u64, u64); N]) -> [(u128, bool); N] {
        let script = Script(Instant::now());
        let mut wait = Wait::since(script.at(0, 'R', 7, 0, 0));
        readings.map(|(at, state, sleeps, ran, delayed)| {
            let VcpuDelay { delay, waits, .. } = wait.run_delay(0, script.at(at, state, sleeps, ran, delayed));
            (delay.as_millis(), waits)
        })
    }

    fn certain<const N: usize>(delays: [u128; N]) -> [(u128, bool); N] {
        delays.map(|delay| (delay, false))
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
        assert_eq!(delays(waits), certain([800, 1800, 2790, 2800]));
    }

    #[test]
    fn a_thread_that_runs_all_the_time_has_no_more_delay_than_its_account_is_late() {
        let spins = [(100, 'R', 7, 96, 0), (200, 'R', 7, 192, 0), (300, 'R', 7, 300, 0), (310, 'R', 7, 302, 0)];
        assert_eq!(delays(spins), certain([4, 8, 0, 8]));
        let spins_on_after_a_late_account = [(100, 'R', 7, 104, 0), (200, 'R', 7, 204, 0), (1300, 'R', 7, 1304, 0)];
        assert_eq!(delays(spins_on_after_a_late_account), certain([0; 3]));
    }

    #[test]
    fn a_thread_that_sleeps_has_no_delay_but_what_linux_says() {
        assert_eq!(delays([(1000, 'S', 8, 5, 3), (2000, 'S', 8, 5, 3), (3000, 'S', 9, 6, 4)]), certain([3, 3, 4]));
    }

    #[test]
    fn the_length_of_a_wait_that_began_unseen_is_known_when_it_is_over() {
        let woken = [(1000, 'R', 8, 5, 3), (1100, 'R', 8, 5, 3), (1200, 'R', 8, 10, 900)];
        assert_eq!(delays(woken), [(3, true), (103, true), (900, false)]);
    }

    #[test]
    fn a_thread_that_sleeps_and_wakes_again_and_again_is_doubted_for_every_other_reading_at_most() {
        let wakes = [(1000, 'R', 8, 5, 3), (1100, 'R', 9, 5, 3), (1200, 'R', 10, 6, 3)];
        assert_eq!(delays(wakes), [(3, true), (3, false), (3, true)]);
    }

    #[test]
    fn linux_says_what_is_asked() {
        let files = Files::open(Path::new("/proc/thread-self")).unwrap();
        let reading = files.read().unwrap();
        assert!(reading.is_runnable);
        std::thread::sleep(Duration::from_millis(20));
        let later = files.read().unwrap();
        assert!(later.sleeps > reading.sleeps);
        assert!(later.at - reading.at >= Duration::from_millis(20));
        assert!(later.ran - reading.ran < Duration::from_millis(20));
    }

    #[test]
    fn a_thread_that_has_ended_is_forgotten_and_its_number_belongs_to_no_other() {
        let run_delay = ThreadRunDelay::new();
        let register = |run_delay: &ThreadRunDelay| {
            let run_delay = run_delay.clone();
            std::thread::spawn(move || run_delay.register_current_thread().unwrap()).join().unwrap();
        };
        register(&run_delay);
        run_delay.register_current_thread().unwrap();
        // The thread has been joined, and Linux removes it soon after.
        let deadline = Instant::now() + Duration::from_secs(30);
        let numbers = |run_delay: &ThreadRunDelay| -> Vec<u64> {
            run_delay.run_delays().unwrap().iter().map(|delay| delay.vcpu).collect()
        };
        while numbers(&run_delay) != [1] {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        run_delay.register_current_thread().unwrap();
        assert_eq!(numbers(&run_delay), [1, 2]);
    }

    #[test]
    fn a_file_that_says_something_else_is_named() {
        let error = Files::open(Path::new("/proc")).unwrap_err().to_string();
        assert!(!error.is_empty());
        let content = Content { path: Path::new("status"), text: "Name:\tx\n".into() };
        assert_eq!(content.field("State:").unwrap_err().to_string(), r#"status: no State: in "Name:\tx\n""#);
    }
}

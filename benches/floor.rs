//! What a heartbeat is compared with: the operations that it cannot do without, and those that other VMMs do for one.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// The least that a heartbeat of three writes costs a model with a lock and a clock.
#[derive(Debug)]
pub struct Floor {
    lock: Mutex<u64>,
    deadline: AtomicU64,
    start: Instant,
}

impl Default for Floor {
    fn default() -> Self {
        Self { lock: Mutex::new(0), deadline: AtomicU64::new(0), start: Instant::now() }
    }
}

impl Floor {
    /// Takes and gives back a lock that no other thread wants.
    pub fn lock(&self) {
        *self.lock.lock().expect("no thread panics with it") += 1;
    }

    /// Three locks, one reading of the clock, one store.
    pub fn heartbeat(&self) {
        for _ in 0..3 {
            self.lock();
        }
        self.deadline.store(self.start.elapsed().as_nanos() as u64, Ordering::Release);
    }
}

/// What arming costs the thread of a vCPU: a `write` to an eventfd, which wakes the thread that sets the timer.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// An eventfd.
    ///
    /// # Errors
    ///
    /// The host gives no eventfd.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes it.
    ///
    /// # Errors
    ///
    /// The host refuses the write.
    pub fn wake(&self) -> std::io::Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}

/// A timer that is armed anew with each heartbeat, by a system call, as ACRN's is.
#[derive(Debug)]
pub struct ArmedTimer(OwnedFd);

impl ArmedTimer {
    /// A timer that is not armed.
    ///
    /// # Errors
    ///
    /// The host gives no timer.
    pub fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Arms it.
    ///
    /// # Errors
    ///
    /// The host refuses the delay.
    pub fn arm(&self, delay: Duration) -> std::io::Result<()> {
        self.set(delay, TimerfdTimerFlags::empty())
    }

    /// Arms it for an instant of CLOCK_MONOTONIC.
    ///
    /// # Errors
    ///
    /// The host refuses the instant.
    pub fn arm_at(&self, at: Duration) -> std::io::Result<()> {
        self.set(at, TimerfdTimerFlags::ABSTIME)
    }

    fn set(&self, value: Duration, flags: TimerfdTimerFlags) -> std::io::Result<()> {
        let it_value = Timespec { tv_sec: value.as_secs() as i64, tv_nsec: value.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.0, flags, &once)?;
        Ok(())
    }
}

impl AsFd for ArmedTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What CLOCK_MONOTONIC shows.
pub fn monotonic_now() -> Duration {
    let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(tv_sec.unsigned_abs(), tv_nsec as u32)
}

/// An epoll that waits for descriptors, each with its number.
///
/// # Errors
///
/// The host gives no epoll, or takes no more descriptors.
pub fn epoll_of<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> std::io::Result<OwnedFd> {
    let loop_fd = epoll::create(CreateFlags::CLOEXEC)?;
    for (number, fd) in (0..).zip(fds) {
        epoll::add(&loop_fd, fd, EventData::new_u64(number), EventFlags::IN)?;
    }
    Ok(loop_fd)
}

/// Reads how long the calling thread has run, as crosvm's watchdog does for each heartbeat.
///
/// # Errors
///
/// There is no `/proc`.
pub fn read_thread_times() -> std::io::Result<usize> {
    let mut text = [0; 1024];
    File::open("/proc/thread-self/stat")?.read(&mut text)
}

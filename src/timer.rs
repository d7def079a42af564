//! A timerfd that is armed and never read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A one-shot timer on CLOCK_MONOTONIC whose descriptor is readable once it has gone off.
///
/// Setting a timerfd clears its readiness, so the thread that wakes up re-arms or disarms it and need not read it. A
/// read would block in a thread that was woken just before another thread re-armed the timer.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { fd: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)? })
    }

    /// What CLOCK_MONOTONIC shows.
    pub fn now() -> Duration {
        let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(ClockId::Monotonic);
        // The clock starts at zero and does not go back, and there are less than 10^9 nanoseconds to a second.
        Duration::new(tv_sec.unsigned_abs(), tv_nsec as u32)
    }

    /// Makes the descriptor readable when CLOCK_MONOTONIC shows `at`, and not before.
    ///
    /// An instant, not a delay: a thread that is preempted between the reading of a clock and this call would arm the
    /// timer late by as much.
    pub fn arm(&self, at: Duration) {
        // Zero would disarm it, and more seconds than the kernel counts are an error.
        let latest = Duration::from_secs(i32::MAX as u64);
        self.set(at.clamp(Duration::from_nanos(1), latest));
    }

    /// Makes the descriptor unreadable until it is armed again.
    pub fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    fn set(&self, at: Duration) {
        let at = Timespec { tv_sec: at.as_secs() as i64, tv_nsec: at.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        let set = rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &once);
        // It fails for a bad descriptor or bad numbers only, and this type gives it neither.
        debug_assert_eq!(set.map(drop), Ok::<(), Errno>(()));
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

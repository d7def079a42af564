//! A timerfd that is armed and never read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

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

    /// Makes the descriptor readable in `delay`, and not before.
    pub fn arm(&self, delay: Duration) {
        // A delay of zero would disarm it, and one of more seconds than the kernel counts is an error.
        let longest = Duration::from_secs(i32::MAX as u64);
        self.set(delay.clamp(Duration::from_nanos(1), longest));
    }

    /// Makes the descriptor unreadable until it is armed again.
    pub fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    fn set(&self, delay: Duration) {
        let delay = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: delay };
        let set = rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once);
        // It fails for a bad descriptor or bad numbers only, and this type gives it neither.
        debug_assert_eq!(set.map(drop), Ok::<(), Errno>(()));
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

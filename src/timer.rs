//! The descriptor that a VMM's event loop polls for a watchdog.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A descriptor that is readable at an instant of CLOCK_MONOTONIC, or at once when another thread wakes it.
///
/// It is an epoll of a timerfd, an eventfd, and the eventfd by which an interrupt line reports the end of an interrupt. The
/// thread that serves the watchdog sets the timerfd; other threads, such as that of a vCPU, only write to the eventfd,
/// because the seccomp filters of VMMs let a vCPU thread write to an eventfd and not set a timer.
///
/// Setting a timerfd clears its readiness, so it is never read.
#[derive(Debug)]
pub(crate) struct Timer {
    epoll: OwnedFd,
    timer: OwnedFd,
    wake: OwnedFd,
    resample: Option<OwnedFd>,
}

impl Timer {
    pub fn new(resample: Option<OwnedFd>) -> std::io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for source in [&timer, &wake].into_iter().chain(&resample) {
            epoll::add(&epoll, source, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Self { epoll, timer, wake, resample })
    }

    /// What CLOCK_MONOTONIC shows, in nanoseconds.
    pub fn now() -> u64 {
        let Timespec { tv_sec, tv_nsec } = rustix::time::clock_gettime(ClockId::Monotonic);
        // The clock starts at zero and does not go back: it takes 584 years to overflow.
        tv_sec.unsigned_abs() * 1_000_000_000 + tv_nsec.unsigned_abs()
    }

    /// Makes the descriptor readable now, for any thread: its one system call is `write`. False if that is refused.
    pub fn wake(&self) -> bool {
        // The eventfd counts to 2^64 - 2, and is not woken again before the first wake is over.
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).is_ok()
    }

    /// Ends a wake, for the thread that serves the watchdog.
    pub fn end_wake(&self) {
        // Nothing to read means that there was no wake to end.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    /// Whether an interrupt has ended since the last call, for the thread that serves the watchdog.
    pub fn take_resample(&self) -> bool {
        // Nothing to read means that none has ended.
        self.resample.as_ref().is_some_and(|resample| rustix::io::read(resample, &mut [0_u8; 8]).is_ok())
    }

    /// Makes the descriptor readable when CLOCK_MONOTONIC shows `at`, and not before. For the thread that serves the
    /// watchdog.
    ///
    /// An instant, not a delay: a thread that is preempted between the reading of a clock and this call would arm the
    /// timer late by as much.
    pub fn arm(&self, at: Duration) {
        // Zero would disarm it, and more seconds than the kernel counts are an error.
        let latest = Duration::from_secs(i32::MAX as u64);
        self.set(at.clamp(Duration::from_nanos(1), latest));
    }

    /// Makes the descriptor unreadable until it is armed again, or woken. For the thread that serves the watchdog.
    pub fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    /// Every descriptor behind [`as_fd`](AsFd::as_fd), itself included.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let of_line = self.resample.iter();
        [&self.epoll, &self.timer, &self.wake].into_iter().chain(of_line).map(AsRawFd::as_raw_fd).collect()
    }

    fn set(&self, at: Duration) {
        let at = Timespec { tv_sec: at.as_secs() as i64, tv_nsec: at.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        let set = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once);
        // It fails for a bad descriptor or bad numbers only, and this type gives it neither.
        debug_assert_eq!(set.map(drop), Ok::<(), Errno>(()));
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

//! What a heartbeat is compared with: the operations it cannot do without, and one that it does without.

use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// What arming costs the thread of a vCPU: a `write` to an eventfd, which wakes the thread that sets the timer.
#[derive(Debug)]
pub struct Wake(rustix::fd::OwnedFd);

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

/// A timer that is armed anew with each heartbeat, by a system call.
#[derive(Debug)]
pub struct ArmedTimer(rustix::fd::OwnedFd);

impl ArmedTimer {
    /// A timer that is not armed.
    ///
    /// # Errors
    ///
    /// The host gives no timer.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?))
    }

    /// Arms it.
    ///
    /// # Errors
    ///
    /// The host refuses the delay.
    pub fn arm(&self, delay: Duration) -> std::io::Result<()> {
        let it_value = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

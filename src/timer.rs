//! A timerfd that is armed and never read.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// A one-shot timer on CLOCK_MONOTONIC whose descriptor is readable once it has gone off.
///
/// Setting a timerfd clears its readiness, so whoever wakes up re-arms or disarms it and need not read it. Reading would
/// block for ever in a thread that was woken just before another thread re-armed the timer.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: TimerFd,
}

impl Timer {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { fd: TimerFd::new()? })
    }

    /// Makes the descriptor readable in `delay`, and not before.
    pub fn arm(&mut self, delay: Duration) {
        // A delay of zero would disarm it.
        let set = self.fd.reset(delay.max(Duration::from_nanos(1)), None);
        self.expect_set(set);
    }

    /// Makes the descriptor unreadable until it is armed again.
    pub fn disarm(&mut self) {
        let cleared = self.fd.clear();
        self.expect_set(cleared);
    }

    /// timerfd_settime fails for a bad descriptor or bad numbers only, and this type gives it neither.
    fn expect_set(&self, result: Result<(), vmm_sys_util::errno::Error>) {
        if let Err(error) = result {
            log::error!("cannot set the watchdog's timer: {error}");
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

//! The host's time and timers for the model checker, compiled under `--cfg shuttle` only.
//!
//! Time passes when a test advances it. Nothing is told of that, as on a real host: only a timer that was armed goes
//! off. The threads of a schedule all run on one thread of the host, so state that is local to that thread is theirs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// When the timers that are armed go off, by descriptor.
    static ARMED: RefCell<BTreeMap<RawFd, Duration>> = const { RefCell::new(BTreeMap::new()) };
    /// The descriptors that were woken.
    static WOKEN: RefCell<BTreeSet<RawFd>> = const { RefCell::new(BTreeSet::new()) };
}

/// Lets time pass for all clocks and timers.
pub fn advance(duration: Duration) {
    NOW.set(NOW.get() + duration);
}

/// Whether the timer behind a watchdog's descriptor has gone off, or was woken: what `poll` says of a real one.
pub fn is_readable(timer: impl AsFd) -> bool {
    let fd = timer.as_fd().as_raw_fd();
    let is_woken = WOKEN.with_borrow(|woken| woken.contains(&fd));
    is_woken || ARMED.with_borrow(|armed| armed.get(&fd).is_some_and(|due| *due <= NOW.get()))
}

/// In place of a timerfd. The descriptor is only its name.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub fn new(_resample: Option<OwnedFd>) -> std::io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    pub fn now() -> u64 {
        NOW.get().as_nanos() as u64
    }

    pub fn wake(&self) -> bool {
        WOKEN.with_borrow_mut(|woken| woken.insert(self.fd.as_raw_fd()));
        true
    }

    pub fn end_wake(&self) {
        WOKEN.with_borrow_mut(|woken| woken.remove(&self.fd.as_raw_fd()));
    }

    pub fn take_resample(&self) -> bool {
        false
    }

    pub fn arm(&self, at: Duration) {
        ARMED.with_borrow_mut(|armed| armed.insert(self.fd.as_raw_fd(), at));
    }

    pub fn disarm(&self) {
        ARMED.with_borrow_mut(|armed| armed.remove(&self.fd.as_raw_fd()));
    }

    pub fn descriptors(&self) -> Vec<RawFd> {
        vec![self.fd.as_raw_fd()]
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
        self.end_wake();
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

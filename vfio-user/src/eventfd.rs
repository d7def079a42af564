//! The eventfd by which a client is interrupted.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::retry_on_intr;

/// An eventfd that a client has sent.
#[derive(Debug)]
pub struct ClientEventfd(OwnedFd);

/// The descriptors that came with a message.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// The last of them that is an eventfd.
    pub eventfd: Option<ClientEventfd>,
    /// How many there were.
    pub received: usize,
}

impl ClientEventfd {
    /// Makes writes to the eventfd non-blocking.
    ///
    /// # Errors
    ///
    /// The descriptor, if it is no eventfd: a write to anything else might never return, and a socket of the client's own
    /// would keep its connection open. Without /proc nothing is an eventfd.
    pub fn new(fd: OwnedFd) -> Result<Self, OwnedFd> {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
        if !link.is_ok_and(|link| link.to_bytes() == b"anon_inode:[eventfd]") {
            return Err(fd);
        }
        let nonblocking =
            rustix::fs::fcntl_getfl(&fd).and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK));
        if nonblocking.is_ok() { Ok(Self(fd)) } else { Err(fd) }
    }

    /// Signals the client so many times. Waits while the counter has no room for that, if the client has taken O_NONBLOCK away.
    pub(crate) fn signal(&self, signals: u64) {
        // An eventfd takes any number but the greatest. A counter that is full is a signal that the client has not read yet.
        let _ = retry_on_intr(|| rustix::io::write(&self.0, &signals.min(u64::MAX - 1).to_ne_bytes()));
    }
}

/// Waits until an eventfd was signalled so many times, for tests.
#[cfg(test)]
pub(crate) fn await_signals(client: &OwnedFd, count: u64) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut received = 0;
    while received < count {
        assert!(std::time::Instant::now() < deadline, "{received} signals instead of {count}");
        received += signals(client);
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert_eq!(received, count);
}

/// How often an eventfd was signalled since the last call, for tests.
#[cfg(test)]
pub(crate) fn signals(client: &OwnedFd) -> u64 {
    let mut counter = [0; 8];
    match rustix::io::read(client, &mut counter) {
        Ok(_) => u64::from_ne_bytes(counter),
        Err(_) => 0,
    }
}

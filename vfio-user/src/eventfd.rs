//! The eventfd by which a client is interrupted.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::{Errno, retry_on_intr};

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

    /// Signals the client.
    pub(crate) fn signal(&self) -> Result<(), Errno> {
        // A full counter is a signal that the client has not read yet.
        if !is_writable(self.0.as_fd())? {
            return Ok(());
        }
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Whether a write does not block. The client shares the flags of its eventfd, and may have taken O_NONBLOCK away.
fn is_writable(eventfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(eventfd, PollFlags::OUT)];
    retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)))?;
    Ok(fds[0].revents().contains(PollFlags::OUT))
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

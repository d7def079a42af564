//! One deadline for everything that an attempt does.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// The end of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    pub fn after(timeout: Duration) -> Self {
        Self { at: Instant::now() + timeout, timeout }
    }

    /// The time that is left, more than zero.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if none is left.
    pub fn left(self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timed_out()) } else { Ok(left) }
    }

    /// The error of an attempt that has reached its deadline.
    pub fn timed_out(self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("timed out after {:?}", self.timeout))
    }
}

/// A connected socket whose calls end at the deadline, and which receives a limited number of bytes.
#[derive(Debug)]
pub struct DeadlineStream {
    socket: OwnedFd,
    deadline: Deadline,
    budget: usize,
    left: usize,
}

impl DeadlineStream {
    /// `budget` is how many bytes are received.
    pub fn new(socket: impl Into<OwnedFd>, deadline: Deadline, budget: usize) -> Self {
        Self { socket: socket.into(), deadline, budget, left: budget }
    }

    /// Starts anew, with another deadline and the whole budget.
    pub fn renew(&mut self, deadline: Deadline) {
        self.deadline = deadline;
        self.left = self.budget;
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let left = self.deadline.left()?;
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Repeats a call that does not block until it has a result.
    fn retry(
        &self,
        events: PollFlags,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> io::Result<usize> {
        loop {
            // Also where a peer sends without a pause.
            self.deadline.left()?;
            match call(self.socket.as_fd()) {
                Err(Errno::AGAIN) => self.wait(events)?,
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let message = format!("the peer sends more than {} bytes", self.budget);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let most = bytes.len().min(self.left);
        let received = self
            .retry(PollFlags::IN, |socket| Ok(rustix::net::recv(socket, &mut bytes[..most], RecvFlags::DONTWAIT)?.0))?;
        self.left -= received;
        Ok(received)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.retry(PollFlags::OUT, |socket| rustix::net::send(socket, bytes, flags))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

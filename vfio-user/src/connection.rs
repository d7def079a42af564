//! The socket of one client: non-blocking sending and receiving of bytes and descriptors.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown};
use serde::Serialize;

use crate::framer::{Framer, Message};
use crate::session::{Next, refuse};
use crate::wire::MAX_FDS;

/// How many messages one call of [`Connection::serve`] answers, so that the caller can serve its other descriptors.
const MESSAGES_AT_ONCE: usize = 64;
/// How many descriptors of a message are received: one more than allowed, to detect too many. The host closes the rest.
const FDS_TAKEN: usize = MAX_FDS + 1;

/// The connection of a client, served without blocking.
///
/// ```no_run
/// use std::os::unix::net::UnixListener;
///
/// use vm_watchdog_vfio_user::{Connection, PciDevice, Session};
///
/// fn serve_one(listener: &UnixListener, device: impl PciDevice) -> std::io::Result<()> {
///     let (stream, _) = listener.accept()?;
///     let mut connection = Connection::new(stream)?;
///     let mut session = Session::new(device);
///     while connection.serve(|message, fds, reply| session.answer(message, fds, reply)).is_none() {
///         // A server waits here with poll() for `connection.interest()` on `connection`.
///     }
///     Ok(())
/// }
/// ```
pub struct Connection {
    stream: UnixStream,
    framer: Framer,
    /// The descriptors of the message that is being received.
    fds: Vec<OwnedFd>,
    /// The host could not pass all descriptors of that message to this process.
    has_lost_fds: bool,
    /// The reply that is being sent. Nothing is received before it is sent.
    reply: Vec<u8>,
    sent: usize,
    is_closing: bool,
}

/// Why a connection is closed. Its serialized form is the name in kebab case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloseReason {
    /// The client has closed it.
    Left,
    /// The client has closed it within a message.
    LeftWithinMessage,
    /// The server closed it: the client broke the protocol, or was [refused](refuse).
    Expelled,
}

/// The result of one step.
enum Step {
    Received,
    Answered,
    Closed(CloseReason),
}

impl Connection {
    /// A connection over `stream`, which becomes non-blocking.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            framer: Framer::new(),
            fds: Vec::new(),
            has_lost_fds: false,
            reply: Vec::new(),
            sent: 0,
            is_closing: false,
        })
    }

    /// The events to poll for before the next [`serve`](Self::serve).
    pub fn interest(&self) -> PollFlags {
        if self.is_sending() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Whether the client has closed its end. Messages that it sent before may still have to be received.
    pub fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Sends, receives and answers until it would block, or has answered 64 messages. `None` if the connection is open.
    pub fn serve(
        &mut self,
        mut answer: impl FnMut(Message<'_>, Vec<OwnedFd>, &mut Vec<u8>) -> Next,
    ) -> Option<CloseReason> {
        let mut answers = 0;
        // The limit counts answers: poll() does not report a message that is already in the framer.
        while answers < MESSAGES_AT_ONCE {
            match self.step(&mut answer) {
                Ok(Step::Received) => {}
                Ok(Step::Answered) => answers += 1,
                Ok(Step::Closed(reason)) => return Some(reason),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(_) => return Some(CloseReason::Left),
            }
        }
        None
    }

    /// Answers the requests that were sent, and accepts no more: QEMU 11.1 aborts when a request is not answered.
    pub fn finish(&mut self, mut answer: impl FnMut(Message<'_>, Vec<OwnedFd>, &mut Vec<u8>) -> Next) {
        if rustix::net::shutdown(&self.stream, Shutdown::Read).is_ok() {
            // Does not wait for a client that does not receive its replies.
            while self.serve(&mut answer).is_none() && !self.is_sending() {}
        }
    }

    fn step(
        &mut self,
        answer: &mut impl FnMut(Message<'_>, Vec<OwnedFd>, &mut Vec<u8>) -> Next,
    ) -> Result<Step, Errno> {
        while self.is_sending() {
            self.sent += rustix::net::send(&self.stream, &self.reply[self.sent..], SendFlags::NOSIGNAL)?;
        }
        if self.is_closing {
            return Ok(Step::Closed(CloseReason::Expelled));
        }
        let Some(message) = self.framer.take() else {
            return self.receive();
        };
        self.sent = 0;
        let is_last = message.is_last;
        let fds = std::mem::take(&mut self.fds);
        self.is_closing = if std::mem::take(&mut self.has_lost_fds) {
            // Without its descriptor, SET_IRQS would disconnect the interrupt instead of connecting it.
            refuse(message, Errno::MFILE, &mut self.reply);
            is_last
        } else {
            answer(message, fds, &mut self.reply) == Next::Close
        };
        Ok(Step::Answered)
    }

    fn receive(&mut self) -> Result<Step, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_TAKEN))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(self.framer.space())];
        let received = rustix::net::recvmsg(&self.stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // Each part of a message may carry descriptors.
                let space = FDS_TAKEN - self.fds.len();
                self.fds.extend(fds.take(space));
            }
        }
        // The session refuses a message with too many descriptors; a message with fewer lost them for lack of room here.
        self.has_lost_fds |= received.flags.contains(ReturnFlags::CTRUNC) && self.fds.len() < FDS_TAKEN;
        if received.bytes == 0 {
            let is_within = self.framer.is_within_message();
            return Ok(Step::Closed(if is_within { CloseReason::LeftWithinMessage } else { CloseReason::Left }));
        }
        self.framer.filled(received.bytes);
        Ok(Step::Received)
    }

    fn is_sending(&self) -> bool {
        self.sent < self.reply.len()
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "the VMM has disconnected",
            Self::LeftWithinMessage => "the VMM has disconnected within a message",
            Self::Expelled => "the VMM broke the protocol and was disconnected",
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

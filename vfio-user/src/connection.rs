//! The socket of one client: non-blocking sending and receiving of bytes and descriptors.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown};
use serde::Serialize;

use crate::disposer::Disposer;
use crate::eventfd::{ClientEventfd, Descriptors};
use crate::framer::{Framer, Message};
use crate::session::{Next, refuse};

/// How many messages one call of [`Connection::serve`] answers, so that the caller can serve its other descriptors.
const MESSAGES_AT_ONCE: usize = 64;
/// How many descriptors one message of a Unix socket carries (Linux: SCM_MAX_FD). All of them are received: those for
/// which there is no room the host would close on this thread, which may block.
const MOST_FDS: usize = 253;
/// How long a client may leave a message unfinished, or a reply untaken. VMMs do neither for a millisecond.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing is received from a client that sends descriptors faster than they can be closed.
const DISPOSAL_INTERVAL: Duration = Duration::from_millis(10);

/// The connection of a client, served without blocking.
///
/// ```no_run
/// use std::os::unix::net::UnixListener;
///
/// use vm_watchdog_vfio_user::{Connection, Disposer, PciDevice, Session};
///
/// fn serve_one(listener: &UnixListener, device: impl PciDevice) -> std::io::Result<()> {
///     let (stream, _) = listener.accept()?;
///     let mut connection = Connection::new(stream, Disposer::spawn()?)?;
///     let mut session = Session::new(device);
///     while connection.serve(|message, fds, reply| session.answer(message, fds, reply)).is_none() {
///         // A server waits here with poll() for `connection.interest()` on `connection`, until `connection.deadline()`.
///     }
///     Ok(())
/// }
/// ```
pub struct Connection {
    stream: UnixStream,
    framer: Framer,
    disposer: Disposer,
    /// The descriptors of the message that is being received.
    fds: Descriptors,
    /// Descriptors that are not kept, and for which the disposer has no room yet.
    unwanted: Vec<OwnedFd>,
    /// The host could not pass all descriptors of that message to this process.
    has_lost_fds: bool,
    /// The reply that is being sent. Nothing is received before it is sent.
    reply: Vec<u8>,
    sent: usize,
    is_closing: bool,
    /// Since when a message is unfinished or a reply untaken.
    unfinished_since: Option<Instant>,
}

/// Why a connection is closed. Its serialized form is the name in kebab case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloseReason {
    /// The client has closed it.
    Left,
    /// The client has closed it within a message.
    LeftWithinMessage,
    /// The server closed it: the client had sent no VERSION message while another client waited.
    Silent,
    /// The server closed it: the client left a message unfinished, or a reply untaken, for 10 s.
    Stalled,
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
    /// A connection over `stream`, which becomes non-blocking. `disposer` closes what the client should not have sent.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot.
    pub fn new(stream: UnixStream, disposer: Disposer) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            framer: Framer::new(),
            disposer,
            fds: Descriptors::default(),
            unwanted: Vec::new(),
            has_lost_fds: false,
            reply: Vec::new(),
            sent: 0,
            is_closing: false,
            unfinished_since: None,
        })
    }

    /// The events to poll for before the next [`serve`](Self::serve).
    pub fn interest(&self) -> PollFlags {
        match self.is_sending() {
            true => PollFlags::OUT,
            false if self.unwanted.is_empty() => PollFlags::IN,
            false => PollFlags::empty(),
        }
    }

    /// When to call [`serve`](Self::serve) although nothing has happened: to end a connection that has stalled, or to see
    /// whether the disposer has room for its descriptors.
    pub fn deadline(&self) -> Option<Instant> {
        let stalls_at = self.stalls_at();
        if self.unwanted.is_empty() { stalls_at } else { Some(Instant::now() + DISPOSAL_INTERVAL) }
    }

    fn stalls_at(&self) -> Option<Instant> {
        self.unfinished_since.map(|since| since + MESSAGE_TIMEOUT)
    }

    /// Whether the client has closed its end. Messages that it sent before may still have to be received.
    pub fn has_hung_up(&self) -> bool {
        is_ready(self.stream.as_fd(), PollFlags::empty())
    }

    /// Whether the client has sent something that is not received.
    pub fn has_something_to_receive(&self) -> bool {
        is_ready(self.stream.as_fd(), PollFlags::IN)
    }

    /// Whether nothing is received because descriptors that the client should not have sent are still being closed.
    pub fn waits_for_disposal(&self) -> bool {
        !self.unwanted.is_empty()
    }

    /// Sends, receives and answers until it would block, or has answered 64 messages. `None` if the connection is open.
    pub fn serve(&mut self, answer: impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) -> Option<CloseReason> {
        let now = Instant::now();
        let closed = self.serve_what_there_is(answer);
        if !self.framer.is_within_message() && !self.is_sending() && self.unwanted.is_empty() {
            self.unfinished_since = None;
        } else if self.unfinished_since.is_none() {
            self.unfinished_since = Some(now);
        }
        closed.or_else(|| self.stalls_at().filter(|deadline| *deadline <= now).map(|_| CloseReason::Stalled))
    }

    fn serve_what_there_is(
        &mut self,
        mut answer: impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next,
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
    pub fn finish(&mut self, mut answer: impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) {
        if rustix::net::shutdown(&self.stream, Shutdown::Read).is_ok() {
            // Does not wait for a client that does not receive its replies.
            while self.serve(&mut answer).is_none() && !self.is_sending() {}
        }
    }

    fn step(&mut self, answer: &mut impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) -> Result<Step, Errno> {
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
        self.disposer.dispose(&mut self.unwanted);
        if !self.unwanted.is_empty() {
            return Err(Errno::AGAIN);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(self.framer.space())];
        let received = rustix::net::recvmsg(&self.stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // Each part of a message may carry descriptors.
                fds.for_each(|fd| self.keep(fd));
            }
        }
        self.disposer.dispose(&mut self.unwanted);
        self.has_lost_fds |= received.flags.contains(ReturnFlags::CTRUNC);
        if received.bytes == 0 {
            let is_within = self.framer.is_within_message();
            return Ok(Step::Closed(if is_within { CloseReason::LeftWithinMessage } else { CloseReason::Left }));
        }
        self.framer.filled(received.bytes);
        Ok(Step::Received)
    }

    /// Keeps an eventfd, and nothing else: a socket of the client's own would keep the connection open after its end.
    fn keep(&mut self, fd: OwnedFd) {
        self.fds.received += 1;
        match ClientEventfd::new(fd) {
            Ok(eventfd) => self.fds.eventfd = Some(eventfd),
            Err(fd) => self.unwanted.push(fd),
        }
    }

    fn is_sending(&self) -> bool {
        self.sent < self.reply.len()
    }
}

/// Whether one of these events, or the end of the other side, is there now.
fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "the VMM has disconnected",
            Self::LeftWithinMessage => "the VMM has disconnected within a message",
            Self::Silent => "the VMM had sent nothing while another one waited, and was disconnected",
            Self::Stalled => "the VMM left a message unfinished and was disconnected",
            Self::Expelled => "the VMM broke the protocol and was disconnected",
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // To close them here may block. A process that is sent so many ends up without descriptors, and is started anew.
        self.disposer.dispose(&mut self.unwanted);
        std::mem::take(&mut self.unwanted).into_iter().for_each(std::mem::forget);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

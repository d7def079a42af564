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
use crate::wire::MAX_MESSAGE;

/// How often one call of [`Connection::serve`] receives, so that the caller can serve its other descriptors. Each time there
/// is room for a long message, or for a hundred short ones.
const READS_AT_ONCE: usize = 16;
/// How many bytes of replies are collected before they are sent.
const REPLIES_AT_ONCE: usize = MAX_MESSAGE;
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
    /// The descriptors of a message that is not answered yet.
    fds: Descriptors,
    /// That message is the first one that ends here in the stream or later: a read ends with the bytes that descriptors came
    /// with.
    fds_at: u64,
    /// Descriptors that are not kept, and for which the disposer has no room yet.
    unwanted: Vec<OwnedFd>,
    /// The host could not pass all descriptors of that message to this process.
    has_lost_fds: bool,
    /// The reply to one message.
    reply: Vec<u8>,
    /// The replies that are being sent. Nothing is received before they are sent.
    replies: Vec<u8>,
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

/// The result of one read.
enum Received {
    /// As much as there was room for: there may be more.
    Some,
    /// All there was.
    All,
    /// The end.
    End(CloseReason),
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
            fds_at: 0,
            unwanted: Vec::new(),
            has_lost_fds: false,
            reply: Vec::new(),
            replies: Vec::new(),
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

    /// Sends, receives and answers what there is, up to a limit. `None` if the connection is open.
    ///
    /// A message costs one system call to receive and one to reply. Messages that were sent without waiting for replies are
    /// received together, and so are their replies sent.
    pub fn serve(&mut self, answer: impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) -> Option<CloseReason> {
        let now = Instant::now();
        let closed = match self.serve_what_there_is(answer) {
            Ok(closed) => closed,
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => Some(CloseReason::Left),
        };
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
    ) -> Result<Option<CloseReason>, Errno> {
        // What is left from the last time: poll() does not report a message that is already in the framer.
        self.answer_all(&mut answer)?;
        for _ in 0..READS_AT_ONCE {
            if self.is_closing {
                break;
            }
            match self.receive()? {
                Received::Some => self.answer_all(&mut answer)?,
                Received::All => {
                    self.answer_all(&mut answer)?;
                    break;
                }
                Received::End(reason) => return Ok(Some(reason)),
            }
        }
        Ok(self.is_closing.then_some(CloseReason::Expelled))
    }

    /// Answers the requests that were sent, and accepts no more: QEMU 11.1 aborts when a request is not answered.
    pub fn finish(&mut self, mut answer: impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) {
        if rustix::net::shutdown(&self.stream, Shutdown::Read).is_ok() {
            // Does not wait for a client that does not receive its replies.
            while self.serve(&mut answer).is_none() && !self.is_sending() {}
        }
    }

    /// Answers the messages in the framer, and sends the replies.
    fn answer_all(
        &mut self,
        answer: &mut impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next,
    ) -> Result<(), Errno> {
        loop {
            while self.is_sending() {
                self.sent += rustix::net::send(&self.stream, &self.replies[self.sent..], SendFlags::NOSIGNAL)?;
            }
            self.replies.clear();
            self.sent = 0;
            self.answer_some(answer);
            if !self.is_sending() {
                return Ok(());
            }
        }
    }

    fn answer_some(&mut self, answer: &mut impl FnMut(Message<'_>, Descriptors, &mut Vec<u8>) -> Next) {
        while !self.is_closing && self.replies.len() < REPLIES_AT_ONCE {
            let Some((message, end)) = self.framer.take_with_end() else {
                return;
            };
            let is_last = message.is_last;
            let has_fds = end >= self.fds_at;
            let fds = if has_fds { std::mem::take(&mut self.fds) } else { Descriptors::default() };
            let next = if has_fds && std::mem::take(&mut self.has_lost_fds) {
                // Without its descriptor, SET_IRQS would disconnect the interrupt instead of connecting it.
                refuse(message, Errno::MFILE, &mut self.reply);
                Next::Continue
            } else {
                answer(message, fds, &mut self.reply)
            };
            self.is_closing = is_last || next == Next::Close;
            self.replies.extend(&self.reply);
        }
    }

    fn receive(&mut self) -> Result<Received, Errno> {
        self.disposer.dispose(&mut self.unwanted);
        if !self.unwanted.is_empty() {
            return Err(Errno::AGAIN);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.framer.space();
        let most = room.len();
        let mut bytes = [IoSliceMut::new(room)];
        let received = rustix::net::recvmsg(&self.stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut has_fds = received.flags.contains(ReturnFlags::CTRUNC);
        self.has_lost_fds |= has_fds;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // Each part of a message may carry descriptors.
                fds.for_each(|fd| self.keep(fd));
                has_fds = true;
            }
        }
        self.disposer.dispose(&mut self.unwanted);
        if received.bytes == 0 {
            let is_within = self.framer.is_within_message();
            return Ok(Received::End(if is_within { CloseReason::LeftWithinMessage } else { CloseReason::Left }));
        }
        self.framer.filled(received.bytes);
        if has_fds {
            self.fds_at = self.framer.received();
        }
        Ok(if received.bytes < most { Received::All } else { Received::Some })
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
        self.sent < self.replies.len()
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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};

    use super::*;

    /// A message with a body of four bytes.
    fn message(id: u16) -> Vec<u8> {
        [&[id, 13].map(u16::to_ne_bytes).concat()[..], &[20_u32, 0, 0, 0].map(u32::to_ne_bytes).concat()].concat()
    }

    fn send(client: &UnixStream, bytes: &[u8], eventfds: usize) {
        let eventfds: Vec<_> = (0..eventfds).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
        let eventfds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(eventfds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&eventfds)));
        rustix::net::sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next messages: the id of each, and how many descriptors it has.
    fn next(connection: &mut Connection, messages: usize) -> Vec<(u16, usize)> {
        let mut seen = Vec::new();
        while seen.len() < messages {
            let closed = connection.serve(|message, fds, _| {
                seen.push((message.header.id, fds.received));
                Next::Continue
            });
            assert_eq!(closed, None);
        }
        seen
    }

    #[test]
    fn a_descriptor_belongs_to_the_message_that_it_was_sent_with() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server, Disposer::spawn().unwrap()).unwrap();
        for (id, eventfds) in [(1, 0), (2, 1), (3, 0), (4, 0), (5, 2), (6, 1)] {
            send(&client, &message(id), eventfds);
        }
        assert_eq!(next(&mut connection, 6), [(1, 0), (2, 1), (3, 0), (4, 0), (5, 2), (6, 1)]);

        // Sent in parts, between two others; each part has descriptors.
        let split = message(8);
        send(&client, &message(7), 0);
        for (part, eventfds) in [(&split[..3], 1), (&split[3..17], 2), (&split[17..], 0)] {
            send(&client, part, eventfds);
        }
        send(&client, &message(9), 0);
        assert_eq!(next(&mut connection, 3), [(7, 0), (8, 3), (9, 0)]);
    }

    #[test]
    fn messages_that_were_posted_together_are_received_and_answered_together() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server, Disposer::spawn().unwrap()).unwrap();
        send(&client, &(0..100).flat_map(message).collect::<Vec<_>>(), 0);
        let mut answered = 0;
        let closed = connection.serve(|_, _, reply| {
            answered += 1;
            reply.clear();
            reply.push(answered);
            Next::Continue
        });
        assert_eq!((closed, answered), (None, 100));
        let mut replies = [0; 200];
        assert_eq!(rustix::net::recv(&client, &mut replies[..], rustix::net::RecvFlags::empty()).unwrap().0, 100);
        assert!(replies[..100].iter().copied().eq(1..=100));
    }
}

//! The bytes and descriptors of one client, without ever waiting for it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown};
use serde::Serialize;
use vm_watchdog_vmm::vfio_user::{Framer, MAX_FDS, Message, Next, refuse};

/// How many messages are answered before the caller looks at its other business again.
const MESSAGES_AT_ONCE: usize = 64;
/// How many descriptors of a message are taken in: one more than it may have, to see that it has too many. The host
/// closes the rest.
const FDS_TAKEN: usize = MAX_FDS + 1;

/// A client that is connected.
pub struct Connection {
    stream: UnixStream,
    framer: Framer,
    /// What came with the message that is being received.
    fds: Vec<OwnedFd>,
    /// Something more came with it that the host could not give us.
    has_lost_fds: bool,
    /// The reply that is being sent. Nothing is read before the client has taken it.
    reply: Vec<u8>,
    sent: usize,
    is_closing: bool,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It goes on.
    Open,
    /// The client has closed it, or gone.
    Left,
    /// The client has closed it within a message.
    LeftWithinMessage,
    /// It was closed because the client broke the protocol, or is one too many.
    Expelled,
}

/// What a step has done.
enum Step {
    Received,
    Answered,
    Ended(Standing),
}

impl Connection {
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

    /// What to wait for.
    pub fn interest(&self) -> PollFlags {
        if self.is_sending() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Whether the client has closed its end, though not all of what it said may have been heard.
    pub fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Sends, receives and answers until the client has to do something, or has had its share.
    pub fn serve(&mut self, mut answer: impl FnMut(Message<'_>, Vec<OwnedFd>, &mut Vec<u8>) -> Next) -> Standing {
        let mut answers = 0;
        // A share ends after an answer and not before it: nobody calls again for a message that is here already.
        while answers < MESSAGES_AT_ONCE {
            match self.step(&mut answer) {
                Ok(Step::Received) => {}
                Ok(Step::Answered) => answers += 1,
                Ok(Step::Ended(standing)) => return standing,
                Err(Errno::AGAIN) => return Standing::Open,
                Err(Errno::INTR) => {}
                Err(_) => return Standing::Left,
            }
        }
        Standing::Open
    }

    /// Takes no more requests, and answers those that have been made: QEMU 11.1 aborts when one is not answered.
    pub fn finish(&mut self, mut answer: impl FnMut(Message<'_>, Vec<OwnedFd>, &mut Vec<u8>) -> Next) {
        if rustix::net::shutdown(&self.stream, Shutdown::Read).is_ok() {
            // The requests end now; a client that does not take its answers is not waited for.
            while self.serve(&mut answer) == Standing::Open && !self.is_sending() {}
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
            return Ok(Step::Ended(Standing::Expelled));
        }
        let Some(message) = self.framer.take() else {
            return self.receive();
        };
        self.sent = 0;
        let is_last = message.is_last;
        let fds = std::mem::take(&mut self.fds);
        self.is_closing = if std::mem::take(&mut self.has_lost_fds) {
            // Without them it would ask for something else: SET_IRQS, to be told of no interrupt any more.
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
                // A message that comes in pieces may bring some with each.
                let space = FDS_TAKEN - self.fds.len();
                self.fds.extend(fds.take(space));
            }
        }
        // Some are missing. More than a message may have are refused for that; fewer had no room in this process.
        self.has_lost_fds |= received.flags.contains(ReturnFlags::CTRUNC) && self.fds.len() < FDS_TAKEN;
        if received.bytes == 0 {
            let within = self.framer.is_within_message();
            return Ok(Step::Ended(if within { Standing::LeftWithinMessage } else { Standing::Left }));
        }
        self.framer.filled(received.bytes);
        Ok(Step::Received)
    }

    fn is_sending(&self) -> bool {
        self.sent < self.reply.len()
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "the VMM is connected",
            Self::Left => "the VMM has left",
            Self::LeftWithinMessage => "the VMM has left within a message",
            Self::Expelled => "the VMM broke the protocol and was sent away",
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

//! A vfio-user client that sends any bytes. The bits of the protocol are restated here, not imported.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::server::TIMEOUT;

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_REGION_IO_FDS: u16 = 6;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const RESET: u16 = 13;
pub const WRITE_MULTI: u16 = 15;

pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;

pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;

pub const EINVAL: u32 = 22;
pub const EBUSY: u32 = 16;
pub const EMFILE: u32 = 24;
pub const EMSGSIZE: u32 = 90;
pub const EPROTONOSUPPORT: u32 = 93;
pub const EOPNOTSUPP: u32 = 95;

/// What QEMU proposes.
pub const PROPOSAL: &[u8] = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\
    \"pgsizes\":4096,\"max_dma_maps\":65535,\"write_multiple\":true}}\0";

/// A client.
pub struct Client {
    pub stream: UnixStream,
    next_id: u16,
    is_killed: bool,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub body: Vec<u8>,
}

/// The bytes of a message.
pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = 16 + u32::try_from(body.len()).unwrap();
    with_size(id, command, size, flags, body)
}

/// The bytes of a message with any size in its header.
pub fn with_size(id: u16, command: u16, size: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_ne_bytes());
    bytes.extend(command.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// The fields of a body.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The body of a region access.
pub fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [&offset.to_ne_bytes()[..], &words(&[region, count]), data].concat()
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, next_id: 0x1000, is_killed: false }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_with_fds(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.try_send_with_fds(bytes, fds), Ok(bytes.len()));
    }

    pub fn try_send_with_fds(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        rustix::net::sendmsg(self.stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    /// The next reply, None if the server has closed the connection.
    pub fn receive(&mut self) -> Option<Reply> {
        let mut header = [0; 16];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("neither a reply nor the end: {error}"),
        }
        let u16_at = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; u32_at(4) as usize - 16];
        self.stream.read_exact(&mut body).unwrap();
        Some(Reply { id: u16_at(0), command: u16_at(2), flags: u32_at(8), error: u32_at(12), body })
    }

    /// Sends a command and returns the body of its reply, or its errno.
    pub fn ask(&mut self, command: u16, body: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask_with_fds(command, body, &[])
    }

    pub fn ask_with_fds(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<u8>, u32> {
        self.next_id = self.next_id.wrapping_add(1);
        let bytes = message(self.next_id, command, 0, body);
        if fds.is_empty() {
            self.send(&bytes)
        } else {
            self.send_with_fds(&bytes, fds)
        }
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.id, reply.command), (self.next_id, command));
        match reply.flags {
            REPLY => {
                assert_eq!(reply.error, 0);
                Ok(reply.body)
            }
            flags => {
                assert_eq!((flags, reply.body.len()), (REPLY | ERROR, 0));
                assert_ne!(reply.error, 0, "an error says why");
                Err(reply.error)
            }
        }
    }

    /// Sends a command that is not answered.
    pub fn post(&mut self, command: u16, body: &[u8]) {
        self.send(&message(0xFFFF, command, NO_REPLY, body));
    }

    pub fn negotiate(&mut self) {
        let reply = self.ask(VERSION, PROPOSAL).expect("a version");
        assert_eq!(reply[..4], [0, 0, 0, 0], "version 0.0, as proposed");
    }

    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let request = access(region, offset, count, &[]);
        let reply = self.ask(REGION_READ, &request)?;
        assert_eq!((&reply[..16], reply.len()), (&request[..], 16 + count as usize));
        Ok(reply[16..].to_vec())
    }

    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), u32> {
        let request = access(region, offset, data.len() as u32, data);
        let reply = self.ask(REGION_WRITE, &request)?;
        assert_eq!(reply, request[..16]);
        Ok(())
    }

    /// Has INTx signal this eventfd.
    pub fn connect_interrupt(&mut self, eventfd: impl AsFd) {
        const DATA_EVENTFD_ACTION_TRIGGER: u32 = 4 | 32;
        let body = words(&[20, DATA_EVENTFD_ACTION_TRIGGER, 0, 0, 1]);
        assert_eq!(self.ask_with_fds(SET_IRQS, &body, &[eventfd.as_fd()]), Ok(vec![]));
    }

    // What Linux' driver does.

    pub fn unlock(&mut self) {
        self.write(BAR0, 0x0C, &[0x80, 0]).unwrap();
        self.write(BAR0, 0x0C, &[0x86, 0]).unwrap();
    }

    pub fn ping(&mut self) {
        self.unlock();
        self.write(BAR0, 0x0C, &[0x00, 0x01]).unwrap();
    }

    /// Arms it with two stages of so many units of about a millisecond.
    pub fn arm(&mut self, units: u32) {
        for preload in [0x00, 0x04] {
            self.unlock();
            self.write(BAR0, preload, &units.to_le_bytes()).unwrap();
        }
        self.ping();
        self.write(CONFIG, 0x68, &[0x02]).unwrap();
    }

    /// RELOAD bit 9: the last reset came from the watchdog.
    pub fn timed_out(&mut self) -> bool {
        self.read(BAR0, 0x0C, 2).unwrap()[1] & 0x02 != 0
    }

    /// Closes its descriptor and does nothing else, as the end of a process does: who else has the socket keeps it open.
    pub fn kill(mut self) {
        self.is_killed = true;
    }

    pub fn is_enabled(&mut self) -> bool {
        self.read(CONFIG, 0x68, 1).unwrap()[0] & 0x02 != 0
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A process that another test has forked may have the socket open, too, until it executes its program. It may be
        // closed already.
        if !self.is_killed {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

//! The wire format: header, numbers, limits. All integers are in the byte order of the host.

use rustix::io::Errno;

/// The most data that one message may move, offered as `max_data_xfer_size`. QEMU reads the 256 bytes of configuration
/// space at once, and guests at most eight.
pub const MAX_DATA: usize = 4096;
/// The most descriptors that one message may carry, offered as `max_msg_fds`: the eventfd of an interrupt.
pub const MAX_FDS: usize = 1;
/// The longest message that is parsed: a region write of [`MAX_DATA`].
pub const MAX_MESSAGE: usize = Header::SIZE + REGION_ACCESS_SIZE + MAX_DATA;
/// The longest message whose body is skipped: the limit of a client that does not know ours.
pub(crate) const MAX_SKIPPED: usize = (1 << 20) + 4096;

/// Offset, region and count of a region access.
pub(crate) const REGION_ACCESS_SIZE: usize = 16;

/// Commands, by number.
pub(crate) mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DEVICE_RESET: u16 = 13;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// Flags of a header.
mod flag {
    pub const TYPE: u32 = 0xF;
    pub const COMMAND: u32 = 0;
    pub const REPLY: u32 = 1;
    pub const NO_REPLY: u32 = 1 << 4;
    pub const ERROR: u32 = 1 << 5;
}

/// The 16 bytes that every message begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The number of the message; the reply repeats it.
    pub id: u16,
    /// What the message asks for.
    pub command: u16,
    /// The length of the whole message.
    pub size: u32,
    /// Type, NO_REPLY, ERROR.
    pub flags: u32,
}

impl Header {
    /// The length of a header.
    pub const SIZE: usize = 16;

    pub(crate) fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, ..] = bytes;
        Self {
            id: u16::from_ne_bytes([i0, i1]),
            command: u16::from_ne_bytes([c0, c1]),
            size: u32::from_ne_bytes([s0, s1, s2, s3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        }
    }

    pub(crate) fn is_command(self) -> bool {
        self.flags & flag::TYPE == flag::COMMAND
    }

    /// Whether a flag is set that the protocol does not define for commands.
    pub(crate) fn has_unknown_flags(self) -> bool {
        self.flags & !(flag::TYPE | flag::NO_REPLY) != 0
    }

    /// Whether the sender expects a reply.
    pub(crate) fn wants_reply(self) -> bool {
        self.flags & flag::NO_REPLY == 0
    }

    /// The header of the reply to this message.
    pub(crate) fn reply(self, size: usize, outcome: Result<(), Errno>) -> [u8; Self::SIZE] {
        let (flags, errno) = match outcome {
            Ok(()) => (flag::REPLY, 0),
            Err(errno) => (flag::REPLY | flag::ERROR, errno.raw_os_error()),
        };
        let mut bytes = [0; Self::SIZE];
        bytes[0..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_ne_bytes());
        bytes[4..8].copy_from_slice(&(size as u32).to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&errno.to_ne_bytes());
        bytes
    }
}

/// Parses a body from its front. A body that is too short is EINVAL.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// A body of exactly `size` bytes.
    pub fn exactly(body: &'a [u8], size: usize) -> Result<Self, Errno> {
        if body.len() == size { Ok(Self(body)) } else { Err(Errno::INVAL) }
    }

    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_ne_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_ne_bytes)
    }

    /// The rest of the body.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*field)
    }
}

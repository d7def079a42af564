//! The conversation with one client: a message in, a reply out.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_watchdog::Watchdog;
use vm_watchdog::i6300esb::I6300esb;

use super::device::{DEVICE_FLAGS, Device, NUM_IRQS, NUM_REGIONS, Region, RegionInfo};
use super::framer::Message;
use super::interrupt::Intx;
use super::version;
use super::wire::{Fields, Header, REGION_ACCESS_SIZE, command};

/// The size of `struct vfio_device_info` and of `struct vfio_irq_info`.
const INFO_SIZE: usize = 16;
/// The size of `struct vfio_region_info`.
const REGION_INFO_SIZE: usize = 32;
const DMA_MAP_SIZE: usize = 32;
const DMA_UNMAP_SIZE: usize = 24;

/// Whether there is anything more to say to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The next message may come.
    Continue,
    /// There is no common ground: close the connection once the reply is sent.
    Close,
}

/// The conversation with one client, from its first message on.
///
/// ```
/// use vm_watchdog::i6300esb::I6300esb;
/// use vm_watchdog::{Event, Watchdog};
/// use vm_watchdog_vmm::vfio_user::{Header, Message, Next, Session};
///
/// let watchdog = Watchdog::builder("watchdog0", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// let mut session = Session::new(watchdog, None);
/// let mut reply = Vec::new();
/// let reset = Message { header: Header { command: 13, size: 16, ..Default::default() }, body: Some(&[]), is_last: false };
/// assert_eq!(session.answer(reset, Vec::new(), &mut reply), Next::Close, "it begins with VERSION");
/// assert_eq!(reply.len(), Header::SIZE, "an error");
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    device: Device,
    /// The client has sent a VERSION message that was accepted.
    is_negotiated: bool,
}

/// What is wrong with a message.
enum Fault {
    /// The client may go on.
    Refused(Errno),
    /// It may not.
    Fatal(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl Session {
    /// A new client: a power-on reset, which disarms the watchdog and keeps only WDT_TIMEOUT.
    pub fn new(watchdog: Watchdog<I6300esb>, intx: Option<Arc<Intx>>) -> Self {
        let device = Device { watchdog, intx };
        device.power_on();
        Self { device, is_negotiated: false }
    }

    /// Does what `message` asks for, and writes the whole reply to `reply`, which is left empty if none is wanted.
    pub fn answer(&mut self, message: Message<'_>, fds: Vec<OwnedFd>, reply: &mut Vec<u8>) -> Next {
        let Message { header, .. } = message;
        reply.clear();
        reply.resize(Header::SIZE, 0);
        let (outcome, next) = match self.perform(message, fds, reply) {
            Ok(()) => (Ok(()), Next::Continue),
            Err(Fault::Refused(errno)) => (Err(errno), Next::Continue),
            Err(Fault::Fatal(errno)) => (Err(errno), Next::Close),
        };
        finish(header, outcome, reply);
        next
    }

    fn perform(&mut self, message: Message<'_>, fds: Vec<OwnedFd>, reply: &mut Vec<u8>) -> Result<(), Fault> {
        let Message { header, body, is_last } = message;
        if is_last || !header.is_command() {
            return Err(Fault::Fatal(Errno::INVAL));
        }
        if !self.is_negotiated {
            // Whatever is wrong with the first message, there is no telling what protocol the client speaks.
            return self.negotiate(header, body, &fds, reply).map_err(Fault::Fatal);
        }
        if header.has_unknown_flags() {
            return Err(Errno::INVAL.into());
        }
        let body = body.ok_or(Errno::MSGSIZE)?;
        let takes_fds = matches!(header.command, command::DMA_MAP | command::DEVICE_SET_IRQS);
        if !fds.is_empty() && !takes_fds {
            return Err(Errno::INVAL.into());
        }
        match header.command {
            command::DMA_MAP => dma_map(body, fds)?,
            command::DMA_UNMAP => dma_unmap(body, reply)?,
            command::DEVICE_GET_INFO => device_info(body, reply)?,
            command::DEVICE_GET_REGION_INFO => region_info(body, reply)?,
            command::DEVICE_GET_IRQ_INFO => self.irq_info(body, reply)?,
            command::DEVICE_SET_IRQS => self.device.set_irqs(body, fds)?,
            command::REGION_READ => self.region_read(body, reply)?,
            command::REGION_WRITE => self.region_write(body, reply)?,
            command::DEVICE_RESET => self.reset(body)?,
            command::VERSION => return Err(Errno::INVAL.into()),
            _ => return Err(Errno::OPNOTSUPP.into()),
        }
        Ok(())
    }

    fn negotiate(
        &mut self,
        header: Header,
        body: Option<&[u8]>,
        fds: &[OwnedFd],
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        if header.command != command::VERSION || header.has_unknown_flags() || !fds.is_empty() {
            return Err(Errno::INVAL);
        }
        reply.extend(version::negotiate(body.ok_or(Errno::MSGSIZE)?)?);
        self.is_negotiated = true;
        Ok(())
    }

    fn irq_info(&self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let index = info_request(body, INFO_SIZE)?;
        let info = self.device.irq_info(index)?;
        put(reply, [INFO_SIZE as u32, info.flags, index, info.count]);
        Ok(())
    }

    fn region_read(&self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::exactly(body, REGION_ACCESS_SIZE)?;
        let (offset, index, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let (region, length) = Region::accessed(index, offset, count)?;
        reply.extend(body);
        let start = reply.len();
        reply.resize(start + length, 0);
        self.device.read(region, offset, &mut reply[start..]);
        Ok(())
    }

    fn region_write(&self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::new(body);
        let (offset, index, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let data = fields.rest();
        let (region, length) = Region::accessed(index, offset, count)?;
        if data.len() != length {
            return Err(Errno::INVAL);
        }
        self.device.write(region, offset, data);
        reply.extend(&body[..REGION_ACCESS_SIZE]);
        Ok(())
    }

    fn reset(&self, body: &[u8]) -> Result<(), Errno> {
        Fields::exactly(body, 0)?;
        self.device.watchdog.reset();
        Ok(())
    }
}

/// The client has gone: the VM that it had is no more, so nothing of it may fire.
impl Drop for Session {
    fn drop(&mut self) {
        self.device.power_on();
    }
}

/// The answer to a message that nobody looks into, as of a client that is one too many.
pub fn refuse(message: Message<'_>, errno: Errno, reply: &mut Vec<u8>) {
    reply.clear();
    reply.resize(Header::SIZE, 0);
    finish(message.header, Err(errno), reply);
}

/// Puts the header in front of a reply, or drops the body where there is an error, or all where nobody listens.
fn finish(header: Header, outcome: Result<(), Errno>, reply: &mut Vec<u8>) {
    if !header.wants_reply() {
        reply.clear();
        return;
    }
    if outcome.is_err() {
        reply.truncate(Header::SIZE);
    }
    let bytes = header.reply(reply.len(), outcome);
    reply[..Header::SIZE].copy_from_slice(&bytes);
}

/// The device has no DMA; what is offered is accepted and not used.
fn dma_map(body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
    const READABLE_WRITABLE: u32 = 0b11;
    let mut fields = Fields::exactly(body, DMA_MAP_SIZE)?;
    let (argsz, flags, _offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
    let (address, size) = (fields.u64()?, fields.u64()?);
    let is_range = size > 0 && address.checked_add(size - 1).is_some();
    if (argsz as usize) < DMA_MAP_SIZE || flags & !READABLE_WRITABLE != 0 || !is_range || fds.len() > 1 {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Answered with the request, as the protocol wants it.
fn dma_unmap(body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    const UNMAP_ALL: u32 = 1 << 2;
    let mut fields = Fields::exactly(body, DMA_UNMAP_SIZE)?;
    let (argsz, flags) = (fields.u32()?, fields.u32()?);
    // The other flag asks for dirty pages: nothing here makes any dirty, but nobody keeps a map of them either.
    if (argsz as usize) < DMA_UNMAP_SIZE || flags & !UNMAP_ALL != 0 {
        return Err(Errno::INVAL);
    }
    reply.extend(body);
    Ok(())
}

fn device_info(body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    info_request(body, INFO_SIZE)?;
    put(reply, [INFO_SIZE as u32, DEVICE_FLAGS, NUM_REGIONS, NUM_IRQS]);
    Ok(())
}

fn region_info(body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    let index = info_request(body, REGION_INFO_SIZE)?;
    let info = RegionInfo::of(index)?;
    put(reply, [REGION_INFO_SIZE as u32, info.flags, index, 0]);
    reply.extend([info.size, 0].map(u64::to_ne_bytes).concat());
    Ok(())
}

/// Takes the index out of a request for information, whose answer has the same size.
fn info_request(body: &[u8], size: usize) -> Result<u32, Errno> {
    let mut fields = Fields::exactly(body, size)?;
    let (argsz, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
    if (argsz as usize) < size || flags != 0 {
        return Err(Errno::INVAL);
    }
    Ok(index)
}

fn put(reply: &mut Vec<u8>, words: [u32; 4]) {
    reply.extend(words.map(u32::to_ne_bytes).concat());
}

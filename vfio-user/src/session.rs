//! The session with one client: a message in, a reply out.

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_DMA_UNMAP_FLAG_ALL, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
};

use crate::device::{self, IrqInfo, PciDevice, Region, RegionInfo};
use crate::eventfd::Descriptors;
use crate::framer::Message;
use crate::migration::{Migratable, Migration};
use crate::version;
use crate::wire::{Fields, Header, REGION_ACCESS_SIZE, command};

/// The size of `struct vfio_device_info` and of `struct vfio_irq_info`.
const INFO_SIZE: usize = 16;
/// The size of `struct vfio_region_info`.
const REGION_INFO_SIZE: usize = 32;
const DMA_MAP_SIZE: usize = 32;
const DMA_UNMAP_SIZE: usize = 24;
const DEVICE_FLAGS: u32 = VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI;

/// Whether the session with a client continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The client may send its next message.
    Continue,
    /// The client broke the protocol: close the connection once the reply is sent.
    Close,
}

/// The session with one client, from its first message on.
///
/// Its begin and its end are a power-on reset of the device.
///
/// ```
/// # use vm_watchdog_vfio_user::{BARS, Intx, PciDevice};
/// # struct Device;
/// # impl PciDevice for Device {
/// #     fn bar_sizes(&self) -> [u64; BARS] { [0; BARS] }
/// #     fn read_bar(&mut self, _: usize, _: u64, _: &mut [u8]) {}
/// #     fn write_bar(&mut self, _: usize, _: u64, _: &[u8]) {}
/// #     fn read_config(&mut self, _: u16, data: &mut [u8]) { data.fill(0) }
/// #     fn write_config(&mut self, _: u16, _: &[u8]) {}
/// #     fn reset(&mut self) {}
/// #     fn intx(&self) -> Option<&Intx> { None }
/// # }
/// use vm_watchdog_vfio_user::{Descriptors, Header, Message, Next, Session};
///
/// let mut session = Session::new(Device);
/// let mut reply = Vec::new();
/// let reset = Message { header: Header { command: 13, size: 16, ..Default::default() }, body: Some(&[]), is_last: false };
/// assert_eq!(session.answer(reset, Descriptors::default(), &mut reply), Next::Close, "VERSION comes first");
/// assert_eq!(reply.len(), Header::SIZE, "an error");
/// ```
#[derive(Debug)]
pub struct Session<D: PciDevice> {
    device: D,
    /// The client has sent a VERSION message that was accepted.
    is_negotiated: bool,
    migration: Migration,
}

/// What is wrong with a message.
enum Fault {
    /// The session continues.
    Refused(Errno),
    /// The session ends.
    Fatal(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl<D: PciDevice> Session<D> {
    /// A session with a new client. Resets the device.
    pub fn new(mut device: D) -> Self {
        device::power_on(&mut device);
        Self { device, is_negotiated: false, migration: Migration::default() }
    }

    /// Whether the client has agreed on the version.
    pub fn is_negotiated(&self) -> bool {
        self.is_negotiated
    }

    /// Performs `message` and writes the whole reply to `reply`, which is left empty if the client wants none.
    pub fn answer(&mut self, message: Message<'_>, fds: Descriptors, reply: &mut Vec<u8>) -> Next {
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

    fn perform(&mut self, message: Message<'_>, fds: Descriptors, reply: &mut Vec<u8>) -> Result<(), Fault> {
        let Message { header, body, is_last } = message;
        if is_last || !header.is_command() {
            return Err(Fault::Fatal(Errno::INVAL));
        }
        if !self.is_negotiated {
            // An error in the first message means that the client may speak another protocol.
            return self.negotiate(header, body, &fds, reply).map_err(Fault::Fatal);
        }
        if header.has_unknown_flags() {
            return Err(Errno::INVAL.into());
        }
        let body = body.ok_or(Errno::MSGSIZE)?;
        let takes_fds = matches!(header.command, command::DMA_MAP | command::DEVICE_SET_IRQS);
        if fds.received > 0 && !takes_fds {
            return Err(Errno::INVAL.into());
        }
        match header.command {
            command::DMA_MAP => dma_map(body, fds)?,
            command::DMA_UNMAP => dma_unmap(body, reply)?,
            command::DEVICE_GET_INFO => device_info(body, reply)?,
            command::DEVICE_GET_REGION_INFO => region_info(&self.device, body, reply)?,
            command::DEVICE_GET_IRQ_INFO => irq_info(&self.device, body, reply)?,
            command::DEVICE_SET_IRQS => device::set_irqs(&self.device, body, fds)?,
            command::REGION_READ => self.region_read(body, reply)?,
            command::REGION_WRITE => self.region_write(body, reply)?,
            command::DEVICE_RESET => self.reset(body)?,
            command::DEVICE_FEATURE => self.migration.feature(migratable(&mut self.device)?, body, reply)?,
            command::MIG_DATA_READ => self.migration.read(body, reply)?,
            command::MIG_DATA_WRITE => self.migration.write(body)?,
            command::VERSION => return Err(Errno::INVAL.into()),
            _ => return Err(Errno::OPNOTSUPP.into()),
        }
        Ok(())
    }

    fn negotiate(
        &mut self,
        header: Header,
        body: Option<&[u8]>,
        fds: &Descriptors,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        if header.command != command::VERSION || header.has_unknown_flags() || fds.received > 0 {
            return Err(Errno::INVAL);
        }
        reply.extend(version::negotiate(body.ok_or(Errno::MSGSIZE)?)?);
        self.is_negotiated = true;
        Ok(())
    }

    fn region_read(&mut self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::exactly(body, REGION_ACCESS_SIZE)?;
        let (offset, index, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let (region, length) = Region::accessed(&self.device, index, offset, count)?;
        reply.extend(body);
        let start = reply.len();
        reply.resize(start + length, 0);
        region.read(&mut self.device, offset, &mut reply[start..]);
        Ok(())
    }

    fn region_write(&mut self, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut fields = Fields::new(body);
        let (offset, index, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let data = fields.rest();
        let (region, length) = Region::accessed(&self.device, index, offset, count)?;
        if data.len() != length {
            return Err(Errno::INVAL);
        }
        region.write(&mut self.device, offset, data);
        reply.extend(&body[..REGION_ACCESS_SIZE]);
        Ok(())
    }

    fn reset(&mut self, body: &[u8]) -> Result<(), Errno> {
        Fields::exactly(body, 0)?;
        self.device.reset();
        self.migration.reset(self.device.migratable());
        Ok(())
    }
}

/// The client has gone and its VM with it, so the device is reset and its interrupts disconnected.
impl<D: PciDevice> Drop for Session<D> {
    fn drop(&mut self) {
        device::power_on(&mut self.device);
        self.migration.reset(self.device.migratable());
    }
}

/// An error reply without parsing the message, for a surplus client.
pub fn refuse(message: Message<'_>, errno: Errno, reply: &mut Vec<u8>) {
    reply.clear();
    reply.resize(Header::SIZE, 0);
    finish(message.header, Err(errno), reply);
}

/// Writes the header of a reply. An error has no body, and a client that wants no reply gets none.
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

/// The device, if it can be migrated.
fn migratable(device: &mut impl PciDevice) -> Result<&mut dyn Migratable, Errno> {
    device.migratable().ok_or(Errno::OPNOTSUPP)
}

/// Accepts a range for DMA without using it: the device has no DMA.
fn dma_map(body: &[u8], fds: Descriptors) -> Result<(), Errno> {
    const READABLE_WRITABLE: u32 = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    let mut fields = Fields::exactly(body, DMA_MAP_SIZE)?;
    let (argsz, flags, _offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
    let (address, size) = (fields.u64()?, fields.u64()?);
    let is_range = size > 0 && address.checked_add(size - 1).is_some();
    if (argsz as usize) < DMA_MAP_SIZE || flags & !READABLE_WRITABLE != 0 || !is_range || fds.received > 1 {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Answers with the request, as the protocol requires.
fn dma_unmap(body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    let mut fields = Fields::exactly(body, DMA_UNMAP_SIZE)?;
    let (argsz, flags) = (fields.u32()?, fields.u32()?);
    // The other flags ask for a bitmap of dirty pages, which is not kept, or exist only in the kernel's VFIO.
    if (argsz as usize) < DMA_UNMAP_SIZE || flags & !VFIO_DMA_UNMAP_FLAG_ALL != 0 {
        return Err(Errno::INVAL);
    }
    reply.extend(body);
    Ok(())
}

fn device_info(body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    info_request(body, INFO_SIZE)?;
    put(reply, [INFO_SIZE as u32, DEVICE_FLAGS, VFIO_PCI_NUM_REGIONS, VFIO_PCI_NUM_IRQS]);
    Ok(())
}

fn irq_info(device: &impl PciDevice, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    let index = info_request(body, INFO_SIZE)?;
    let info = IrqInfo::of(device, index)?;
    put(reply, [INFO_SIZE as u32, info.flags, index, info.count]);
    Ok(())
}

fn region_info(device: &impl PciDevice, body: &[u8], reply: &mut Vec<u8>) -> Result<(), Errno> {
    let index = info_request(body, REGION_INFO_SIZE)?;
    let info = RegionInfo::of(device, index)?;
    put(reply, [REGION_INFO_SIZE as u32, info.flags, index, 0]);
    reply.extend([info.size, 0].map(u64::to_ne_bytes).concat());
    Ok(())
}

/// Parses a request for information and returns its index. The answer has the size of the request.
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

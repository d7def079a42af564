//! What a device has to offer, and how VFIO names its regions and interrupts.

use std::io;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use crate::eventfd::{ClientEventfd, Descriptors};
use crate::interrupt::Intx;
use crate::migration::Migratable;
use crate::msi::Msi;
use crate::wire::{Fields, MAX_DATA};

/// How many BARs a PCI device can have.
pub const BARS: usize = 6;

/// The size of the configuration space of a conventional PCI device.
const CONFIG_SPACE_SIZE: u64 = 256;
/// As far as a guest reaches through a PCI Express host bridge, whatever size the function has.
const REACHABLE_CONFIG_SPACE: u64 = 4096;

/// A PCI device that a [`Session`](crate::Session) presents to a client.
///
/// A guest chooses offset and width of each access. An access begins inside the region, and may end behind it: what
/// nothing answers reads all ones, and a write there is ignored.
///
/// ```
/// use vm_watchdog_vfio_user::{BARS, Intx, PciDevice, Session};
///
/// /// Eight bytes of scratch memory in BAR0.
/// struct Scratch([u8; 8]);
///
/// impl PciDevice for Scratch {
///     fn bar_sizes(&self) -> [u64; BARS] {
///         [8, 0, 0, 0, 0, 0]
///     }
///     fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
///         data.fill(0xFF);
///         data.iter_mut().zip(&self.0[offset as usize..]).for_each(|(to, from)| *to = *from);
///     }
///     fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
///         self.0[offset as usize..].iter_mut().zip(data).for_each(|(to, from)| *to = *from);
///     }
///     fn read_config(&mut self, offset: u16, data: &mut [u8]) {
///         let identity = [0x86, 0x80, 0x34, 0x12]; // vendor 8086h, device 1234h; the rest reads zero
///         let from = identity.iter().chain(std::iter::repeat(&0)).skip(offset.into());
///         data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
///     }
///     fn write_config(&mut self, _offset: u16, _data: &[u8]) {}
///     fn reset(&mut self) {
///         self.0 = [0; 8];
///     }
///     fn intx(&self) -> Option<&Intx> {
///         None
///     }
/// }
///
/// let session = Session::new(Scratch([0; 8]));
/// # drop(session);
/// ```
pub trait PciDevice {
    /// The size of each BAR in bytes; 0 for a BAR that the device does not have. The sizes do not change.
    fn bar_sizes(&self) -> [u64; BARS];

    /// Reads from a BAR, beginning at `offset`, which is less than the size of the BAR.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes to a BAR, beginning at `offset`, which is less than the size of the BAR.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// Reads configuration space, beginning at `offset`, which is less than 4096 even for a conventional PCI device.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, beginning at `offset`, which is less than 4096 even for a conventional PCI device.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// Resets the device, as at power-on.
    fn reset(&mut self);

    /// The line of the interrupt pin; `None` if the device has no pin. This does not change.
    fn intx(&self) -> Option<&Intx>;

    /// The message of the MSI capability; `None` if the device has no such capability. This does not change.
    fn msi(&self) -> Option<&Msi> {
        None
    }

    /// The device as its client migrates it; `None` if it cannot be migrated. This does not change.
    fn migratable(&mut self) -> Option<&mut dyn Migratable> {
        None
    }
}

/// A region that the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    Bar(usize),
    Config,
}

/// The answer to GET_REGION_INFO.
pub(crate) struct RegionInfo {
    pub flags: u32,
    pub size: u64,
}

/// The answer to GET_IRQ_INFO.
pub(crate) struct IrqInfo {
    pub flags: u32,
    pub count: u32,
}

impl Region {
    fn from_index(device: &impl PciDevice, index: u32) -> Option<Self> {
        if index == VFIO_PCI_CONFIG_REGION_INDEX {
            return Some(Self::Config);
        }
        // VFIO_PCI_BAR0_REGION_INDEX is 0, and the other BARs follow.
        let bar = usize::try_from(index).ok()?;
        device.bar_sizes().get(bar).filter(|size| **size > 0).map(|_| Self::Bar(bar))
    }

    /// The region that an access starts in, and how many bytes the access moves.
    pub fn accessed(device: &impl PciDevice, index: u32, offset: u64, count: u32) -> Result<(Self, usize), Errno> {
        let region = Self::from_index(device, index).ok_or(Errno::INVAL)?;
        let end = match region {
            Self::Bar(bar) => device.bar_sizes()[bar],
            Self::Config => REACHABLE_CONFIG_SPACE,
        };
        let count = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        if offset < end && (1..=MAX_DATA).contains(&count) { Ok((region, count)) } else { Err(Errno::INVAL) }
    }

    /// Reads; `offset` was checked by [`Region::accessed`].
    pub fn read(self, device: &mut impl PciDevice, offset: u64, data: &mut [u8]) {
        match self {
            Self::Bar(bar) => device.read_bar(bar, offset, data),
            Self::Config => device.read_config(config_offset(offset), data),
        }
    }

    /// Writes; `offset` was checked by [`Region::accessed`].
    pub fn write(self, device: &mut impl PciDevice, offset: u64, data: &[u8]) {
        match self {
            Self::Bar(bar) => device.write_bar(bar, offset, data),
            Self::Config => device.write_config(config_offset(offset), data),
        }
    }
}

impl RegionInfo {
    pub fn of(device: &impl PciDevice, index: u32) -> Result<Self, Errno> {
        if index >= VFIO_PCI_NUM_REGIONS {
            return Err(Errno::INVAL);
        }
        let size = match Region::from_index(device, index) {
            Some(Region::Bar(bar)) => device.bar_sizes()[bar],
            Some(Region::Config) => CONFIG_SPACE_SIZE,
            None => return Ok(Self { flags: 0, size: 0 }),
        };
        Ok(Self { flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE, size })
    }
}

impl IrqInfo {
    pub fn of(device: &impl PciDevice, index: u32) -> Result<Self, Errno> {
        if index >= VFIO_PCI_NUM_IRQS {
            return Err(Errno::INVAL);
        }
        if index == VFIO_PCI_INTX_IRQ_INDEX && device.intx().is_some() {
            let flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
            return Ok(Self { flags, count: 1 });
        }
        if index == VFIO_PCI_MSI_IRQ_INDEX && device.msi().is_some() {
            return Ok(Self { flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE, count: 1 });
        }
        Ok(Self { flags: 0, count: 0 })
    }
}

/// An interrupt that the device has.
enum Interrupt<'a> {
    Intx(&'a Intx),
    Msi(&'a Msi),
}

impl<'a> Interrupt<'a> {
    fn from_index(device: &'a impl PciDevice, index: u32) -> Option<Self> {
        match index {
            VFIO_PCI_INTX_IRQ_INDEX => device.intx().map(Self::Intx),
            VFIO_PCI_MSI_IRQ_INDEX => device.msi().map(Self::Msi),
            _ => None,
        }
    }

    fn connect(&self, eventfd: Option<ClientEventfd>) -> Result<(), Errno> {
        match self {
            Self::Intx(intx) => intx.connect(eventfd),
            Self::Msi(msi) => msi.connect(eventfd),
        }
        .map_err(refused)
    }
}

/// SET_IRQS with its body and descriptors. Its flags are exactly one of data and one of action.
pub(crate) fn set_irqs(device: &impl PciDevice, body: &[u8], fds: Descriptors) -> Result<(), Errno> {
    let mut fields = Fields::new(body);
    let [argsz, flags, index, start, count] =
        [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
    let data = fields.rest();
    if (argsz as usize) < body.len() || index >= VFIO_PCI_NUM_IRQS {
        return Err(Errno::INVAL);
    }
    let is_disable = flags == VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER && (start, count) == (0, 0);
    let interrupt = Interrupt::from_index(device, index);
    if is_disable && data.is_empty() && fds.received == 0 {
        // An interrupt that the device does not have is already disabled.
        return interrupt.map_or(Ok(()), |interrupt| interrupt.connect(None));
    }
    let interrupt = interrupt.ok_or(Errno::INVAL)?;
    if (start, count) != (0, 1) {
        return Err(Errno::INVAL);
    }
    let action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    match (flags & !action, data, fds.received) {
        (VFIO_IRQ_SET_DATA_EVENTFD, [], 0..=1) if action == VFIO_IRQ_SET_ACTION_TRIGGER => {
            // A descriptor that is no eventfd was not kept.
            let is_eventfd = fds.eventfd.is_some() == (fds.received == 1);
            return if is_eventfd { interrupt.connect(fds.eventfd) } else { Err(Errno::INVAL) };
        }
        // With an eventfd to mask and unmask, QEMU under KVM would save a round trip. It works without.
        (VFIO_IRQ_SET_DATA_EVENTFD, [], 0..=1) if action.is_power_of_two() => return Err(Errno::OPNOTSUPP),
        (VFIO_IRQ_SET_DATA_NONE, [], 0) | (VFIO_IRQ_SET_DATA_BOOL, [1], 0) => {}
        (VFIO_IRQ_SET_DATA_BOOL, [0], 0) if action.is_power_of_two() => return Ok(()),
        _ => return Err(Errno::INVAL),
    }
    match (interrupt, action) {
        (Interrupt::Intx(intx), VFIO_IRQ_SET_ACTION_MASK) => intx.mask(),
        (Interrupt::Intx(intx), VFIO_IRQ_SET_ACTION_UNMASK) => intx.unmask().map_err(refused)?,
        (Interrupt::Intx(intx), VFIO_IRQ_SET_ACTION_TRIGGER) => intx.trigger().map_err(refused)?,
        (Interrupt::Msi(msi), VFIO_IRQ_SET_ACTION_TRIGGER) => msi.trigger().map_err(refused)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(())
}

/// The errno of an interrupt that is not signalled.
fn refused(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::BUSY)
}

/// Resets the device and disconnects its interrupts, as at power-on.
pub(crate) fn power_on(device: &mut impl PciDevice) {
    device.reset();
    for index in [VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX] {
        // After a reset the line is low, so disconnecting it signals nothing and cannot fail.
        let _ = Interrupt::from_index(device, index).map(|interrupt| interrupt.connect(None));
    }
}

/// [`Region::accessed`] accepts no offset that does not fit.
fn config_offset(offset: u64) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}

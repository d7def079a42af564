//! The watchdog as a VFIO PCI device: its regions, its interrupts, and what a client may do to them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_watchdog::Watchdog;
use vm_watchdog::i6300esb::{BAR0_SIZE, CONFIG_SPACE_SIZE, I6300esb};

use super::interrupt::Intx;
use super::wire::{Fields, MAX_DATA};

/// VFIO_PCI_NUM_REGIONS: six BARs, ROM, configuration space, VGA.
pub(super) const NUM_REGIONS: u32 = 9;
/// VFIO_PCI_NUM_IRQS: INTx, MSI, MSI-X, error, request.
pub(super) const NUM_IRQS: u32 = 5;
/// VFIO_DEVICE_FLAGS_RESET and VFIO_DEVICE_FLAGS_PCI.
pub(super) const DEVICE_FLAGS: u32 = 1 << 0 | 1 << 1;

const INTX: u32 = 0;
/// As far as a guest reaches through a PCI Express host bridge, whatever size the function has.
const REACHABLE_CONFIG_SPACE: u64 = 4096;
/// VFIO_REGION_INFO_FLAG_READ and VFIO_REGION_INFO_FLAG_WRITE.
const REGION_READ_WRITE: u32 = 1 << 0 | 1 << 1;
/// VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE and VFIO_IRQ_INFO_AUTOMASKED.
const IRQ_EVENTFD_MASKABLE_AUTOMASKED: u32 = 1 << 0 | 1 << 1 | 1 << 2;

/// Flags of SET_IRQS: exactly one of data and one of action.
mod set_irqs {
    pub const DATA_NONE: u32 = 1 << 0;
    pub const DATA_BOOL: u32 = 1 << 1;
    pub const DATA_EVENTFD: u32 = 1 << 2;
    pub const ACTION_MASK: u32 = 1 << 3;
    pub const ACTION_UNMASK: u32 = 1 << 4;
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// A watchdog, and the line of its interrupt pin if it has one.
#[derive(Debug)]
pub(super) struct Device {
    pub watchdog: Watchdog<I6300esb>,
    pub intx: Option<Arc<Intx>>,
}

/// A region that the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Bar0,
    Config,
}

/// What GET_REGION_INFO says of a region.
pub(super) struct RegionInfo {
    pub flags: u32,
    pub size: u64,
}

/// What GET_IRQ_INFO says of an interrupt.
pub(super) struct IrqInfo {
    pub flags: u32,
    pub count: u32,
}

impl Region {
    fn from_index(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Bar0),
            7 => Some(Self::Config),
            _ => None,
        }
    }

    /// The region that an access starts in, if it moves something and not too much.
    pub fn accessed(index: u32, offset: u64, count: u32) -> Result<(Self, usize), Errno> {
        let region = Self::from_index(index).ok_or(Errno::INVAL)?;
        let end = match region {
            Self::Bar0 => BAR0_SIZE.into(),
            Self::Config => REACHABLE_CONFIG_SPACE,
        };
        let count = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        if offset < end && (1..=MAX_DATA).contains(&count) { Ok((region, count)) } else { Err(Errno::INVAL) }
    }
}

impl RegionInfo {
    pub fn of(index: u32) -> Result<Self, Errno> {
        if index >= NUM_REGIONS {
            return Err(Errno::INVAL);
        }
        Ok(match Region::from_index(index) {
            Some(Region::Bar0) => Self { flags: REGION_READ_WRITE, size: BAR0_SIZE.into() },
            Some(Region::Config) => Self { flags: REGION_READ_WRITE, size: CONFIG_SPACE_SIZE.into() },
            None => Self { flags: 0, size: 0 },
        })
    }
}

impl Device {
    /// Reads from a region; `offset` was checked by [`Region::accessed`].
    pub fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            Region::Bar0 => self.watchdog.read_bar(offset, data),
            Region::Config => self.watchdog.read_config(config_offset(offset), data),
        }
    }

    /// Writes to a region; `offset` was checked by [`Region::accessed`].
    pub fn write(&self, region: Region, offset: u64, data: &[u8]) {
        match region {
            Region::Bar0 => self.watchdog.write_bar(offset, data),
            Region::Config => self.watchdog.write_config(config_offset(offset), data),
        }
    }

    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, Errno> {
        match (index, &self.intx) {
            (INTX, Some(_)) => Ok(IrqInfo { flags: IRQ_EVENTFD_MASKABLE_AUTOMASKED, count: 1 }),
            (0..NUM_IRQS, _) => Ok(IrqInfo { flags: 0, count: 0 }),
            _ => Err(Errno::INVAL),
        }
    }

    /// SET_IRQS with its body and descriptors.
    pub fn set_irqs(&self, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let mut fields = Fields::new(body);
        let [argsz, flags, index, start, count] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let data = fields.rest();
        if (argsz as usize) < body.len() || index >= NUM_IRQS {
            return Err(Errno::INVAL);
        }
        let is_disable = flags == set_irqs::DATA_NONE | set_irqs::ACTION_TRIGGER && (start, count) == (0, 0);
        if is_disable && data.is_empty() && fds.is_empty() {
            // For an interrupt that the device does not have there is nothing to disable.
            return if index == INTX { self.connect_intx(None) } else { Ok(()) };
        }
        let intx = self.intx.as_ref().filter(|_| index == INTX).ok_or(Errno::INVAL)?;
        if (start, count) != (0, 1) {
            return Err(Errno::INVAL);
        }
        let action = flags & (set_irqs::ACTION_MASK | set_irqs::ACTION_UNMASK | set_irqs::ACTION_TRIGGER);
        match (flags & !action, data, fds.len()) {
            (set_irqs::DATA_EVENTFD, [], 0..=1) if action == set_irqs::ACTION_TRIGGER => {
                return intx.connect(fds.into_iter().next());
            }
            // An eventfd for masking and unmasking would save QEMU under KVM a round trip; it does without.
            (set_irqs::DATA_EVENTFD, [], 0..=1) if action.is_power_of_two() => return Err(Errno::OPNOTSUPP),
            (set_irqs::DATA_NONE, [], 0) | (set_irqs::DATA_BOOL, [1], 0) => {}
            (set_irqs::DATA_BOOL, [0], 0) if action.is_power_of_two() => return Ok(()),
            _ => return Err(Errno::INVAL),
        }
        match action {
            set_irqs::ACTION_MASK => intx.mask(),
            set_irqs::ACTION_UNMASK => intx.unmask()?,
            set_irqs::ACTION_TRIGGER => intx.trigger()?,
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// What power-on does: everything is forgotten but WDT_TIMEOUT.
    pub fn power_on(&self) {
        self.watchdog.reset();
        // Nothing is asserted after a reset, so there is nobody to signal.
        let _ = self.connect_intx(None);
    }

    fn connect_intx(&self, eventfd: Option<OwnedFd>) -> Result<(), Errno> {
        self.intx.as_ref().map_or(Ok(()), |intx| intx.connect(eventfd))
    }
}

/// [`Region::accessed`] lets nothing through that does not fit.
fn config_offset(offset: u64) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}

//! The i6300esb as a device on alioth's PCI bus.

use std::sync::Arc;

use alioth::device::{self, Pause};
use alioth::mem::emulated::{Action, Mmio};
use alioth::mem::{self, MemRegion, MemRegionType};
use alioth::pci::cap::PciCapList;
use alioth::pci::config::{CommonHeader, DeviceHeader, EmulatedConfig, EmulatedHeader, PciConfig};
use alioth::pci::{self, Pci, PciBar};
use vm_watchdog::Watchdog;
use vm_watchdog::i6300esb::{BAR0_SIZE, CLASS_CODE, DEVICE_ID, I6300esb, VENDOR_ID};

/// A PCI function for [`Machine::add_pci_dev`](alioth::vm::Machine::add_pci_dev).
#[derive(Debug)]
pub struct PciWatchdog {
    config: Config,
}

/// Configuration space: alioth has the header with BAR0, the watchdog has the rest, and sees what the guest writes to the header.
#[derive(Debug)]
struct Config {
    header: EmulatedConfig,
    watchdog: Watchdog<I6300esb>,
}

/// The registers in BAR0.
#[derive(Debug)]
struct Bar0(Watchdog<I6300esb>);

impl PciWatchdog {
    /// A function with the registers of `watchdog`.
    pub fn new(watchdog: Watchdog<I6300esb>) -> Self {
        let [prog_if, subclass, class, _] = CLASS_CODE.to_le_bytes();
        let common =
            CommonHeader { vendor: VENDOR_ID, device: DEVICE_ID, class, subclass, prog_if, ..Default::default() };
        let bar0 = MemRegion::with_emulated(Arc::new(Bar0(watchdog.clone())), MemRegionType::Hidden);
        let mut bars = [const { PciBar::Empty }; 6];
        bars[0] = PciBar::Mem(Arc::new(bar0));
        let header = DeviceHeader { common, ..Default::default() };
        let header = EmulatedConfig::new_device(header, bars, PciCapList::new());
        Self { config: Config { header, watchdog } }
    }
}

impl Pci for PciWatchdog {
    fn name(&self) -> &str {
        self.config.watchdog.id()
    }

    fn config(&self) -> &dyn PciConfig {
        &self.config
    }

    fn reset(&self) -> pci::Result<()> {
        self.config.watchdog.reset();
        Ok(())
    }
}

impl Pause for PciWatchdog {
    fn pause(&self) -> device::Result<()> {
        self.config.watchdog.clock().pause();
        Ok(())
    }

    fn resume(&self) -> device::Result<()> {
        self.config.watchdog.clock().resume();
        Ok(())
    }
}

impl PciConfig for Config {
    fn get_header(&self) -> &EmulatedHeader {
        self.header.get_header()
    }

    fn reset(&self) -> pci::Result<()> {
        self.header.reset()
    }
}

impl Mmio for Config {
    fn size(&self) -> u64 {
        self.header.size()
    }

    fn read(&self, offset: u64, size: u8) -> mem::Result<u64> {
        let mut bytes = self.header.read(offset, size)?.to_le_bytes();
        self.watchdog.complete_config_read(offset as u16, &mut bytes[..size.into()]);
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> mem::Result<Action> {
        self.watchdog.write_config(offset as u16, &value.to_le_bytes()[..size.into()]);
        self.header.write(offset, size, value)
    }
}

impl Mmio for Bar0 {
    fn size(&self) -> u64 {
        BAR0_SIZE.into()
    }

    fn read(&self, offset: u64, size: u8) -> mem::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_bar(offset, &mut bytes[..size.into()]);
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> mem::Result<Action> {
        self.0.write_bar(offset, &value.to_le_bytes()[..size.into()]);
        Ok(Action::None)
    }
}

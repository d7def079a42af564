//! The library's watchdog of the ACPI watchdog table at I/O ports. All of it but the observer is what any VMM needs.

use std::ops::RangeInclusive;
use std::sync::Arc;

use vm_watchdog::Watchdog;
use vm_watchdog::wdat::{RegisterAddress, Wdat, WdatConfig, WdatTable};

use crate::devices::observer::Observer;
use crate::timeline::Timeline;

/// The ports of the registers: behind those of power management, where no device of a PC is.
pub const PORTS: RangeInclusive<u16> = FIRST_PORT..=FIRST_PORT + 0xF;
const FIRST_PORT: u16 = 0x620;

/// The table that shows the registers to the guest.
pub fn table(config: &WdatConfig) -> WdatTable {
    WdatTable::new(RegisterAddress::Port(FIRST_PORT), config)
}

/// A watchdog at its ports.
pub struct WdatPorts {
    watchdog: Watchdog<Wdat>,
    observer: Observer,
}

impl WdatPorts {
    /// The ports of this watchdog, which is new or restored.
    pub fn new(watchdog: Watchdog<Wdat>, timeline: Arc<Timeline>) -> Self {
        let observer = Observer::new(watchdog.clone().into(), timeline);
        Self { watchdog, observer }
    }

    /// An input from one of the [`PORTS`].
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        self.watchdog.read(offset(port), data);
    }

    /// An output to one of the [`PORTS`].
    pub fn write_port(&mut self, port: u16, data: &[u8]) {
        self.watchdog.write(offset(port), data);
        self.observer.after_write();
    }

    /// A platform reset: the device keeps its status.
    pub fn reset(&mut self) {
        self.watchdog.reset();
        self.observer.after_reset();
    }
}

fn offset(port: u16) -> u64 {
    port.wrapping_sub(FIRST_PORT).into()
}

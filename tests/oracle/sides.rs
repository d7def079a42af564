//! The two sides of a comparison: accesses to the model, and the script for QEMU.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Expired, Model, VmInstant};

use crate::book::Unlock;
use crate::machine::Script;
use crate::pair::{Bar, Config, Space};

/// The model, at a time.
pub struct Here {
    pub model: I6300esb,
    pub now: u64,
}

/// The script for QEMU, up to an operation and a time.
#[derive(Default)]
pub struct There {
    pub script: Script,
    /// Number of the current operation of the guest.
    pub operation: usize,
    pub now: u64,
    /// The time that QEMU has after the script.
    reached: u64,
}

impl Here {
    /// After power-on.
    pub fn new() -> Self {
        // QEMU's default subsystem.
        let config = I6300esbConfig::default().with_subsystem(0x1AF4, 0x1100).with_interrupt_pin(InterruptPin::IntA);
        Self { model: I6300esb::new(config), now: 0 }
    }

    pub fn configuration(&mut self) -> u32 {
        self.read(Config, 0x60, 2)
    }

    pub fn lock(&mut self) -> u32 {
        self.read(Config, 0x68, 1)
    }

    pub fn read(&mut self, space: Space, offset: u16, width: usize) -> u32 {
        let mut data = [0; 4];
        let now = VmInstant::from_nanos(self.now);
        match space {
            Config => self.model.read_config(offset, &mut data[..width], now),
            Bar => self.model.read_bar(offset.into(), &mut data[..width], now),
        };
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, space: Space, offset: u16, width: usize, value: u32) {
        let now = VmInstant::from_nanos(self.now);
        let data = &value.to_le_bytes()[..width];
        match space {
            Config => self.model.write_config(offset, data, now),
            Bar => self.model.write_bar(offset.into(), data, now),
        };
    }

    pub fn poll(&mut self) -> Expired {
        self.model.poll(VmInstant::from_nanos(self.now))
    }
}

/// `base` is the address of BAR0.
impl There {
    pub fn write(&mut self, address: u32, width: usize, value: u32) {
        self.reach_now();
        self.script.write(self.operation, address, width, value);
    }

    /// Reads, and expects this value.
    pub fn expect(&mut self, address: u32, width: usize, value: u32) {
        self.reach_now();
        self.script.read(self.operation, address, width, value);
    }

    pub fn reset(&mut self) {
        self.reach_now();
        self.script.reset(self.operation);
    }

    pub fn set_preload(&mut self, base: u32, number: usize, preload: u32) {
        self.unlock(base);
        self.write(base + 4 * number as u32, 4, preload);
    }

    pub fn unlock(&mut self, base: u32) {
        self.write(base + 0x0C, 2, 0x80);
        self.write(base + 0x0C, 2, 0x86);
    }

    /// From unlocked.
    pub fn lock(&mut self, base: u32) {
        self.write(base + 0x08, 2, 0);
    }

    /// From locked.
    pub fn restore_unlock(&mut self, base: u32, unlock: Unlock) {
        match unlock {
            Unlock::Locked => {}
            Unlock::FirstKey => self.write(base + 0x0C, 2, 0x80),
            Unlock::Unlocked => self.unlock(base),
        }
    }

    fn reach_now(&mut self) {
        if self.reached < self.now {
            self.script.step(self.operation, self.now - self.reached);
            self.reached = self.now;
        }
    }
}

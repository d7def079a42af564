//! PCI configuration space: the standard header, and the watchdog's registers at 60h to 68h.

use super::I6300esb;
use super::before_reset::SinceReset;
use super::counter::Stage;
use super::spec::{self, command, config, configuration, lock};
use crate::Access;
use crate::lanes::DwordWrite;

impl I6300esb {
    /// The dword of configuration space at `offset`; `None` past its end.
    pub(super) fn config_dword(&self, offset: u64) -> Option<u32> {
        let offset = u16::try_from(offset).ok().filter(|&offset| offset < spec::CONFIG_SPACE_SIZE)?;
        let words = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        Some(match offset {
            config::ID => words(spec::VENDOR_ID, spec::DEVICE_ID),
            config::COMMAND_STATUS => words(self.header.command, self.status()),
            config::CLASS_REVISION => spec::CLASS_CODE << 8 | u32::from(spec::REVISION_ID),
            config::CACHE_LINE_LATENCY => {
                u32::from_le_bytes([self.header.cache_line_size, self.header.latency_timer, 0, 0])
            }
            config::BAR0 => self.header.bar0,
            config::SUBSYSTEM => words(self.config.subsystem_vendor_id, self.config.subsystem_id),
            config::CAPABILITIES if self.config.msi => spec::MSI_CAPABILITY.into(),
            config::INTERRUPT => {
                let pin = self.config.interrupt_pin.register();
                u32::from_le_bytes([self.header.interrupt_line, pin, 0, 0])
            }
            config::MSI..config::MSI_END if self.config.msi => self.msi.dword(offset - config::MSI),
            config::WDT_CONFIGURATION => self.configuration.into(),
            config::LIVE_COUNTER => self.counter.map_or(0, |counter| counter.value(self.latest)),
            config::WDT_LOCK => self.lock.into(),
            _ => 0,
        })
    }

    /// The bits of a byte of configuration space that are the device's own, also if the VMM has the PCI header.
    pub(super) fn own_bits(&self, offset: u16) -> u8 {
        let has_msi = self.config.msi;
        match offset {
            config::STATUS if has_msi => (command::STATUS_INTERRUPT | command::STATUS_CAPABILITIES) as u8,
            config::STATUS => command::STATUS_INTERRUPT as u8,
            config::CAPABILITIES if has_msi => 0xFF,
            config::MSI..config::MSI_END if has_msi => 0xFF,
            config::WDT_CONFIGURATION..config::WDT_END => 0xFF,
            _ => 0,
        }
    }

    pub(super) fn write_config_dword(&mut self, write: DwordWrite) -> Access {
        let Ok(offset) = u16::try_from(write.offset) else {
            return Access::Ignored;
        };
        let byte = |lane: u32| (write.mask >> (8 * lane) & 0xFF != 0).then_some((write.value >> (8 * lane)) as u8);
        match offset {
            config::COMMAND_STATUS if write.mask & 0xFFFF != 0 => {
                self.header = self.header.with_command(write.merged_into(self.header.command.into()) as u16);
            }
            config::CACHE_LINE_LATENCY if write.mask & 0xFFFF != 0 => {
                self.header.cache_line_size = byte(0).unwrap_or(self.header.cache_line_size);
                self.header.latency_timer = byte(1).unwrap_or(self.header.latency_timer);
            }
            config::BAR0 => {
                self.header = self.header.with_bar0(write.merged_into(self.header.bar0));
            }
            config::INTERRUPT if write.mask & 0xFF != 0 => {
                self.header.interrupt_line = byte(0).unwrap_or(self.header.interrupt_line);
            }
            config::MSI..config::MSI_END if self.config.msi => {
                return self.msi.write_dword(offset - config::MSI, write);
            }
            config::WDT_CONFIGURATION if write.mask & 0xFFFF != 0 => {
                set_configuration(&mut self.configuration, write);
                self.since_reset.note(|registers| set_configuration(&mut registers.configuration, write));
            }
            config::WDT_LOCK => return byte(0).map_or(Access::Ignored, |value| self.write_lock(value)),
            _ => return Access::Ignored,
        }
        Access::Accepted
    }

    fn status(&self) -> u16 {
        let capabilities = if self.config.msi { command::STATUS_CAPABILITIES } else { 0 };
        let interrupt = if self.is_pin_pending() { command::STATUS_INTERRUPT } else { 0 };
        capabilities | interrupt
    }

    fn write_lock(&mut self, value: u8) -> Access {
        if self.lock & lock::WDT_LOCK != 0 {
            return Access::Ignored;
        }
        self.since_reset = SinceReset::LockWritten;
        let was_enabled = self.is_enabled();
        self.lock = value & lock::WRITABLE;
        match (was_enabled, self.is_enabled()) {
            (false, true) => self.start_stage(Stage::One, self.latest),
            (true, false) => self.counter = None,
            _ => {}
        }
        Access::Accepted
    }
}

fn set_configuration(register: &mut u8, write: DwordWrite) {
    *register = write.merged_into((*register).into()) as u8 & configuration::WRITABLE;
}

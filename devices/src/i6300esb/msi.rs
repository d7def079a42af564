//! The MSI capability: one vector, a 64-bit address, no mask.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.1.

use super::spec::msi;
use crate::lanes::DwordWrite;
use crate::{Access, MsiMessage};

/// The registers of the capability, and the message that they lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Msi {
    pub enabled: bool,
    pub address: u64,
    pub data: u16,
    pub message: Message,
}

/// The message of the interrupt that the device has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// No interrupt, or not by message.
    None,
    /// To be sent.
    Due,
    /// Sent. There is no other one until the interrupt is cleared and comes again.
    Taken,
}

impl Msi {
    pub const RESET: Self = Self { enabled: false, address: 0, data: 0, message: Message::None };

    /// The dword of the capability at `offset` from its beginning.
    pub fn dword(&self, offset: u16) -> u32 {
        match offset {
            msi::CONTROL => {
                let control = if self.enabled { msi::ADDRESS_64 | msi::ENABLE } else { msi::ADDRESS_64 };
                u32::from(msi::CAPABILITY_ID) | u32::from(control) << 16
            }
            msi::ADDRESS_LOW => self.address as u32,
            msi::ADDRESS_HIGH => (self.address >> 32) as u32,
            msi::DATA => self.data.into(),
            _ => 0,
        }
    }

    /// Writes the dword of the capability at `offset` from its beginning.
    pub fn write_dword(&mut self, offset: u16, write: DwordWrite) -> Access {
        let written = write.merged_into(self.dword(offset));
        let (low, high) = (u64::from(u32::MAX), u64::from(u32::MAX) << 32);
        match offset {
            msi::CONTROL if write.mask >> 16 != 0 => self.enabled = written >> 16 & u32::from(msi::ENABLE) != 0,
            msi::ADDRESS_LOW => self.address = self.address & high | u64::from(written & msi::ADDRESS_LOW_WRITABLE),
            msi::ADDRESS_HIGH => self.address = self.address & low | u64::from(written) << 32,
            msi::DATA if write.mask & 0xFFFF != 0 => self.data = written as u16,
            _ => return Access::Ignored,
        }
        Access::Accepted
    }

    /// Notes whether the device has an interrupt to send now.
    pub fn latch(&mut self, has_interrupt: bool) {
        self.message = match (has_interrupt, self.message) {
            (false, _) => Message::None,
            (true, Message::None) => Message::Due,
            (true, message) => message,
        };
    }

    /// The message that is due.
    pub fn due(&self) -> Option<MsiMessage> {
        (self.message == Message::Due).then_some(MsiMessage::new(self.address, self.data.into()))
    }
}

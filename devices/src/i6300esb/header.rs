//! The writable part of the PCI header, and where BAR0 decodes.

use super::config::I6300esbConfig;
use super::spec::{self, command};

/// What the BAR0 register holds after a guest has written all ones to learn its size.
const SIZING_PATTERN: u32 = !(spec::BAR0_SIZE - 1);

/// The writable part of the PCI header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PciHeader {
    pub command: u16,
    pub cache_line_size: u8,
    pub latency_timer: u8,
    /// The BAR0 register.
    pub bar0: u32,
    /// Where BAR0 decodes.
    pub decoded: Option<u32>,
    pub interrupt_line: u8,
}

impl PciHeader {
    /// The header after a reset.
    pub const fn reset(config: &I6300esbConfig) -> Self {
        let header = Self {
            command: config.command & command::WRITABLE,
            cache_line_size: 0,
            latency_timer: 0,
            bar0: config.bar0 & SIZING_PATTERN,
            decoded: None,
            interrupt_line: config.interrupt_line,
        };
        header.decode()
    }

    /// The header after a write of the command register.
    pub const fn with_command(self, command: u16) -> Self {
        Self { command: command & command::WRITABLE, ..self }.decode()
    }

    /// The header after a write of BAR0.
    pub const fn with_bar0(self, bar0: u32) -> Self {
        Self { bar0: bar0 & SIZING_PATTERN, ..self }.decode()
    }

    pub const fn is_memory_enabled(&self) -> bool {
        self.command & command::MEMORY_ENABLE != 0
    }

    pub const fn is_bus_master(&self) -> bool {
        self.command & command::BUS_MASTER != 0
    }

    pub const fn is_intx_disabled(&self) -> bool {
        self.command & command::INTX_DISABLE != 0
    }

    /// Whether BAR0 decodes where it did before a guest has begun to size it.
    pub const fn is_sizing_while_decoding(&self) -> bool {
        self.is_memory_enabled() && self.bar0 == SIZING_PATTERN
    }

    /// The address that is assigned to BAR0, also while memory decoding is off.
    pub const fn assigned(&self) -> Option<u32> {
        match self.bar0 {
            0 | SIZING_PATTERN => self.decoded,
            address => Some(address),
        }
    }

    const fn decode(self) -> Self {
        let decoded = match self.bar0 {
            _ if !self.is_memory_enabled() => None,
            SIZING_PATTERN => self.decoded,
            0 => None,
            address => Some(address),
        };
        Self { decoded, ..self }
    }
}

/// A change of the guest-physical address at which BAR0 decodes, with its 16 bytes.
///
/// A VMM that maps BAR0 into an address space unmaps it at `from` and maps it at `to`. `None` is "nowhere": memory
/// decoding is off, or no address is assigned.
///
/// `Watchdog::write_config` of `vm-watchdog` returns the move that a write has caused. Compare with
/// [`between`](Self::between) where another call may move BAR0: a reset, and a restored state.
///
/// ```
/// use vm_watchdog_devices::i6300esb::{BarMove, I6300esb, I6300esbConfig, MEMORY_ENABLE};
/// use vm_watchdog_devices::{Model, VmInstant};
///
/// let mut device = I6300esb::new(I6300esbConfig::default().with_bar0(0xFEB0_0000));
/// let mapped = device.bar0();
/// assert_eq!(mapped, None);
/// device.write_config(0x04, &MEMORY_ENABLE.to_le_bytes(), VmInstant::ZERO);
/// let moved = BarMove::between(mapped, device.bar0()).expect("it appears");
/// assert_eq!((moved.from, moved.to), (None, Some(0xFEB0_0000)));
///
/// device.reset();
/// let moved = BarMove::between(moved.to, device.bar0()).expect("it disappears");
/// assert_eq!((moved.from, moved.to), (Some(0xFEB0_0000), None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "BAR0 decodes at another address now"]
#[non_exhaustive]
pub struct BarMove {
    /// Where BAR0 decoded before.
    pub from: Option<u32>,
    /// Where it decodes now.
    pub to: Option<u32>,
}

impl BarMove {
    /// The move between two results of [`bar0`](super::I6300esb::bar0); `None` if they are equal.
    pub fn between(before: Option<u32>, after: Option<u32>) -> Option<Self> {
        (before != after).then_some(Self { from: before, to: after })
    }
}

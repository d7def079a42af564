//! The steps of a guest and of a host, and their words.

use std::fmt::{self, Display};

/// A write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// 0Ch, one of the keys of the unlock sequence.
    Key(u8),
    /// 0Ch.
    Reload(u16),
    /// 00h or 04h: the number of the stage, and its units.
    Preload(usize, u32),
    /// 08h.
    InterruptStatus(u8),
    Configuration(u8),
    Lock(u8),
    Command(u16),
    Bar0(u32),
    CacheLineLatency(u16),
    InterruptLine(u8),
    MsiEnable(bool),
    MsiAddress(u32),
    MsiUpperAddress(u32),
    MsiData(u16),
}

/// What happens in a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Guest(Write),
    /// The guest reads a register.
    Read,
    Poll,
    Reset,
    /// The host arms the device for a guest that has not noticed a reset.
    Rearm,
    /// The host takes the interrupt message to send it.
    TakeMessage,
    /// It could not be sent.
    PutBackMessage,
    /// The device takes the place of one that had timed out before a reset.
    TakeOver,
}

impl Write {
    /// Whether it goes to configuration space, the offset, the value, and the number of bytes.
    pub fn on_the_bus(self) -> (bool, u16, u32, usize) {
        match self {
            Self::Key(key) => (false, 0x0C, key.into(), 2),
            Self::Reload(value) => (false, 0x0C, value.into(), 2),
            Self::Preload(stage, units) => (false, [0x00, 0x04][stage - 1], units, 4),
            Self::InterruptStatus(value) => (false, 0x08, value.into(), 1),
            Self::Configuration(value) => (true, 0x60, value.into(), 2),
            Self::Lock(value) => (true, 0x68, value.into(), 1),
            Self::Command(value) => (true, 0x04, value.into(), 2),
            Self::Bar0(address) => (true, 0x10, address, 4),
            Self::MsiEnable(enabled) => (true, 0x42, enabled.into(), 2),
            Self::MsiAddress(address) => (true, 0x44, address, 4),
            Self::MsiUpperAddress(address) => (true, 0x48, address, 4),
            Self::MsiData(data) => (true, 0x4C, data.into(), 2),
            Self::CacheLineLatency(value) => (true, 0x0C, value.into(), 2),
            Self::InterruptLine(value) => (true, 0x3C, value.into(), 1),
        }
    }

    fn register(self) -> &'static str {
        match self {
            Self::Key(_) | Self::Reload(_) => "RELOAD (0Ch)",
            Self::Preload(1, _) => "PRELOAD1 (00h)",
            Self::Preload(..) => "PRELOAD2 (04h)",
            Self::InterruptStatus(_) => "GINTSR (08h)",
            Self::Configuration(_) => "60h of configuration space (WDT configuration)",
            Self::Lock(_) => "68h of configuration space (WDT lock)",
            Self::Command(_) => "04h of configuration space (command)",
            Self::Bar0(_) => "10h of configuration space (BAR0)",
            Self::MsiEnable(_) => "42h of configuration space (MSI control)",
            Self::MsiAddress(_) => "44h of configuration space (MSI address)",
            Self::MsiUpperAddress(_) => "48h of configuration space (MSI address, upper half)",
            Self::MsiData(_) => "4Ch of configuration space (MSI data)",
            Self::CacheLineLatency(_) => "0Ch of configuration space (cache line size, latency timer)",
            Self::InterruptLine(_) => "3Ch of configuration space (interrupt line)",
        }
    }
}

impl Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Guest(write) => {
                let (_, _, value, width) = write.on_the_bus();
                write!(f, "the guest writes {value:#0digits$x} to {}", write.register(), digits = 2 + 2 * width)
            }
            Act::Read => f.write_str("the guest reads RELOAD (0Ch)"),
            Act::Poll => f.write_str("the host polls"),
            Act::Reset => f.write_str("the platform resets"),
            Act::Rearm => f.write_str("the host arms the watchdog as before the reset"),
            Act::TakeMessage => f.write_str("the host takes the interrupt message"),
            Act::TakeOver => f.write_str("the VMM makes the device anew, after one that had timed out"),
            Act::PutBackMessage => f.write_str("the host puts the message back, which it could not send"),
        }
    }
}

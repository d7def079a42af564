//! The 35-bit down-counter: its stage, and when the stage ends.

use core::time::Duration;

use super::spec;
use crate::VmInstant;

/// One tick of the PCI clock (33 1/3 MHz), in nanoseconds.
const PCI_CLOCK_NANOS: u64 = 30;

/// The two stages of a watchdog period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// From a reload; ends in the pretimeout interrupt.
    One,
    /// From the end of stage one; ends in the timeout.
    Two,
}

/// The divisor that WDT_PRE_SEL selects: the shift from units of a preload to PCI clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prescaler {
    /// Clock / 2^15, about 1 kHz.
    Khz1,
    /// Clock / 2^5, about 1 MHz.
    Mhz1,
}

impl Prescaler {
    /// What the WDT configuration register selects.
    pub const fn of(configuration: u8) -> Self {
        if configuration & spec::configuration::WDT_PRE_SEL == 0 { Self::Khz1 } else { Self::Mhz1 }
    }

    /// Log2 of the PCI clocks in one unit of a preload.
    const fn shift(self) -> u32 {
        match self {
            Self::Khz1 => 15,
            Self::Mhz1 => 5,
        }
    }

    /// Nanoseconds in one unit of a preload.
    pub const fn unit_nanos(self) -> u64 {
        PCI_CLOCK_NANOS << self.shift()
    }

    /// Duration of a stage of `preload` units; at most 1030.8 s for 20 bits.
    pub const fn stage_length(self, preload: u32) -> Duration {
        Duration::from_nanos(preload as u64 * self.unit_nanos())
    }
}

/// A running counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub stage: Stage,
    /// The prescaler at the time of the load. A change of 60h takes effect at the next load.
    pub prescaler: Prescaler,
    /// When it reaches zero.
    pub ends_at: VmInstant,
}

impl Counter {
    /// Loads the counter at `now`.
    pub fn load(stage: Stage, prescaler: Prescaler, preload: u32, now: VmInstant) -> Self {
        Self { stage, prescaler, ends_at: now + prescaler.stage_length(preload) }
    }

    /// Whether it has reached zero. [`VmInstant::MAX`] is the result of saturation, and is never reached.
    pub fn has_ended(&self, now: VmInstant) -> bool {
        self.ends_at <= now && self.ends_at < VmInstant::MAX
    }

    /// The current count in units of the preload. Until the first clock after a load it is the whole preload.
    pub fn value(&self, now: VmInstant) -> u32 {
        let remaining = self.ends_at.saturating_duration_since(now).as_nanos() as u64;
        let clocks = remaining.div_ceil(PCI_CLOCK_NANOS);
        u32::try_from(clocks >> self.prescaler.shift()).unwrap_or(u32::MAX)
    }
}

//! The 35-bit down-counter: which stage it is in, and when that ends.

use core::time::Duration;

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

/// How far a preload is shifted left to give PCI clocks, from WDT_PRE_SEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prescaler {
    /// Clock / 2^15, about 1 kHz.
    Khz1,
    /// Clock / 2^5, about 1 MHz.
    Mhz1,
}

impl Prescaler {
    /// Log2 of the PCI clocks that one unit of a preload lasts.
    const fn shift(self) -> u32 {
        match self {
            Self::Khz1 => 15,
            Self::Mhz1 => 5,
        }
    }

    /// Nanoseconds that one unit of a preload lasts.
    pub const fn unit_nanos(self) -> u64 {
        PCI_CLOCK_NANOS << self.shift()
    }

    /// How long a stage of `preload` units lasts; at most 1030.8 s for 20 bits.
    pub const fn stage_length(self, preload: u32) -> Duration {
        Duration::from_nanos(preload as u64 * self.unit_nanos())
    }
}

/// A counter that was loaded and has not reached zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub stage: Stage,
    /// The prescaler it was loaded with: a new one in 60h counts from the next load.
    pub prescaler: Prescaler,
    /// When it reaches zero.
    pub ends_at: VmInstant,
}

impl Counter {
    /// Loads the counter at `now`.
    pub fn load(stage: Stage, prescaler: Prescaler, preload: u32, now: VmInstant) -> Self {
        Self { stage, prescaler, ends_at: now + prescaler.stage_length(preload) }
    }

    /// Whether it has reached zero. [`VmInstant::MAX`] stands for all that lies beyond it, and is never reached.
    pub fn has_ended(&self, now: VmInstant) -> bool {
        self.ends_at <= now && self.ends_at < VmInstant::MAX
    }

    /// The running count in units of the preload, the whole preload until the first clock after a load.
    pub fn value(&self, now: VmInstant) -> u32 {
        let remaining = self.ends_at.saturating_duration_since(now).as_nanos() as u64;
        let clocks = remaining.div_ceil(PCI_CLOCK_NANOS);
        u32::try_from(clocks >> self.prescaler.shift()).unwrap_or(u32::MAX)
    }
}

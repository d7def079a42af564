//! The guest's system counter, as it follows from the time.

use core::num::NonZeroU32;
use core::time::Duration;

use crate::VmInstant;

/// Billionths in a tick, and nanoseconds in a second: a nanosecond is as many billionths of a tick as the frequency has Hz.
pub(super) const BILLION: u32 = 1_000_000_000;

/// The counter at an instant. Advancing it in many steps or in one gives the same: no rounding adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub frequency: NonZeroU32,
    /// Ticks. At its maximum it stays there.
    pub value: u64,
    /// What has passed of the next tick, in billionths: less than [`BILLION`].
    pub fraction: u32,
    /// When it reads that: the latest instant that the device was told.
    pub at: VmInstant,
}

impl Counter {
    /// A counter that reads 0 when the clock starts.
    pub const fn new(frequency: NonZeroU32) -> Self {
        Self { frequency, value: 0, fraction: 0, at: VmInstant::ZERO }
    }

    /// Advances to `now`, which is not before [`at`](Self::at).
    pub fn advance(&mut self, now: VmInstant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let billionths = passed * u128::from(self.frequency.get()) + u128::from(self.fraction);
        let ticks = u64::try_from(billionths / u128::from(BILLION)).unwrap_or(u64::MAX);
        self.value = self.value.saturating_add(ticks);
        self.fraction = (billionths % u128::from(BILLION)) as u32;
        self.at = now;
    }

    /// The first instant, from [`at`](Self::at) on, at which the counter is greater than `compare`; [`VmInstant::MAX`] if
    /// that is beyond the range of the clock, or never.
    pub fn exceeds_at(&self, compare: u64) -> VmInstant {
        let Some(ticks) = compare.checked_sub(self.value) else {
            return self.at;
        };
        if compare == u64::MAX {
            return VmInstant::MAX;
        }
        let billionths = (u128::from(ticks) + 1) * u128::from(BILLION) - u128::from(self.fraction);
        let nanos = billionths.div_ceil(u128::from(self.frequency.get()));
        u64::try_from(nanos).map_or(VmInstant::MAX, |nanos| self.at + Duration::from_nanos(nanos))
    }
}

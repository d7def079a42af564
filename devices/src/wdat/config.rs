//! The configuration of the device.

use core::time::Duration;

use super::spec::RESET_TIMEOUT_MS;

/// Configuration of the device and of its [table](super::WdatTable), which the VMM sets before a guest starts.
///
/// ```
/// use vm_watchdog_devices::wdat::{TimerPeriod, WdatConfig};
///
/// let config = WdatConfig::default().with_period(TimerPeriod::OneSecond);
/// assert_eq!(config.period.max_count(), 65_535);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WdatConfig {
    /// The unit of the countdown.
    pub period: TimerPeriod,
}

impl WdatConfig {
    /// The same configuration with this unit of the countdown.
    pub const fn with_period(mut self, period: TimerPeriod) -> Self {
        self.period = period;
        self
    }
}

/// The unit in which a guest counts: the timer period of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimerPeriod {
    /// 1 ms, with timeouts of 1 s to 4 h 39 min.
    #[default]
    OneMillisecond,
    /// 1 s, with timeouts of 5 s to 18 h 12 min: as the firmware of Hyper-V has it, for Windows.
    OneSecond,
}

impl TimerPeriod {
    /// The period.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.as_millis() as u64)
    }

    /// The least countdown in periods.
    pub const fn min_count(self) -> u32 {
        match self {
            Self::OneMillisecond => 1_000,
            Self::OneSecond => 5,
        }
    }

    /// The greatest countdown in periods. In milliseconds it fits 32 bits, which Linux requires.
    pub const fn max_count(self) -> u32 {
        match self {
            Self::OneMillisecond => 0x00FF_FFFF,
            Self::OneSecond => 0xFFFF,
        }
    }

    pub(super) const fn as_millis(self) -> u32 {
        match self {
            Self::OneMillisecond => 1,
            Self::OneSecond => 1_000,
        }
    }

    pub(super) const fn reset_count(self) -> u32 {
        RESET_TIMEOUT_MS / self.as_millis()
    }
}

//! Instants on the clock of a virtual machine.

use core::fmt;
use core::time::Duration;

/// An instant on a clock that advances only while the VM runs, in nanoseconds since the start of the clock.
///
/// The models take instants as arguments and never read a clock. All arithmetic saturates: a timeout beyond the range
/// of 584 years does not overflow, and never expires.
///
/// ```
/// use core::time::Duration;
/// use vm_watchdog_devices::VmInstant;
///
/// let armed = VmInstant::from_nanos(5);
/// let deadline = armed + Duration::from_secs(30);
/// assert_eq!(deadline.as_nanos(), 30_000_000_005);
/// assert_eq!(deadline.saturating_duration_since(armed), Duration::from_secs(30));
/// assert_eq!(armed.saturating_duration_since(deadline), Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct VmInstant(u64);

impl VmInstant {
    /// The instant at which a VM's clock starts.
    pub const ZERO: Self = Self(0);

    /// The largest instant. A deadline here is never reached.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the start of the clock.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start of the clock.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later than `self`.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for VmInstant {
    type Output = Self;

    /// `self` plus `duration`, or [`VmInstant::MAX`] on overflow.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl core::ops::Sub<Duration> for VmInstant {
    type Output = Self;

    /// `self` minus `duration`, or [`VmInstant::ZERO`] if that is negative.
    fn sub(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanos))
    }
}

impl fmt::Display for VmInstant {
    /// Seconds with nanosecond digits, `4.026531840s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

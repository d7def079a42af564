//! The configuration of the device.

use core::num::NonZeroU32;

/// Configuration of the device, which the VMM sets before a guest starts.
///
/// ```
/// use core::num::NonZeroU32;
/// use vm_watchdog_devices::sbsa::SbsaConfig;
///
/// // On an arm64 host: CNTFRQ_EL0.
/// let config = SbsaConfig::new(NonZeroU32::new(62_500_000).expect("not zero"));
/// assert_eq!(config.clock_frequency.get(), 62_500_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SbsaConfig {
    /// The frequency of the guest's system counter in Hz, as the guest reads it in CNTFRQ_EL0.
    pub clock_frequency: NonZeroU32,
}

impl SbsaConfig {
    /// A watchdog that counts with this frequency in Hz.
    pub const fn new(clock_frequency: NonZeroU32) -> Self {
        Self { clock_frequency }
    }
}

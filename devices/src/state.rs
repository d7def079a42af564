//! Errors in a saved state.

/// A field of a saved state has a value that no device can reach.
///
/// ```
/// use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
/// use vm_watchdog_devices::{Model, VmInstant};
///
/// let device = I6300esb::new(I6300esbConfig::default());
/// let mut state = device.clone().save(VmInstant::ZERO);
/// state.preload1 = 0x10_0000;
/// let error = device.restored(&state, VmInstant::ZERO).unwrap_err();
/// assert_eq!(error.to_string(), "preload1 is 0x100000 in the saved state: accepted is at most 0xfffff");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:#x} in the saved state: accepted is {accepted}")]
#[non_exhaustive]
pub struct StateError {
    /// The field.
    pub field: &'static str,
    /// The value of the field.
    pub value: u64,
    /// The accepted values.
    pub accepted: &'static str,
}

impl StateError {
    /// An error for `field`, which has `value`.
    pub const fn new(field: &'static str, value: u64, accepted: &'static str) -> Self {
        Self { field, value, accepted }
    }

    /// Returns an error for `field` unless `holds` is true.
    pub fn unless(holds: bool, field: &'static str, value: impl Into<u64>, accepted: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { field, value: value.into(), accepted }) }
    }
}

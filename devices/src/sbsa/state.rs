//! Saving and restoring the watchdog.

use core::time::Duration;

use super::counter::{BILLION, Counter};
use super::{Sbsa, spec};
use crate::{Expired, StateError, VmInstant};

/// Version 1 of the saved state of an [`Sbsa`].
///
/// It holds ticks and durations, never instants, so it can be restored on any clock: the counter goes on from where it was.
/// The [configuration](super::SbsaConfig) is not part of it: the VMM creates the target device with the same frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct SbsaStateV1 {
    /// WCS.EN.
    pub enabled: bool,
    /// WCS.WS0.
    pub ws0: bool,
    /// WCS.WS1. Of a watchdog that is not enabled: it has timed out before a reset.
    pub ws1: bool,
    /// WOR, 48 bits.
    pub wor: u64,
    /// WCV.
    pub wcv: u64,
    /// What the guest's system counter reads.
    pub counter: u64,
    /// What has passed of the counter's next tick, in billionths.
    pub counter_fraction: u32,
    /// Nanoseconds since a WS0 that is not yet polled.
    pub pretimeout_age_ns: Option<u64>,
    /// Nanoseconds since a WS1 that is not yet polled.
    pub timeout_age_ns: Option<u64>,
}

impl Sbsa {
    pub(super) fn to_state(&self) -> SbsaStateV1 {
        // Exhaustive: a new field does not compile until it is handled here.
        let Self { counter, enabled, ws0, ws1, wor, wcv, expired: Expired { pretimeout, timeout } } = *self;
        let Counter { frequency: _, value, fraction, at } = counter;
        let age = |instant: VmInstant| at.as_nanos().saturating_sub(instant.as_nanos());
        SbsaStateV1 {
            enabled,
            ws0,
            ws1,
            wor,
            wcv,
            counter: value,
            counter_fraction: fraction,
            pretimeout_age_ns: pretimeout.map(age),
            timeout_age_ns: timeout.map(age),
        }
    }

    pub(super) fn with_state(&self, state: &SbsaStateV1, now: VmInstant) -> Result<Self, StateError> {
        let SbsaStateV1 { enabled, ws0, ws1, wor, wcv, counter, counter_fraction, pretimeout_age_ns, timeout_age_ns } =
            *state;
        StateError::unless(enabled || !ws0, "ws0", ws0, "false unless enabled")?;
        StateError::unless(!enabled || ws0 || !ws1, "ws1", ws1, "false while enabled without ws0")?;
        StateError::unless(wor & !spec::OFFSET_MASK == 0, "wor", wor, "at most 0xffffffffffff")?;
        StateError::unless(
            counter_fraction < BILLION,
            "counter_fraction",
            counter_fraction,
            "at most 0x3b9ac9ff, less than a tick",
        )?;
        let counts = enabled && !ws1;
        StateError::unless(!counts || wcv >= counter, "wcv", wcv, "at least counter until ws1")?;
        let past = |age: u64| now - Duration::from_nanos(age);
        Ok(Self {
            counter: Counter { value: counter, fraction: counter_fraction, at: now, ..self.counter },
            enabled,
            ws0,
            ws1,
            wor,
            wcv,
            expired: Expired { pretimeout: pretimeout_age_ns.map(past), timeout: timeout_age_ns.map(past) },
        })
    }
}

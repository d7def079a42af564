//! Saving and restoring the device.

use core::time::Duration;

use super::before_reset::{Registers, SinceReset};
use super::counter::{Counter, Prescaler, Stage};
use super::header::PciHeader;
use super::msi::{Message, Msi};
use super::registers::Unlock;
use super::spec::{self, command, configuration, lock};
use super::{I6300esb, I6300esbConfig};
use crate::{Expired, Model, StateError, VmInstant};

/// Version 1 of the saved state of an [`I6300esb`].
///
/// It holds durations, never instants, so it can be restored on any clock. The [configuration](I6300esbConfig) is not
/// part of it: the VMM creates the target device with the same configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct I6300esbStateV1 {
    /// PCI command register.
    pub command: u16,
    /// PCI cache line size.
    pub cache_line_size: u8,
    /// PCI latency timer.
    pub latency_timer: u8,
    /// BAR0, without type bits.
    pub bar0: u32,
    /// Where BAR0 decodes while its register holds the sizing pattern.
    #[cfg_attr(feature = "serde", serde(default))]
    pub bar0_while_sizing: Option<u32>,
    /// PCI interrupt line.
    pub interrupt_line: u8,
    /// The MSI capability, if the device has one.
    #[cfg_attr(feature = "serde", serde(default))]
    pub msi: Option<MsiStateV1>,
    /// 60h, WDT configuration.
    pub wdt_configuration: u8,
    /// 68h, WDT lock.
    pub wdt_lock: u8,
    /// PRELOAD1, 20 bits.
    pub preload1: u32,
    /// PRELOAD2, 20 bits.
    pub preload2: u32,
    /// Number of unlock keys that the guest has written, 0 to 2.
    pub unlock_keys: u8,
    /// GINTSR WDT_INT_ACT.
    pub wdt_int_act: bool,
    /// RELOAD WDT_TIMEOUT: the watchdog has timed out.
    pub wdt_timeout: bool,
    /// Set from a reset until the guest writes 68h. States that were saved before this field existed lack it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub since_reset: Option<SinceResetStateV1>,
    /// The counter, if it runs.
    pub counter: Option<CounterStateV1>,
    /// Nanoseconds since an end of the first stage that is not yet polled.
    pub pretimeout_age_ns: Option<u64>,
    /// Nanoseconds since a timeout that is not yet polled.
    pub timeout_age_ns: Option<u64>,
}

/// The running counter in an [`I6300esbStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct CounterStateV1 {
    /// 1 or 2.
    pub stage: u8,
    /// Whether the prescaler was 1 MHz (WDT_PRE_SEL) at the load.
    pub megahertz: bool,
    /// Nanoseconds until it reaches zero.
    pub remaining_ns: u64,
}

/// What is known of a guest that has not written 68h since the last reset, in an [`I6300esbStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct SinceResetStateV1 {
    /// The registers, if the device was armed before the reset, with what the guest has written since.
    pub armed_before: Option<ArmedStateV1>,
}

/// The registers of an armed device, in a [`SinceResetStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct ArmedStateV1 {
    /// 60h, WDT configuration.
    pub wdt_configuration: u8,
    /// 68h, WDT lock, with WDT_ENABLE set.
    pub wdt_lock: u8,
    /// PRELOAD1, 20 bits.
    pub preload1: u32,
    /// PRELOAD2, 20 bits.
    pub preload2: u32,
    /// The address of BAR0, if it had one. It is the VMM's to map it there again.
    pub bar0: Option<u32>,
}

/// The MSI capability in an [`I6300esbStateV1`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct MsiStateV1 {
    /// MSI enable.
    pub enabled: bool,
    /// Message address, a multiple of four.
    pub address: u64,
    /// Message data.
    pub data: u16,
    /// Whether the device has an interrupt whose message is not sent yet.
    pub is_message_due: bool,
}

impl I6300esb {
    pub(super) fn to_state(&self) -> I6300esbStateV1 {
        // Exhaustive: a new field does not compile until it is handled here.
        let Self {
            config,
            header,
            msi: Msi { enabled, address, data, message },
            configuration,
            lock,
            preload1,
            preload2,
            unlock,
            interrupt_active,
            timed_out,
            since_reset,
            counter,
            expired: Expired { pretimeout, timeout },
            latest,
        } = *self;
        let PciHeader { command, cache_line_size, latency_timer, bar0, decoded, interrupt_line } = header;
        let age = |instant: VmInstant| nanos(latest.saturating_duration_since(instant));
        I6300esbStateV1 {
            command,
            cache_line_size,
            latency_timer,
            bar0,
            bar0_while_sizing: decoded.filter(|_| header.is_sizing_while_decoding()),
            interrupt_line,
            msi: config.msi.then_some(MsiStateV1 { enabled, address, data, is_message_due: message == Message::Due }),
            wdt_configuration: configuration,
            wdt_lock: lock,
            preload1,
            preload2,
            unlock_keys: match unlock {
                Unlock::Locked => 0,
                Unlock::FirstKey => 1,
                Unlock::Unlocked => 2,
            },
            wdt_int_act: interrupt_active,
            wdt_timeout: timed_out,
            since_reset: since_reset.to_state(),
            counter: counter.map(|Counter { stage, prescaler, ends_at }| CounterStateV1 {
                stage: match stage {
                    Stage::One => 1,
                    Stage::Two => 2,
                },
                megahertz: prescaler == Prescaler::Mhz1,
                remaining_ns: nanos(ends_at.saturating_duration_since(latest)),
            }),
            pretimeout_age_ns: pretimeout.map(age),
            timeout_age_ns: timeout.map(age),
        }
    }

    pub(super) fn from_state(
        config: I6300esbConfig,
        state: &I6300esbStateV1,
        now: VmInstant,
    ) -> Result<Self, StateError> {
        let I6300esbStateV1 {
            command,
            cache_line_size,
            latency_timer,
            bar0,
            bar0_while_sizing,
            interrupt_line,
            msi,
            wdt_configuration,
            wdt_lock,
            preload1,
            preload2,
            unlock_keys,
            wdt_int_act,
            wdt_timeout,
            since_reset,
            counter,
            pretimeout_age_ns,
            timeout_age_ns,
        } = *state;
        StateError::unless(command & !command::WRITABLE == 0, "command", command, "bits 0x507")?;
        StateError::unless(bar0 % spec::BAR0_SIZE == 0, "bar0", bar0, "a multiple of 0x10")?;
        let header =
            PciHeader { command, cache_line_size, latency_timer, bar0, decoded: bar0_while_sizing, interrupt_line };
        if let Some(address) = bar0_while_sizing {
            let before = PciHeader { decoded: None, ..header }.with_bar0(address);
            let is_possible = header.is_sizing_while_decoding() && before.decoded == Some(address);
            let accepted = "an address of BAR0, while bar0 is 0xfffffff0 and memory is enabled";
            StateError::unless(is_possible, "bar0_while_sizing", address, accepted)?;
        }
        StateError::unless(
            wdt_configuration & !configuration::WRITABLE == 0,
            "wdt_configuration",
            wdt_configuration,
            "bits 0x27",
        )?;
        StateError::unless(wdt_lock & !lock::WRITABLE == 0, "wdt_lock", wdt_lock, "at most 0x7")?;
        StateError::unless(preload1 <= spec::PRELOAD_MASK, "preload1", preload1, "at most 0xfffff")?;
        StateError::unless(preload2 <= spec::PRELOAD_MASK, "preload2", preload2, "at most 0xfffff")?;
        let unlock = match unlock_keys {
            0 => Unlock::Locked,
            1 => Unlock::FirstKey,
            2 => Unlock::Unlocked,
            _ => return Err(StateError { field: "unlock_keys", value: unlock_keys.into(), accepted: "0, 1 or 2" }),
        };
        let accepted = "absent, unless 68h is 0 as after a reset";
        StateError::unless(since_reset.is_none() || wdt_lock == 0, "since_reset", true, accepted)?;
        let enabled = wdt_lock & lock::WDT_ENABLE != 0;
        let counter = counter.map(|counter| running_counter(&counter, enabled, now)).transpose()?;
        let past = |age: u64| now - Duration::from_nanos(age);
        let mut restored = Self {
            config,
            msi: restored_msi(config, msi)?,
            header: header.with_bar0(bar0),
            configuration: wdt_configuration,
            lock: wdt_lock,
            preload1,
            preload2,
            unlock,
            interrupt_active: wdt_int_act,
            timed_out: wdt_timeout,
            since_reset: SinceReset::from_state(since_reset)?,
            counter,
            expired: Expired { pretimeout: pretimeout_age_ns.map(past), timeout: timeout_age_ns.map(past) },
            latest: now,
        };
        restored.restore_message(msi.is_some_and(|msi| msi.is_message_due))?;
        Ok(restored)
    }

    /// An interrupt whose message is not due has had its message.
    fn restore_message(&mut self, is_due: bool) -> Result<(), StateError> {
        let accepted = "false, unless the device has an interrupt, MSI enable and bus master enable";
        StateError::unless(!is_due || self.has_message(), "msi.is_message_due", is_due, accepted)?;
        self.latch_message();
        if !is_due {
            self.take_message();
        }
        Ok(())
    }
}

impl Registers {
    pub(super) fn to_state(self) -> ArmedStateV1 {
        let Self { configuration, lock, preload1, preload2, bar0 } = self;
        ArmedStateV1 { wdt_configuration: configuration, wdt_lock: lock, preload1, preload2, bar0 }
    }
}

impl SinceReset {
    fn to_state(self) -> Option<SinceResetStateV1> {
        let Self::LockUntouched(registers) = self else {
            return None;
        };
        Some(SinceResetStateV1 { armed_before: registers.map(Registers::to_state) })
    }

    fn from_state(state: Option<SinceResetStateV1>) -> Result<Self, StateError> {
        let Some(SinceResetStateV1 { armed_before }) = state else {
            return Ok(Self::LockWritten);
        };
        let Some(ArmedStateV1 { wdt_configuration, wdt_lock, preload1, preload2, bar0 }) = armed_before else {
            return Ok(Self::LockUntouched(None));
        };
        let registers = Registers { configuration: wdt_configuration, lock: wdt_lock, preload1, preload2, bar0 };
        registers.validate()?;
        Ok(Self::LockUntouched(Some(registers)))
    }
}

fn restored_msi(config: I6300esbConfig, state: Option<MsiStateV1>) -> Result<Msi, StateError> {
    let Some(MsiStateV1 { enabled, address, data, is_message_due: _ }) = state else {
        return Ok(Msi::RESET);
    };
    StateError::unless(config.msi, "msi", true, "none, for a device without MSI")?;
    StateError::unless(address % 4 == 0, "msi.address", address, "a multiple of four")?;
    Ok(Msi { enabled, address, data, message: Message::None })
}

fn running_counter(state: &CounterStateV1, enabled: bool, now: VmInstant) -> Result<Counter, StateError> {
    let CounterStateV1 { stage, megahertz, remaining_ns } = *state;
    StateError::unless(enabled, "counter.remaining_ns", remaining_ns, "no counter while WDT_ENABLE is clear")?;
    let stage = match stage {
        1 => Stage::One,
        2 => Stage::Two,
        _ => return Err(StateError { field: "counter.stage", value: stage.into(), accepted: "1 or 2" }),
    };
    let (prescaler, accepted) = if megahertz {
        (Prescaler::Mhz1, "1 ns to 1.0066 s at 1 MHz")
    } else {
        (Prescaler::Khz1, "1 ns to 1030.8 s at 1 kHz")
    };
    let remaining = Duration::from_nanos(remaining_ns);
    let possible = !remaining.is_zero() && remaining <= prescaler.stage_length(spec::PRELOAD_MASK);
    StateError::unless(possible, "counter.remaining_ns", remaining_ns, accepted)?;
    Ok(Counter { stage, prescaler, ends_at: now + remaining })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

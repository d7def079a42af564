//! A guest that does not know of a reset.
//!
//! A VMM may reset the device although its guest runs on: QEMU 11.1 does after it has loaded a snapshot, and connects to a
//! device after power-on at the end of a migration. Such a guest goes on with its heartbeats, and they have no effect.
//!
//! A guest that boots writes the lock register (68h) before it needs the watchdog: the drivers of Linux, FreeBSD and
//! OpenBSD when they attach, EFI Boot Guard when it arms the watchdog. Until then the guest may be the one from before
//! the reset, and the device keeps what that guest had set.

use super::I6300esb;
use super::counter::Stage;
use super::spec::{self, configuration, lock};
use crate::{StateError, VmInstant};

/// The registers of an armed device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub configuration: u8,
    pub lock: u8,
    pub preload1: u32,
    pub preload2: u32,
    /// The address of BAR0. A VMM may turn decoding off before it resets the device.
    pub bar0: Option<u32>,
}

/// Whether the guest can be one that does not know of the last reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinceReset {
    /// The guest has written the lock register: it knows whether the watchdog runs.
    LockWritten,
    /// It has not. If the device was armed before the reset: its registers as a guest that does not know of the reset
    /// has them in mind, which includes what it has written since.
    LockUntouched(Option<Registers>),
}

impl Registers {
    pub fn of(device: &I6300esb) -> Self {
        let I6300esb { configuration, lock, preload1, preload2, .. } = *device;
        Self { configuration, lock, preload1, preload2, bar0: device.header.assigned() }
    }

    pub fn validate(self) -> Result<(), StateError> {
        let Self { configuration, lock, preload1, preload2, bar0 } = self;
        let is_configuration = configuration & !configuration::WRITABLE == 0;
        let is_armed = lock & !lock::WRITABLE == 0 && lock & lock::WDT_ENABLE != 0;
        let [is_preload1, is_preload2] = [preload1, preload2].map(|preload| preload <= spec::PRELOAD_MASK);
        let address = bar0.unwrap_or(spec::BAR0_SIZE);
        let is_address = address != 0 && address % spec::BAR0_SIZE == 0;
        for (is_possible, field, value, accepted) in [
            (is_configuration, "since_reset.armed_before.wdt_configuration", configuration.into(), "bits 0x27"),
            (is_armed, "since_reset.armed_before.wdt_lock", lock.into(), "2, 3, 6 or 7, which are armed"),
            (is_preload1, "since_reset.armed_before.preload1", preload1, "at most 0xfffff"),
            (is_preload2, "since_reset.armed_before.preload2", preload2, "at most 0xfffff"),
            (is_address, "since_reset.armed_before.bar0", address, "none, or a multiple of 0x10"),
        ] {
            StateError::unless(is_possible, field, value, accepted)?;
        }
        Ok(())
    }
}

impl SinceReset {
    /// What holds after a reset of `device`.
    pub fn after_reset_of(device: &I6300esb) -> Self {
        match device.since_reset {
            _ if device.is_enabled() => Self::LockUntouched(Some(Registers::of(device))),
            Self::LockWritten => Self::LockUntouched(None),
            // One reset of QEMU's machine resets the device twice.
            untouched => untouched,
        }
    }

    /// Notes a write of the guest to another register than the lock register.
    pub fn note(&mut self, write: impl FnOnce(&mut Registers)) {
        if let Self::LockUntouched(Some(registers)) = self {
            write(registers);
        }
    }

    /// The registers to put back.
    pub fn registers(self) -> Option<Registers> {
        match self {
            Self::LockUntouched(registers) => registers,
            Self::LockWritten => None,
        }
    }
}

impl I6300esb {
    /// Puts the registers back, and starts stage 1 at `now`; false if there are none.
    pub(super) fn put_back_registers(&mut self, now: VmInstant) -> bool {
        let Some(Registers { configuration, lock, preload1, preload2, bar0: _ }) = self.since_reset.registers() else {
            return false;
        };
        self.advance(now);
        self.since_reset = SinceReset::LockWritten;
        (self.configuration, self.lock) = (configuration, lock);
        (self.preload1, self.preload2) = (preload1, preload2);
        self.start_stage(Stage::One, self.latest);
        self.latch_message();
        // A preload of 0 ends at once.
        self.advance(now);
        true
    }
}

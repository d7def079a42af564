//! A watchdog behind the ACPI watchdog action table (WDAT), for guests that have no driver for an i6300esb: cloud kernels
//! (`wdat_wdt`) and Windows.
//!
//! The table tells the guest which register to access for which action. The registers are this model's own, four of 32
//! bits in memory or in port space, with one purpose each, so that no action has to preserve bits of another one:
//!
//! | offset | register | |
//! |---|---|---|
//! | 0 | RELOAD | periods from a start or a heartbeat to the timeout |
//! | 4 | COUNT | read: periods left, rounded up, 0 while nothing counts; any write: heartbeat |
//! | 8 | CONTROL | bit 0: the watchdog runs; a change from 0 to 1 starts the countdown |
//! | C | STATUS | bit 0: it has timed out; writing 1 clears it; a reset keeps it |
//!
//! A VMM places the block at an address that is neither RAM nor a PCI window, and passes the [table](WdatTable) with that
//! address to the guest. The table says that the watchdog stops while the guest is in one of the sleep states S1 to S5: a
//! VMM with sleep states pauses the guest's clock meanwhile. Sources: Microsoft's Hardware Watchdog Timers Design
//! Specification 1.01, and the driver of Linux.
//!
//! Decisions where the sources are silent:
//!
//! - The device limits RELOAD to the minimum and maximum of the table, and reads back as limited. Linux programs 30 s at
//!   its start, whatever the maximum is.
//! - A new RELOAD has an effect at the next start or heartbeat. Linux sends a heartbeat after each change.
//! - After the timeout the watchdog still runs, with a countdown of 0, until a heartbeat starts a whole countdown: a
//!   guest that continues is protected again.
//! - The actions 10h to 13h (reboot or shut down at the timeout) are not in the table, because the host decides that.

mod config;
mod spec;
mod state;
mod table;

pub use config::{TimerPeriod, WdatConfig};
pub use spec::REGISTERS_SIZE;
pub use state::WdatStateV1;
pub use table::{RegisterAddress, WdatTable};

use crate::{Access, Expired, LastReset, Model, StateError, VmInstant, lanes};
use spec::register;

/// The watchdog behind a WDAT.
///
/// Accesses take an offset and bytes in guest order. Every length and offset is valid; bytes outside the registers read
/// as all ones and ignore writes.
///
/// ```
/// use vm_watchdog_devices::wdat::{Wdat, WdatConfig};
/// use vm_watchdog_devices::{Access, Model, VmInstant};
///
/// let mut watchdog = Wdat::new(WdatConfig::default());
/// let at = |ms: u64| VmInstant::from_nanos(ms * 1_000_000);
/// // What Linux' driver does: a countdown of 30 s, start, heartbeat.
/// watchdog.write(0x0, &30_000u32.to_le_bytes(), at(0));
/// watchdog.write(0x8, &1u32.to_le_bytes(), at(0));
/// assert_eq!(watchdog.write(0x4, &1u32.to_le_bytes(), at(20_000)), Access::Heartbeat);
/// assert_eq!(watchdog.poll_at(), Some(at(50_000)));
///
/// let mut left = [0; 4];
/// watchdog.read(0x4, &mut left, at(49_999));
/// assert_eq!(u32::from_le_bytes(left), 1);
/// assert_eq!(watchdog.poll(at(50_000)).timeout, Some(at(50_000)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wdat {
    config: WdatConfig,
    /// RELOAD as the guest wrote it, beyond the limits too.
    reload: u32,
    countdown: Countdown,
    /// It has timed out since the guest last cleared that. A reset does not clear it.
    timed_out: bool,
    /// A timeout that is not yet polled.
    expired: Option<VmInstant>,
    /// The latest instant passed in. The device uses it in place of an earlier one.
    latest: VmInstant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Countdown {
    /// The guest has not started the watchdog, or has stopped it.
    Stopped,
    /// It times out at the deadline.
    Running { deadline: VmInstant },
    /// It has timed out, and there was no heartbeat since.
    Expired,
}

impl Wdat {
    /// A device after power-on.
    pub const fn new(config: WdatConfig) -> Self {
        Self {
            config,
            reload: config.period.reset_count(),
            countdown: Countdown::Stopped,
            timed_out: false,
            expired: None,
            latest: VmInstant::ZERO,
        }
    }

    /// The configuration, which the [table](WdatTable) must have too.
    pub const fn config(&self) -> WdatConfig {
        self.config
    }

    /// Reads registers.
    pub fn read(&mut self, offset: u64, data: &mut [u8], now: VmInstant) -> Access {
        self.advance(now);
        let known = lanes::read_dwords(offset, data, |at| self.register(at));
        if known { Access::Accepted } else { Access::Ignored }
    }

    /// Writes registers.
    pub fn write(&mut self, offset: u64, data: &[u8], now: VmInstant) -> Access {
        self.advance(now);
        let access = lanes::dword_writes(offset, data).map(|write| self.write_register(write)).max();
        access.unwrap_or(Access::Ignored)
    }

    /// Whether the watchdog has timed out since the guest last cleared that. Resets do not clear it.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    fn register(&self, offset: u64) -> Option<u32> {
        match offset {
            register::RELOAD => Some(self.count()),
            register::COUNT => Some(self.count_left()),
            register::CONTROL => Some(if self.is_armed() { spec::RUN } else { 0 }),
            register::STATUS => Some(if self.timed_out { spec::TIMED_OUT } else { 0 }),
            _ => None,
        }
    }

    fn write_register(&mut self, write: lanes::DwordWrite) -> Access {
        match write.offset {
            register::RELOAD => self.reload = write.merged_into(self.reload),
            register::COUNT if !self.is_armed() => return Access::HeartbeatWhileDisarmed,
            register::COUNT => {
                self.start();
                return Access::Heartbeat;
            }
            register::CONTROL if write.mask & spec::RUN == 0 => {}
            register::CONTROL if !write.sets(spec::RUN) => self.countdown = Countdown::Stopped,
            register::CONTROL if !self.is_armed() => self.start(),
            register::CONTROL => {}
            register::STATUS => self.timed_out &= !write.sets(spec::TIMED_OUT),
            _ => return Access::Ignored,
        }
        Access::Accepted
    }

    fn start(&mut self) {
        self.countdown = Countdown::Running { deadline: self.latest + self.config.period.as_duration() * self.count() };
    }

    /// The countdown in periods.
    fn count(&self) -> u32 {
        self.reload.clamp(self.config.period.min_count(), self.config.period.max_count())
    }

    /// What is left of it, rounded up: 0 only if nothing counts.
    fn count_left(&self) -> u32 {
        let Countdown::Running { deadline } = self.countdown else {
            return 0;
        };
        let left = deadline.saturating_duration_since(self.latest).as_nanos();
        left.div_ceil(self.config.period.as_duration().as_nanos()).try_into().unwrap_or(u32::MAX)
    }

    /// Advances to `now`, and records a timeout if the deadline has passed.
    fn advance(&mut self, now: VmInstant) {
        self.latest = self.latest.max(now);
        if let Countdown::Running { deadline } = self.countdown {
            // `MAX` is the result of saturation: such a deadline is never reached.
            if deadline <= self.latest && deadline < VmInstant::MAX {
                self.countdown = Countdown::Expired;
                self.timed_out = true;
                // Of several timeouts between polls, report the first.
                self.expired.get_or_insert(deadline);
            }
        }
    }
}

impl Model for Wdat {
    type State = WdatStateV1;

    fn poll_at(&self) -> Option<VmInstant> {
        self.expired.or_else(|| self.timeout_at())
    }

    fn timeout_at(&self) -> Option<VmInstant> {
        match self.countdown {
            Countdown::Running { deadline } => Some(deadline),
            Countdown::Stopped | Countdown::Expired => None,
        }
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        self.advance(now);
        Expired { timeout: self.expired.take(), ..Expired::default() }
    }

    fn is_armed(&self) -> bool {
        self.countdown != Countdown::Stopped
    }

    fn last_reset(&self) -> LastReset {
        LastReset::new(self.timed_out)
    }

    fn set_last_reset(&mut self, last: LastReset) {
        self.timed_out = last.by_watchdog;
    }

    fn reset(&mut self) {
        let Self { config, timed_out, latest, .. } = *self;
        *self = Self { timed_out, latest, ..Self::new(config) };
    }

    fn save(&mut self, now: VmInstant) -> WdatStateV1 {
        self.advance(now);
        self.to_state()
    }

    fn restored(&self, state: &WdatStateV1, now: VmInstant) -> Result<Self, StateError> {
        self.with_state(state, now)
    }
}

impl Default for Wdat {
    fn default() -> Self {
        Self::new(WdatConfig::default())
    }
}

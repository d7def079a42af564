//! The Generic Watchdog of Arm's Base System Architecture (BSA, SBSA), which arm64 guests drive with `sbsa_gwdt`.
//!
//! Two frames of 4 KiB in memory, one to control the watchdog and one to feed it:
//!
//! | frame | offset | register | |
//! |---|---|---|---|
//! | control | 000 | WCS | bit 0: enable; bit 1: WS0; bit 2: WS1 |
//! | control | 008, 00C | WOR | 48 bits: ticks of a watch period |
//! | control | 010, 014 | WCV | 64 bits: the compare value |
//! | refresh | 000 | WRR | any write feeds it; reads 0 |
//! | both | FCC | W_IIDR | version 1 |
//!
//! The watchdog compares the guest's system counter with WCV. A write of WRR, WOR or WCS is an explicit refresh: it loads
//! WCV with the counter plus WOR, and clears both signals. When the counter is greater than WCV, WS0 is asserted, an
//! interrupt for the guest, and a second watch period begins; at its end WS1 is asserted, on which the host acts. Here WS0
//! is the pretimeout, and WS1 the timeout. Source: Arm's Base System Architecture (DEN0094), appendix C.
//!
//! The guest sees absolute values of the counter, which belongs to its processors. The model has a counter of its own that
//! follows from the time and the [frequency](SbsaConfig::clock_frequency); [`Sbsa::set_counter`] sets it to what the guest's
//! one reads.
//!
//! Decisions where the specification is silent, or leaves the choice:
//!
//! - An access of another width than 32 bits acts on the registers that it covers, lowest first, with the other bytes of a
//!   register unchanged. WCV is compared when the whole access is done, so that a write of 64 bits is one.
//! - A reset of the platform is a Cold reset, whatever the signals are, except that WS1 stays until the next explicit
//!   refresh: Linux reads there whether the watchdog has caused the reset. WOR and WCV are 0 then.
//! - After WS1 nothing counts until an explicit refresh. WCV keeps the value that was exceeded, as specified.
//! - Nothing is compared while the watchdog is disabled, and WCV keeps its value.
//! - WCV plus WOR stops at 2^64 - 1, which no counter exceeds.
//! - Reserved registers of the frames read 0 and ignore writes.

mod config;
mod counter;
mod gtdt;
mod spec;
mod state;

pub use config::SbsaConfig;
pub use gtdt::{FrameAddresses, GtdtWatchdog};
pub use spec::{COMPATIBLE, FRAME_SIZE};
pub use state::SbsaStateV1;

use crate::{Access, Expired, LastReset, Model, StateError, VmInstant, lanes};
use counter::Counter;
use spec::{control, refresh, wcs};

/// The frames of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// WCS, WOR and WCV.
    Control,
    /// WRR.
    Refresh,
}

/// The Generic Watchdog, version 1.
///
/// Accesses take a frame, an offset and bytes in guest order. Every length and offset is valid; bytes beyond a frame read
/// as all ones and ignore writes.
///
/// ```
/// use core::num::NonZeroU32;
/// use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig};
/// use vm_watchdog_devices::{Access, Model, VmInstant};
///
/// let mut watchdog = Sbsa::new(SbsaConfig::new(NonZeroU32::new(1_000_000).expect("not zero")));
/// let at = |us: u64| VmInstant::from_nanos(us * 1_000);
/// // What Linux' driver does: two watch periods of 5 s, start, heartbeat.
/// watchdog.write(Frame::Control, 0x008, &5_000_000u64.to_le_bytes(), at(0));
/// watchdog.write(Frame::Control, 0x000, &1u32.to_le_bytes(), at(0));
/// assert_eq!(watchdog.write(Frame::Refresh, 0x000, &[0; 4], at(2_000_000)), Access::Heartbeat);
///
/// // No more heartbeats: each period ends when the counter is greater than the compare value.
/// let expired = watchdog.poll(at(12_000_002));
/// assert_eq!((expired.pretimeout, expired.timeout), (Some(at(7_000_001)), Some(at(12_000_002))));
/// assert!(watchdog.interrupt_level());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sbsa {
    /// With the latest instant passed in, which the device uses in place of an earlier one.
    counter: Counter,
    /// WCS.EN.
    enabled: bool,
    /// WCS.WS0. False while disabled.
    ws0: bool,
    /// WCS.WS1. While enabled only with WS0; a reset does not clear it.
    ws1: bool,
    /// WOR.
    wor: u64,
    /// WCV. Not less than the counter while the watchdog counts.
    wcv: u64,
    /// Expiries that are not yet polled.
    expired: Expired,
}

impl Sbsa {
    /// A device after power-on, with a counter that reads 0 when the clock starts.
    pub const fn new(config: SbsaConfig) -> Self {
        Self {
            counter: Counter::new(config.clock_frequency),
            enabled: false,
            ws0: false,
            ws1: false,
            wor: 0,
            wcv: 0,
            expired: Expired { pretimeout: None, timeout: None },
        }
    }

    /// The configuration.
    pub const fn config(&self) -> SbsaConfig {
        SbsaConfig::new(self.counter.frequency)
    }

    /// Sets the counter to what the guest's system counter reads at `now`, in ticks.
    ///
    /// The VMM calls it when the guest starts, unless the guest's counter starts at 0 with the clock, and whenever the two
    /// may have come apart. The time that is left stays as it is, to the nanosecond: WCV of a watchdog that counts moves
    /// with the counter.
    ///
    /// ```
    /// # use core::num::NonZeroU32;
    /// # use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig};
    /// # use vm_watchdog_devices::{Model, VmInstant};
    /// let mut watchdog = Sbsa::new(SbsaConfig::new(NonZeroU32::new(1_000).expect("not zero")));
    /// let second = VmInstant::from_nanos(1_000_000_000);
    /// watchdog.write(Frame::Control, 0x008, &5_000u64.to_le_bytes(), second);
    /// watchdog.write(Frame::Control, 0x000, &[1], second);
    /// let deadline = watchdog.poll_at();
    ///
    /// watchdog.set_counter(700_000, second);
    /// let mut wcv = [0; 8];
    /// watchdog.read(Frame::Control, 0x010, &mut wcv, second);
    /// assert_eq!(u64::from_le_bytes(wcv), 705_000);
    /// assert_eq!(watchdog.poll_at(), deadline);
    /// ```
    pub fn set_counter(&mut self, value: u64, now: VmInstant) {
        self.advance(now);
        if self.counts() {
            self.wcv = value.saturating_add(self.wcv.saturating_sub(self.counter.value));
        }
        self.counter.value = value;
    }

    /// Reads registers of a frame.
    pub fn read(&mut self, frame: Frame, offset: u64, data: &mut [u8], now: VmInstant) -> Access {
        self.advance(now);
        let known = lanes::read_dwords(offset, data, |at| self.register(frame, at));
        if known { Access::Accepted } else { Access::Ignored }
    }

    /// Writes registers of a frame.
    pub fn write(&mut self, frame: Frame, offset: u64, data: &[u8], now: VmInstant) -> Access {
        self.advance(now);
        let access = lanes::dword_writes(offset, data).map(|write| self.write_register(frame, write)).max();
        // A compare value that the counter has passed ends the period immediately; the next access must see that.
        self.advance(now);
        access.unwrap_or(Access::Ignored)
    }

    /// WS1: whether the watchdog has timed out since the last explicit refresh. Resets do not clear it.
    pub fn timed_out(&self) -> bool {
        self.ws1
    }

    fn register(&self, frame: Frame, offset: u64) -> Option<u32> {
        let [wor_low, wor_high] = halves(self.wor);
        let [wcv_low, wcv_high] = halves(self.wcv);
        Some(match (frame, offset) {
            (_, spec::FRAME_SIZE..) => return None,
            (_, spec::W_IIDR) => spec::IDENTIFICATION,
            (Frame::Control, control::WCS) => self.wcs(),
            (Frame::Control, control::WOR_LOW) => wor_low,
            (Frame::Control, control::WOR_HIGH) => wor_high,
            (Frame::Control, control::WCV_LOW) => wcv_low,
            (Frame::Control, control::WCV_HIGH) => wcv_high,
            // WRR, and what is reserved.
            _ => 0,
        })
    }

    fn wcs(&self) -> u32 {
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        bit(self.enabled, wcs::EN) | bit(self.ws0, wcs::WS0) | bit(self.ws1, wcs::WS1)
    }

    fn write_register(&mut self, frame: Frame, write: lanes::DwordWrite) -> Access {
        let was_enabled = self.enabled;
        match (frame, write.offset) {
            (Frame::Refresh, refresh::WRR) if !self.enabled => {
                self.refresh();
                return Access::HeartbeatWhileDisarmed;
            }
            (Frame::Refresh, refresh::WRR) => {}
            (Frame::Control, control::WCS) => self.enabled = write.merged_into(self.wcs()) & wcs::EN != 0,
            (Frame::Control, control::WOR_LOW) => self.wor = merged_low(self.wor, write),
            (Frame::Control, control::WOR_HIGH) => self.wor = merged_high(self.wor, write) & spec::OFFSET_MASK,
            (Frame::Control, control::WCV_LOW) => {
                self.wcv = merged_low(self.wcv, write);
                return Access::Accepted;
            }
            (Frame::Control, control::WCV_HIGH) => {
                self.wcv = merged_high(self.wcv, write);
                return Access::Accepted;
            }
            _ => return Access::Ignored,
        }
        self.refresh();
        if was_enabled && self.enabled { Access::Heartbeat } else { Access::Accepted }
    }

    /// An explicit refresh.
    fn refresh(&mut self) {
        (self.ws0, self.ws1) = (false, false);
        self.wcv = self.counter.value.saturating_add(self.wor);
    }

    /// Whether a watch period runs.
    fn counts(&self) -> bool {
        self.enabled && !self.ws1
    }

    /// When the watch period ends that runs.
    fn period_ends_at(&self) -> Option<VmInstant> {
        self.counts().then(|| self.counter.exceeds_at(self.wcv))
    }

    /// The compare value of the second period: loaded when the counter exceeds that of the first one.
    fn second_compare_value(&self) -> u64 {
        let counter = self.wcv.saturating_add(1).max(self.counter.value);
        counter.saturating_add(self.wor)
    }

    /// Advances to `now`, and ends the periods that are over: both at most, because nothing counts after WS1.
    fn advance(&mut self, now: VmInstant) {
        let now = now.max(self.counter.at);
        // `MAX` is the result of saturation: such a deadline is never reached.
        while let Some(end) = self.period_ends_at().filter(|end| *end <= now && *end < VmInstant::MAX) {
            if self.ws0 {
                self.ws1 = true;
                // Of several timeouts between polls, report the first.
                self.expired.timeout.get_or_insert(end);
            } else {
                self.ws0 = true;
                self.wcv = self.second_compare_value();
                self.expired.pretimeout.get_or_insert(end);
            }
        }
        self.counter.advance(now);
    }
}

/// The lower and the upper 32 bits.
fn halves(register: u64) -> [u32; 2] {
    [register as u32, (register >> 32) as u32]
}

fn merged_low(register: u64, write: lanes::DwordWrite) -> u64 {
    let [low, high] = halves(register);
    u64::from(high) << 32 | u64::from(write.merged_into(low))
}

fn merged_high(register: u64, write: lanes::DwordWrite) -> u64 {
    let [low, high] = halves(register);
    u64::from(write.merged_into(high)) << 32 | u64::from(low)
}

impl Model for Sbsa {
    type State = SbsaStateV1;

    fn poll_at(&self) -> Option<VmInstant> {
        let waiting = self.expired.pretimeout.into_iter().chain(self.expired.timeout).min();
        waiting.or_else(|| self.period_ends_at())
    }

    fn timeout_at(&self) -> Option<VmInstant> {
        let end = self.period_ends_at()?;
        Some(if self.ws0 { end } else { self.counter.exceeds_at(self.second_compare_value()) })
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        self.advance(now);
        core::mem::take(&mut self.expired)
    }

    fn interrupt_level(&self) -> bool {
        self.ws0
    }

    fn is_armed(&self) -> bool {
        self.enabled
    }

    fn last_reset(&self) -> LastReset {
        LastReset::new(self.ws1)
    }

    /// Of an armed watchdog it changes nothing: WS1 says there what the device has done itself.
    fn set_last_reset(&mut self, last: LastReset) {
        if !self.enabled {
            self.ws1 = last.by_watchdog;
        }
    }

    fn reset(&mut self) {
        *self = Self { counter: self.counter, ws1: self.ws1, ..Self::new(self.config()) };
    }

    fn save(&mut self, now: VmInstant) -> SbsaStateV1 {
        self.advance(now);
        self.to_state()
    }

    fn restored(&self, state: &SbsaStateV1, now: VmInstant) -> Result<Self, StateError> {
        self.with_state(state, now)
    }
}

//! The Intel 6300ESB watchdog timer, a PCI function (8086:25AB).
//!
//! A guest configures it in configuration space (60h, 68h) and sends heartbeats through sixteen bytes of memory (BAR0).
//! The period has two stages: the first ends in the pretimeout (WDT_INT_ACT, an interrupt), the second in the timeout.
//! Sources: the public parts of datasheet 300641, the drivers of Linux, FreeBSD and OpenBSD, EFI Boot Guard, and QEMU
//! 11.1's device where these are silent.
//!
//! Decisions where sources are silent or differ:
//!
//! - Free running mode runs both stages in turn, as QEMU's device does, and restarts stage 1 after each timeout. A
//!   stage with preload 0 then lasts one prescaler unit, so that the model cannot loop without end.
//! - The live counter at 64h reads 0 while the counter is stopped.
//! - Without an interrupt pin the PCI status bit 3 (interrupt pending) stays 0.
//! - MSI is an option of this model, not of the chip. While a guest has it enabled, the pin is not used and status bit 3
//!   is 0. A message goes out when WDT_INT_ACT is set, MSI, bus master and the interrupt type IRQ are enabled, whichever
//!   comes last; there is no other one until one of them has ended.
//! - An access across several dwords is performed dword by dword, lowest first, as on the bus.
//! - BAR0 decodes nothing at address zero (not assigned). A write of all ones is a sizing write, not an address: BAR0
//!   stays where it decodes, and decodes nothing if memory is enabled only then. A byte or word write moves BAR0 at once.

mod before_reset;
mod config;
mod config_space;
mod counter;
mod header;
mod msi;
mod registers;
mod spec;
mod state;

pub use config::{I6300esbConfig, InterruptPin};
use counter::{Counter, Prescaler, Stage};
pub use header::BarMove;
pub use spec::{
    BAR0_SIZE, CLASS_CODE, CONFIG_SPACE_SIZE, DEVICE_ID, MEMORY_ENABLE, MSI_CAPABILITY, REVISION_ID, VENDOR_ID,
};
pub use state::{ArmedStateV1, CounterStateV1, I6300esbStateV1, MsiStateV1, SinceResetStateV1};

use core::time::Duration;

use crate::{Access, Expired, LastReset, Model, MsiMessage, StateError, VmInstant, lanes};
use before_reset::{Registers, SinceReset};
use header::PciHeader;
use msi::{Message, Msi};
use registers::Unlock;
pub use registers::UnlockKey;

/// An Intel 6300ESB watchdog timer.
///
/// Accesses take an offset and bytes in guest order. Every length and offset is valid; bytes outside the registers read
/// as all ones and ignore writes.
///
/// ```
/// use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
/// use vm_watchdog_devices::{Access, Model, VmInstant};
///
/// let mut watchdog = I6300esb::new(I6300esbConfig::default());
/// let at = VmInstant::from_nanos;
/// let unlock = |w: &mut I6300esb, now| {
///     w.write_bar(0x0C, &[0x80, 0], now);
///     w.write_bar(0x0C, &[0x86, 0], now);
/// };
/// // Preloads of 512 units of 983,040 ns: about half a second in each stage.
/// for preload in [0x00, 0x04] {
///     unlock(&mut watchdog, at(0));
///     watchdog.write_bar(preload, &512u32.to_le_bytes(), at(0));
/// }
/// watchdog.write_config(0x68, &[0x02], at(0));
///
/// unlock(&mut watchdog, at(1_000));
/// let reload = watchdog.write_bar(0x0C, &0x0100u16.to_le_bytes(), at(1_000));
/// assert_eq!(reload, Access::Heartbeat);
///
/// // No more heartbeats: the timeout comes after two stages, to the nanosecond.
/// assert_eq!(watchdog.poll(at(1_006_633_959)).timeout, None);
/// assert_eq!(watchdog.poll(at(1_006_633_960)).timeout, Some(at(1_006_633_960)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct I6300esb {
    config: I6300esbConfig,
    header: PciHeader,
    msi: Msi,
    /// 60h, WDT configuration.
    configuration: u8,
    /// 68h, WDT lock.
    lock: u8,
    preload1: u32,
    preload2: u32,
    unlock: Unlock,
    /// GINTSR WDT_INT_ACT.
    interrupt_active: bool,
    /// RELOAD WDT_TIMEOUT: the watchdog has timed out. A reset does not clear it.
    timed_out: bool,
    /// Whether the guest can be one that does not know of the last reset.
    since_reset: SinceReset,
    /// `None` while disabled, and from a timeout until the next reload.
    counter: Option<Counter>,
    /// Expiries that are not yet polled.
    expired: Expired,
    /// The latest instant passed in. The device uses it in place of an earlier one.
    latest: VmInstant,
}

impl I6300esb {
    /// A device after power-on.
    pub const fn new(config: I6300esbConfig) -> Self {
        Self {
            config,
            header: PciHeader::reset(&config),
            msi: Msi::RESET,
            configuration: 0,
            lock: 0,
            preload1: spec::PRELOAD_MASK,
            preload2: spec::PRELOAD_MASK,
            unlock: Unlock::Locked,
            interrupt_active: false,
            timed_out: false,
            since_reset: SinceReset::LockUntouched(None),
            counter: None,
            expired: Expired { pretimeout: None, timeout: None },
            latest: VmInstant::ZERO,
        }
    }

    /// Reads configuration space.
    pub fn read_config(&mut self, offset: u16, data: &mut [u8], now: VmInstant) -> Access {
        self.advance(now);
        let known = lanes::read_dwords(offset.into(), data, |at| self.config_dword(at));
        if known { Access::Accepted } else { Access::Ignored }
    }

    /// Completes a read of configuration space for a VMM that owns the PCI header.
    ///
    /// `data` has the bytes of the VMM's header. The device replaces what is its own: 60h to 6Bh; bit 3 of the status
    /// register (an interrupt is pending); and with MSI bit 4 of the status register, the capabilities pointer and the
    /// [capability](MSI_CAPABILITY).
    pub fn complete_config_read(&mut self, offset: u16, data: &mut [u8], now: VmInstant) -> Access {
        self.advance(now);
        for (offset, byte) in (offset..=u16::MAX).zip(data) {
            let own = self.own_bits(offset);
            let mut device = [0];
            lanes::read_dwords(offset.into(), &mut device, |at| self.config_dword(at));
            *byte = *byte & !own | device[0] & own;
        }
        Access::Accepted
    }

    /// Writes configuration space. A VMM that owns the PCI header passes every write to both.
    pub fn write_config(&mut self, offset: u16, data: &[u8], now: VmInstant) -> Access {
        self.write_dwords(offset.into(), data, now, Self::write_config_dword)
    }

    /// Reads BAR0.
    pub fn read_bar(&mut self, offset: u64, data: &mut [u8], now: VmInstant) -> Access {
        self.advance(now);
        let known = lanes::read_dwords(offset, data, |at| self.bar_dword(at));
        if known { Access::Accepted } else { Access::Ignored }
    }

    /// Writes BAR0.
    pub fn write_bar(&mut self, offset: u64, data: &[u8], now: VmInstant) -> Access {
        self.write_dwords(offset, data, now, Self::write_bar_dword)
    }

    /// The guest-physical address at which BAR0 decodes; `None` while memory decoding is off, or no address is assigned.
    ///
    /// While a guest sizes BAR0 with memory decoding on, this is the address before the guest wrote all ones; the
    /// pattern that the guest reads back is never an address.
    pub fn bar0(&self) -> Option<u32> {
        self.header.decoded
    }

    /// WDT_TIMEOUT: whether the watchdog has timed out since the guest last cleared the bit. Resets do not clear it.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Time from a heartbeat to the timeout, as the guest has set it: both stages (datasheet, PRELOAD1 and PRELOAD2). `None` while
    /// the watchdog is disarmed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use vm_watchdog_devices::VmInstant;
    /// # use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
    /// let mut device = I6300esb::new(I6300esbConfig::default());
    /// assert_eq!(device.period(), None);
    /// device.write_config(0x68, &[0x02], VmInstant::ZERO);
    /// // Both preloads are 0xFFFFF after a reset, in units of 983.04 us.
    /// assert_eq!(device.period(), Some(2 * 0xF_FFFF * Duration::from_nanos(983_040)));
    /// ```
    pub fn period(&self) -> Option<Duration> {
        let stage_length = |stage| self.prescaler().stage_length(self.stage_preload(stage));
        self.is_enabled().then(|| stage_length(Stage::One) + stage_length(Stage::Two))
    }

    /// The registers of the watchdog that [`rearm`](Model::rearm) would arm; `None` if it would not.
    pub fn armed_before_reset(&self) -> Option<ArmedStateV1> {
        self.since_reset.registers().map(Registers::to_state)
    }

    /// The registers of an armed watchdog, which a reset does not forget; `None` while it is disarmed.
    pub fn armed_registers(&self) -> Option<ArmedStateV1> {
        self.is_enabled().then(|| Registers::of(self).to_state())
    }

    fn write_dwords(
        &mut self,
        offset: u64,
        data: &[u8],
        now: VmInstant,
        write_dword: impl Fn(&mut Self, lanes::DwordWrite) -> Access,
    ) -> Access {
        self.advance(now);
        let write = |dword| {
            let access = write_dword(self, dword);
            self.latch_message();
            access
        };
        let access = lanes::dword_writes(offset, data).map(write).max();
        // A write can start a stage with preload 0, which ends immediately; the next access must see that.
        self.advance(now);
        access.unwrap_or(Access::Ignored)
    }

    fn is_enabled(&self) -> bool {
        self.lock & spec::lock::WDT_ENABLE != 0
    }

    fn is_free_running(&self) -> bool {
        self.lock & spec::lock::WDT_TOUT_CNF_FREE_RUNNING != 0
    }

    fn is_output_enabled(&self) -> bool {
        self.configuration & spec::configuration::WDT_OUTPUT_DISABLED == 0
    }

    fn prescaler(&self) -> Prescaler {
        Prescaler::of(self.configuration)
    }

    /// Whether the end of stage one is an interrupt, by pin or by message.
    fn is_interrupt_enabled(&self) -> bool {
        self.configuration & spec::configuration::WDT_INT_TYPE == spec::configuration::WDT_INT_TYPE_IRQ
    }

    /// Whether the device has an interrupt, by pin or by message.
    fn has_interrupt(&self) -> bool {
        self.interrupt_active && self.is_interrupt_enabled()
    }

    /// Whether the interrupt goes to the pin. INTx disable does not affect this; MSI enable does (PCI 3.0, section 6.8).
    fn is_pin_pending(&self) -> bool {
        self.has_interrupt() && self.config.interrupt_pin == InterruptPin::IntA && !self.msi.enabled
    }

    /// Whether the interrupt goes out as a message, which is a write by the device as bus master.
    fn has_message(&self) -> bool {
        self.has_interrupt() && self.msi.enabled && self.header.is_bus_master()
    }

    /// Notes the beginning or the end of an interrupt by message.
    fn latch_message(&mut self) {
        self.msi.latch(self.has_message());
    }

    fn start_stage(&mut self, stage: Stage, at: VmInstant) {
        let preload = self.stage_preload(stage);
        self.counter = Some(Counter::load(stage, self.prescaler(), preload, at));
    }

    fn stage_preload(&self, stage: Stage) -> u32 {
        let preload = match stage {
            Stage::One => self.preload1,
            Stage::Two => self.preload2,
        };
        preload.max(self.is_free_running().into())
    }

    /// Advances to `now`.
    #[inline]
    fn advance(&mut self, now: VmInstant) {
        self.latest = self.latest.max(now);
        if self.counter.is_some_and(|counter| counter.has_ended(self.latest)) {
            self.end_stages();
        }
    }

    /// Processes the end of every stage up to the latest instant.
    #[cold]
    fn end_stages(&mut self) {
        let mut wrapped = false;
        while let Some(Counter { stage, ends_at, .. }) = self.counter.filter(|counter| counter.has_ended(self.latest)) {
            match stage {
                Stage::One => {
                    self.interrupt_active = true;
                    self.expired.pretimeout.get_or_insert(ends_at);
                    self.start_stage(Stage::Two, ends_at);
                }
                Stage::Two => {
                    self.timed_out = true;
                    if self.is_output_enabled() {
                        self.expired.timeout.get_or_insert(ends_at);
                    }
                    if !self.is_free_running() {
                        self.counter = None;
                    } else if !wrapped {
                        wrapped = true;
                        self.start_stage(Stage::One, ends_at);
                    } else {
                        // The first whole cycle has set every flag that a cycle sets: skip the remaining cycles.
                        self.start_stage(Stage::One, self.start_of_cycle(ends_at));
                    }
                }
            }
        }
        self.latch_message();
    }

    /// The start of the free running cycle that contains the latest instant, given that a cycle starts at `from`.
    fn start_of_cycle(&self, from: VmInstant) -> VmInstant {
        let unit = self.prescaler().unit_nanos();
        let units = u64::from(self.stage_preload(Stage::One)) + u64::from(self.stage_preload(Stage::Two));
        let behind = self.latest.as_nanos().saturating_sub(from.as_nanos());
        VmInstant::from_nanos(self.latest.as_nanos() - behind % (units * unit))
    }
}

impl Model for I6300esb {
    type State = I6300esbStateV1;

    fn poll_at(&self) -> Option<VmInstant> {
        let waiting = self.expired.pretimeout.into_iter().chain(self.expired.timeout).min();
        waiting.or(self.counter.map(|counter| counter.ends_at))
    }

    fn next_effect_at(&self) -> Option<VmInstant> {
        let is_in_stage_one = self.counter.is_some_and(|counter| counter.stage == Stage::One);
        let interrupts =
            self.is_interrupt_enabled() && (self.config.interrupt_pin == InterruptPin::IntA || self.msi.enabled);
        if is_in_stage_one && !interrupts && self.expired.is_empty() { self.timeout_at() } else { self.poll_at() }
    }

    fn timeout_at(&self) -> Option<VmInstant> {
        let counter = self.counter?;
        Some(match counter.stage {
            Stage::One => counter.ends_at + self.prescaler().stage_length(self.stage_preload(Stage::Two)),
            Stage::Two => counter.ends_at,
        })
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        self.advance(now);
        core::mem::take(&mut self.expired)
    }

    fn interrupt_level(&self) -> bool {
        self.is_pin_pending() && !self.header.is_intx_disabled()
    }

    fn message(&self) -> Option<MsiMessage> {
        self.msi.due()
    }

    fn take_message(&mut self) {
        if self.msi.message == Message::Due {
            self.msi.message = Message::Taken;
        }
    }

    fn put_back_message(&mut self) {
        if self.msi.message == Message::Taken {
            self.msi.message = Message::Due;
        }
    }

    fn is_armed(&self) -> bool {
        self.is_enabled()
    }

    fn last_reset(&self) -> LastReset {
        LastReset::new(self.timed_out)
    }

    fn set_last_reset(&mut self, last: LastReset) {
        self.timed_out = last.by_watchdog;
    }

    fn reset(&mut self) {
        let since_reset = SinceReset::after_reset_of(self);
        *self = Self { timed_out: self.timed_out, since_reset, latest: self.latest, ..Self::new(self.config) };
    }

    fn guest_may_predate_reset(&self) -> bool {
        matches!(self.since_reset, SinceReset::LockUntouched(_))
    }

    fn rearm_timeout(&self) -> Option<Duration> {
        let Registers { configuration, preload1, preload2, .. } = self.since_reset.registers()?;
        let prescaler = Prescaler::of(configuration);
        Some(prescaler.stage_length(preload1) + prescaler.stage_length(preload2))
    }

    fn rearm(&mut self, now: VmInstant) -> bool {
        self.put_back_registers(now)
    }

    fn save(&mut self, now: VmInstant) -> I6300esbStateV1 {
        self.advance(now);
        self.to_state()
    }

    fn restored(&self, state: &I6300esbStateV1, now: VmInstant) -> Result<Self, StateError> {
        Self::from_state(self.config, state, now)
    }
}

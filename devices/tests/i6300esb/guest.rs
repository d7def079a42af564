//! A guest that accesses the device, and a VMM that polls the device at the instants of `poll_at`.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Expired, Model, VmInstant};

pub const CONFIGURATION: u16 = 0x60;
pub const LIVE_COUNTER: u16 = 0x64;
pub const LOCK: u16 = 0x68;

pub const PRELOAD1: u64 = 0x00;
pub const PRELOAD2: u64 = 0x04;
pub const GINTSR: u64 = 0x08;
pub const RELOAD: u64 = 0x0C;

/// Nanoseconds in one unit of a preload with the prescaler at 1 kHz: 2^15 clocks of 30 ns.
pub const KHZ: u64 = 983_040;
/// The same at 1 MHz: 2^5 clocks of 30 ns.
pub const MHZ: u64 = 960;
pub const SECOND: u64 = 1_000_000_000;

/// Expiry that a poll has reported, with its instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Pretimeout(u64),
    Timeout(u64),
}

pub struct Guest {
    pub device: I6300esb,
    pub now: u64,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_config(I6300esbConfig::default())
    }

    pub fn with_interrupt_line() -> Self {
        Self::with_config(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA))
    }

    pub fn with_config(config: I6300esbConfig) -> Self {
        // Not zero, so that a model that confuses an instant with a duration fails.
        Self { device: I6300esb::new(config), now: 7_000_000_123 }
    }

    pub fn at(&self) -> VmInstant {
        VmInstant::from_nanos(self.now)
    }

    pub fn read_config<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0x5A; N];
        self.device.read_config(offset, &mut data, VmInstant::from_nanos(self.now));
        data
    }

    pub fn read_bar<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0x5A; N];
        self.device.read_bar(offset, &mut data, VmInstant::from_nanos(self.now));
        data
    }

    pub fn config8(&mut self, offset: u16) -> u8 {
        u8::from_le_bytes(self.read_config(offset))
    }

    pub fn config16(&mut self, offset: u16) -> u16 {
        u16::from_le_bytes(self.read_config(offset))
    }

    pub fn config32(&mut self, offset: u16) -> u32 {
        u32::from_le_bytes(self.read_config(offset))
    }

    pub fn bar16(&mut self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read_bar(offset))
    }

    pub fn bar32(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read_bar(offset))
    }

    pub fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.device.write_config(offset, data, self.at())
    }

    pub fn write_bar(&mut self, offset: u64, data: &[u8]) -> Access {
        self.device.write_bar(offset, data, self.at())
    }

    pub fn set_config8(&mut self, offset: u16, value: u8) -> Access {
        self.write_config(offset, &value.to_le_bytes())
    }

    pub fn set_config16(&mut self, offset: u16, value: u16) -> Access {
        self.write_config(offset, &value.to_le_bytes())
    }

    pub fn set_config32(&mut self, offset: u16, value: u32) -> Access {
        self.write_config(offset, &value.to_le_bytes())
    }

    pub fn set_bar8(&mut self, offset: u64, value: u8) -> Access {
        self.write_bar(offset, &value.to_le_bytes())
    }

    pub fn set_bar16(&mut self, offset: u64, value: u16) -> Access {
        self.write_bar(offset, &value.to_le_bytes())
    }

    pub fn set_bar32(&mut self, offset: u64, value: u32) -> Access {
        self.write_bar(offset, &value.to_le_bytes())
    }

    pub fn unlock(&mut self) {
        self.set_bar16(RELOAD, 0x80);
        self.set_bar16(RELOAD, 0x86);
    }

    /// Sets both preloads, in units of the prescaler.
    pub fn preload(&mut self, preload1: u32, preload2: u32) {
        self.unlock();
        self.set_bar32(PRELOAD1, preload1);
        self.unlock();
        self.set_bar32(PRELOAD2, preload2);
    }

    pub fn enable(&mut self) -> Access {
        self.set_config8(LOCK, 0x02)
    }

    pub fn disable(&mut self) -> Access {
        self.set_config8(LOCK, 0x00)
    }

    pub fn reload(&mut self) -> Access {
        self.unlock();
        self.set_bar16(RELOAD, 0x0100)
    }

    /// The accesses of firmware and PCI core before a driver attaches.
    pub fn enumerate(&mut self) {
        assert_eq!(self.config32(0x00), 0x25AB_8086);
        assert_eq!(self.config32(0x08) >> 8, 0x08_80_00);
        self.set_config32(0x10, 0xFFFF_FFFF);
        assert_eq!(self.config32(0x10), 0xFFFF_FFF0);
        self.set_config32(0x10, 0xFEBF_1000);
        let command = self.config16(0x04);
        self.set_config16(0x04, command | 0x0002);
        assert_eq!(self.device.bar0(), Some(0xFEBF_1000));
    }

    /// The guest does nothing for `nanos`, and the VMM does not poll.
    pub fn sleep_unpolled(&mut self, nanos: u64) {
        self.now += nanos;
    }

    /// The guest does nothing for `nanos`, and the VMM polls exactly at the instants of `poll_at`.
    ///
    /// Checks that `poll_at` is exact: a poll one nanosecond earlier reports nothing, and a poll at the deadline
    /// reports an expiry, unless the guest has disabled the output.
    pub fn sleep(&mut self, nanos: u64) -> Vec<Event> {
        let end = self.now + nanos;
        let mut events = Vec::new();
        let mut wake_ups = 0;
        while let Some(wake_up) = self.deadline().filter(|&wake_up| wake_up <= end) {
            wake_ups += 1;
            assert!(wake_ups < 10_000, "more polls than any test expects");
            if wake_up > self.now {
                let early = self.device.poll(VmInstant::from_nanos(wake_up - 1));
                assert!(early.is_empty(), "{early:?} one nanosecond before the deadline {wake_up}");
                assert_eq!(self.deadline(), Some(wake_up));
                self.now = wake_up;
            }
            let seen = self.poll();
            let is_output_disabled = self.config8(CONFIGURATION) & 0x20 != 0;
            assert!(!seen.is_empty() || is_output_disabled, "nothing to report at the deadline {wake_up}");
            events.extend(seen);
        }
        self.now = end;
        assert!(self.poll().is_empty(), "an expiry that poll_at did not announce");
        events
    }

    /// The VMM polls now.
    pub fn poll(&mut self) -> Vec<Event> {
        let Expired { pretimeout, timeout, .. } = self.device.poll(self.at());
        let pretimeout = pretimeout.map(|at| Event::Pretimeout(at.as_nanos()));
        let timeout = timeout.map(|at| Event::Timeout(at.as_nanos()));
        pretimeout.into_iter().chain(timeout).collect()
    }

    pub fn deadline(&self) -> Option<u64> {
        self.device.poll_at().map(VmInstant::as_nanos)
    }

    /// The platform resets, and its firmware enumerates PCI again.
    pub fn reboot(&mut self) {
        self.device.reset();
        self.enumerate();
    }
}

//! A guest with its device and its system counter, and the accesses of Linux' driver.

use std::num::NonZeroU32;

use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig};
use vm_watchdog_devices::{Access, Expired, Model, VmInstant};

pub const WCS: u64 = 0x000;
pub const WOR_LOW: u64 = 0x008;
pub const WOR_HIGH: u64 = 0x00C;
pub const WCV_LOW: u64 = 0x010;
pub const WCV_HIGH: u64 = 0x014;

pub const EN: u32 = 1;
pub const WS0: u32 = 2;
pub const WS1: u32 = 4;

/// 16 ns in a tick.
pub const HZ: u32 = 62_500_000;
pub const TICK: u64 = 16;
pub const SECOND: u64 = 1_000_000_000;

pub fn device(hz: u32) -> Sbsa {
    Sbsa::new(SbsaConfig::new(NonZeroU32::new(hz).expect("not zero")))
}

pub fn at(nanos: u64) -> VmInstant {
    VmInstant::from_nanos(nanos)
}

pub struct Guest {
    pub device: Sbsa,
    /// Nanoseconds.
    pub now: u64,
    pub hz: u32,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_frequency(HZ)
    }

    pub fn with_frequency(hz: u32) -> Self {
        Self { device: device(hz), now: 0, hz }
    }

    pub fn at(&mut self, now: u64) -> &mut Self {
        self.now = now;
        self
    }

    /// The guest's system counter, which starts at 0 with the clock.
    pub fn counter(&self) -> u64 {
        (u128::from(self.now) * u128::from(self.hz) / 1_000_000_000) as u64
    }

    pub fn read(&mut self, register: u64) -> u32 {
        self.read_frame(Frame::Control, register)
    }

    pub fn read_frame(&mut self, frame: Frame, offset: u64) -> u32 {
        let mut data = [0xEE; 4];
        assert_eq!(self.device.read(frame, offset, &mut data, at(self.now)), Access::Accepted);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, register: u64, value: u32) -> Access {
        self.device.write(Frame::Control, register, &value.to_le_bytes(), at(self.now))
    }

    pub fn wor(&mut self) -> u64 {
        u64::from(self.read(WOR_HIGH)) << 32 | u64::from(self.read(WOR_LOW))
    }

    pub fn wcv(&mut self) -> u64 {
        u64::from(self.read(WCV_HIGH)) << 32 | u64::from(self.read(WCV_LOW))
    }

    /// The driver sets a watch period, by two writes of 32 bits.
    pub fn set_offset(&mut self, ticks: u64) -> [Access; 2] {
        [self.write(WOR_LOW, ticks as u32), self.write(WOR_HIGH, (ticks >> 32) as u32)]
    }

    /// A timeout of two watch periods: the driver with `action=0`.
    pub fn set_timeout(&mut self, seconds: u64) {
        self.set_offset(u64::from(self.hz) / 2 * seconds);
    }

    /// A watch period until the panic, and another until the reset: the driver with `action=1`.
    pub fn set_timeout_until_panic(&mut self, seconds: u64) {
        self.set_offset(u64::from(self.hz) * seconds);
    }

    pub fn start(&mut self) -> Access {
        self.write(WCS, EN)
    }

    pub fn stop(&mut self) -> Access {
        self.write(WCS, 0)
    }

    pub fn ping(&mut self) -> Access {
        self.device.write(Frame::Refresh, 0x000, &[0; 4], at(self.now))
    }

    /// Ticks left, as the driver with `action=0` computes them.
    pub fn ticks_left(&mut self) -> u64 {
        let second_period = if self.read(WCS) & WS0 == 0 { self.wor() } else { 0 };
        second_period + self.wcv() - self.counter()
    }

    /// Pretimeout and timeout since the last poll, in nanoseconds.
    pub fn poll(&mut self) -> [Option<u64>; 2] {
        let Expired { pretimeout, timeout, .. } = self.device.poll(at(self.now));
        [pretimeout, timeout].map(|instant| instant.map(VmInstant::as_nanos))
    }

    pub fn poll_at(&self) -> Option<u64> {
        self.device.poll_at().map(VmInstant::as_nanos)
    }

    pub fn timeout_at(&self) -> Option<u64> {
        self.device.timeout_at().map(VmInstant::as_nanos)
    }

    /// A guest that has started the watchdog at 0 with periods of so many ticks.
    pub fn started(ticks: u64) -> Self {
        let mut guest = Self::new();
        guest.set_offset(ticks);
        guest.start();
        guest
    }
}

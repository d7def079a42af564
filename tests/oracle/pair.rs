//! QEMU's device and the model, driven together.

use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog_devices::{Model, VmInstant};
use vm_watchdog_test_support::skip;

use crate::qtest::Qemu;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Config,
    Bar,
}

pub use Space::{Bar, Config};

pub const SECOND: u64 = 1_000_000_000;

/// QEMU's device and the model, at the same virtual time.
pub struct Pair {
    pub qemu: Qemu,
    pub model: I6300esb,
    pub now: u64,
}

impl Pair {
    /// Returns `None` if QEMU is unavailable: reports the test as skipped.
    pub fn start(test: &str) -> Option<Self> {
        match Qemu::start() {
            Ok(qemu) => {
                // QEMU's default subsystem.
                let config = I6300esbConfig::default().with_subsystem(0x1AF4, 0x1100);
                let mut pair = Self { qemu, model: I6300esb::new(config), now: 0 };
                pair.map_model();
                Some(pair)
            }
            Err(why) => {
                skip::loudly(test, &why);
                None
            }
        }
    }

    fn map_model(&mut self) {
        self.write_model(Config, 0x10, 4, 0xFEBF_1000);
        self.write_model(Config, 0x04, 2, 0x0002);
    }

    fn at(&self) -> VmInstant {
        VmInstant::from_nanos(self.now)
    }

    pub fn read_model(&mut self, space: Space, offset: u16, width: usize) -> u32 {
        let mut data = [0; 4];
        let now = self.at();
        match space {
            Config => self.model.read_config(offset, &mut data[..width], now),
            Bar => self.model.read_bar(offset.into(), &mut data[..width], now),
        };
        u32::from_le_bytes(data)
    }

    pub fn write_model(&mut self, space: Space, offset: u16, width: usize, value: u32) {
        let now = self.at();
        let data = &value.to_le_bytes()[..width];
        match space {
            Config => self.model.write_config(offset, data, now),
            Bar => self.model.write_bar(offset.into(), data, now),
        };
    }

    /// Reads from both: QEMU's value, then the model's.
    pub fn read(&mut self, space: Space, offset: u16, width: usize) -> (u32, u32) {
        (self.qemu.read(space, offset, width), self.read_model(space, offset, width))
    }

    /// Reads from both, which must return the same value.
    #[track_caller]
    pub fn read_same(&mut self, space: Space, offset: u16, width: usize) -> u32 {
        let (qemu, model) = self.read(space, offset, width);
        assert_eq!(qemu, model, "QEMU and the model, {width} bytes of {space:?} at {offset:#x}");
        model
    }

    pub fn write(&mut self, space: Space, offset: u16, width: usize, value: u32) {
        self.qemu.write(space, offset, width, value);
        self.write_model(space, offset, width, value);
    }

    /// Writes both keys, with Linux' width.
    pub fn unlock(&mut self) {
        self.write(Bar, 0x0C, 2, 0x80);
        self.write(Bar, 0x0C, 2, 0x86);
    }

    pub fn preload(&mut self, preload1: u32, preload2: u32) {
        self.unlock();
        self.write(Bar, 0x00, 4, preload1);
        self.unlock();
        self.write(Bar, 0x04, 4, preload2);
    }

    pub fn reload(&mut self) {
        self.unlock();
        self.write(Bar, 0x0C, 2, 0x0100);
    }

    /// Advances the time of both. Returns the number of timeouts of QEMU's device, then of the model.
    pub fn wait(&mut self, nanos: u64) -> (u32, u32) {
        self.now += nanos;
        let model = self.model.poll(self.at()).timeout.is_some();
        (self.qemu.step(nanos), model.into())
    }

    /// Advances the time of both, which must time out at the same nanosecond or not at all. Stops at a timeout and
    /// returns its instant: QEMU's device resets itself then, and the model does not.
    #[track_caller]
    pub fn wait_alike(&mut self, nanos: u64) -> Option<u64> {
        let end = self.now + nanos;
        while let Some(wake_up) = self.model.poll_at().map(VmInstant::as_nanos).filter(|&at| at <= end) {
            if wake_up > self.now {
                assert_eq!(self.wait(wake_up - 1 - self.now), (0, 0), "before the deadline {wake_up}");
            }
            let (qemu, model) = self.wait(wake_up - self.now);
            assert_eq!(qemu, model, "timeouts of QEMU and of the model at {wake_up}");
            if model > 0 {
                return Some(wake_up);
            }
        }
        assert_eq!(self.wait(end - self.now), (0, 0), "up to {end}");
        None
    }

    /// Resets both platforms, and advances the time until QEMU can report a timeout again.
    pub fn reset(&mut self) {
        self.qemu.reset();
        self.model.reset();
        self.map_model();
        assert_eq!(self.wait(2 * SECOND), (0, 0), "after a reset");
    }
}

//! A hostile guest and a VMM that polls at arbitrary times, on the i6300esb model.
//!
//! The device must not panic, hang, expire early or lose an expiry. After a poll, `poll_at` must be later than the
//! poll.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/i6300esb
//! cargo +nightly fuzz run i6300esb fuzz/corpus/i6300esb fuzz/seeds/i6300esb -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Model, VmInstant};

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitClocks { units: u16, megahertz: bool },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SaveAndRestore,
    Unlock,
    Reload,
    WritePreload { second: bool, value: u32 },
    WriteConfiguration(u8),
    WriteLock(u8),
    ReadConfig { offset: u16, length: u8 },
    WriteConfig { offset: u16, data: Vec<u8> },
    ReadBar { offset: u64, length: u8 },
    WriteBar { offset: u64, data: Vec<u8> },
    WriteInBar { offset: u8, data: [u8; 4], length: u8 },
}

#[derive(Arbitrary, Debug)]
struct Run {
    /// Bit 0: a pin. Bit 1: MSI.
    interrupt: u8,
    start: u64,
    steps: Vec<Step>,
}

struct Machine {
    config: I6300esbConfig,
    device: I6300esb,
    now: u64,
}

fuzz_target!(|run: Run| {
    let interrupt_pin = if run.interrupt & 1 != 0 { InterruptPin::IntA } else { InterruptPin::None };
    let config = I6300esbConfig::default().with_interrupt_pin(interrupt_pin);
    let config = if run.interrupt & 2 != 0 { config.with_msi() } else { config };
    let mut machine = Machine { config, device: I6300esb::new(config), now: run.start };
    for step in run.steps {
        machine.take(step);
    }
    machine.poll();
});

impl Machine {
    fn at(&self) -> VmInstant {
        VmInstant::from_nanos(self.now)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait { nanos } => self.wait_until(self.now.saturating_add(nanos)),
            Step::WaitClocks { units, megahertz } => {
                let clocks = u64::from(units) << if megahertz { 5 } else { 15 };
                self.wait_until(self.now.saturating_add(clocks * 30));
            }
            Step::WaitForDeadline { further } => {
                let deadline = self.device.poll_at().map_or(self.now, VmInstant::as_nanos);
                self.wait_until(deadline.saturating_add_signed(further.into()));
            }
            Step::Poll => self.poll(),
            Step::Reset => {
                self.device.reset();
                assert_eq!(self.device.poll_at(), None, "a reset clears every expiry");
            }
            Step::SaveAndRestore => self.save_and_restore(),
            Step::Unlock => {
                self.write_bar(0x0C, &[0x80]);
                self.write_bar(0x0C, &[0x86]);
            }
            Step::Reload => self.write_bar(0x0C, &[0x00, 0x01]),
            Step::WritePreload { second, value } => {
                self.write_bar(if second { 4 } else { 0 }, &value.to_le_bytes());
            }
            Step::WriteConfiguration(value) => self.write_config(0x60, &[value]),
            Step::WriteLock(value) => self.write_config(0x68, &[value]),
            Step::ReadConfig { offset, length } => {
                let mut data = vec![0; length.into()];
                self.device.read_config(offset, &mut data, self.at());
                assert!(offset < 0x100 || data.iter().all(|&byte| byte == 0xFF));
            }
            Step::WriteConfig { offset, data } => self.write_config(offset, &data),
            Step::ReadBar { offset, length } => {
                let mut data = vec![0; length.into()];
                self.device.read_bar(offset, &mut data, self.at());
                assert!(offset < 0x10 || data.iter().all(|&byte| byte == 0xFF));
            }
            Step::WriteBar { offset, data } => self.write_bar(offset, &data),
            Step::WriteInBar { offset, data, length } => {
                self.write_bar((offset % 16).into(), &data[..usize::from(length % 5)]);
            }
        }
    }

    /// Advances the time without a poll, after a check on copies that an intermediate poll changes nothing.
    fn wait_until(&mut self, later: u64) {
        let begin = self.now;
        self.now = later.max(begin);
        let (mut whole, mut cut) = (self.device.clone(), self.device.clone());
        cut.poll(VmInstant::from_nanos(begin + (self.now - begin) / 3));
        cut.poll(self.at());
        whole.poll(self.at());
        assert_eq!(cut.save(self.at()), whole.save(self.at()), "an intermediate poll changed the state");
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.write(|device, now| device.write_config(offset, data, now));
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        self.write(|device, now| device.write_bar(offset, data, now));
    }

    fn write(&mut self, write: impl Fn(&mut I6300esb, VmInstant) -> Access) {
        let now = self.at();
        let before = self.device.poll_at();
        let is_silent = self.register(0x60) & 0x20 != 0;
        let was_armed = self.device.is_armed();
        let access = write(&mut self.device, now);
        let after = self.device.poll_at();
        if before.is_some_and(|before| before <= now && before < VmInstant::MAX) {
            assert!(is_silent || after == before, "a latched expiry was lost: {before:?}, {after:?}");
        } else if access == Access::Heartbeat || (!was_armed && self.device.is_armed()) {
            let mut preload = [0; 4];
            self.device.read_bar(0, &mut preload, now);
            let unit = if self.register(0x60) & 0x04 == 0 { 983_040 } else { 960 };
            let earliest = now + Duration::from_nanos(u64::from(u32::from_le_bytes(preload)) * unit);
            assert!(after.is_some_and(|after| after >= earliest), "{after:?} is before {earliest}");
        }
    }

    /// Reads from a copy, because a read advances the device's time.
    fn register(&self, offset: u16) -> u8 {
        let mut data = [0];
        self.device.clone().read_config(offset, &mut data, self.at());
        data[0]
    }

    fn poll(&mut self) {
        let announced = self.device.poll_at();
        let expired = self.device.poll(self.at());
        for at in expired.pretimeout.into_iter().chain(expired.timeout) {
            assert!(at <= self.at(), "{at} is in the future");
            assert!(announced.is_some_and(|announced| announced <= at), "{at} was not announced");
        }
        let next = self.device.poll_at();
        if announced.is_some_and(|announced| announced > self.at()) {
            assert_eq!(next, announced, "an early poll changes nothing");
        }
        assert!(next.is_none_or(|next| next > self.at() || next == VmInstant::MAX), "one poll reports everything");
        assert!(self.device.poll(self.at()).is_empty(), "an expiry is reported once");
        let (level, message) = (self.device.interrupt_level(), self.device.message());
        assert!(!level || message.is_none(), "a level and a message at the same time");
        if level || message.is_some() {
            let mut gintsr = [0];
            self.device.read_bar(8, &mut gintsr, self.at());
            assert_eq!(gintsr, [1]);
        }
        if message.is_some() {
            self.device.take_message();
            assert_eq!(self.device.message(), None, "an interrupt has one message");
        }
        assert_ne!(self.device.bar0(), Some(0xFFFF_FFF0), "the sizing pattern");
    }

    fn save_and_restore(&mut self) {
        let state = self.device.save(self.at());
        let made_anew = I6300esb::new(self.config);
        if self.now < u64::MAX / 2 {
            self.device = made_anew.restored(&state, self.at()).expect("a state that a device was in");
            assert_eq!(self.device.save(self.at()), state);
        }
    }
}

//! A hostile guest and a VMM that polls at arbitrary times, on the model of the Generic Watchdog of Arm's BSA.
//!
//! The device must not panic, expire early or lose an expiry, whatever the frequency of the counter and its value. A read
//! changes nothing, and so does setting the counter with the time that is left.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/sbsa
//! cargo +nightly fuzz run sbsa fuzz/corpus/sbsa fuzz/seeds/sbsa -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::num::NonZeroU32;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig, SbsaStateV1};
use vm_watchdog_devices::{Access, LastReset, Model, VmInstant};

const SECOND: u64 = 1_000_000_000;

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitSeconds { seconds: u16 },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SetLastReset { by_watchdog: bool },
    SetCounter { value: u64 },
    SaveAndRestore,
    RestoreAnything { state: State },
    Read { refresh: bool, offset: u16, length: u8 },
    Write { refresh: bool, offset: u16, data: Vec<u8> },
    Offset { ticks: u64 },
    Compare { after_counter: i64 },
    Control { value: u8 },
    Refresh,
}

#[derive(Arbitrary, Debug)]
struct State {
    enabled: bool,
    ws0: bool,
    ws1: bool,
    wor: u64,
    wcv: u64,
    counter: u64,
    counter_fraction: u32,
    pretimeout_age_ns: Option<u64>,
    timeout_age_ns: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct Run {
    frequency: NonZeroU32,
    start: u64,
    steps: Vec<Step>,
}

struct Machine {
    fresh: Sbsa,
    device: Sbsa,
    now: u64,
}

fuzz_target!(|run: Run| {
    let fresh = Sbsa::new(SbsaConfig::new(run.frequency));
    let mut machine = Machine { device: fresh.clone(), fresh, now: run.start };
    for step in run.steps {
        machine.take(step);
    }
    machine.poll();
});

fn frame(refresh: bool) -> Frame {
    if refresh { Frame::Refresh } else { Frame::Control }
}

impl Machine {
    fn at(&self) -> VmInstant {
        VmInstant::from_nanos(self.now)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait { nanos } => self.wait_until(self.now.saturating_add(nanos)),
            Step::WaitSeconds { seconds } => self.wait_until(self.now.saturating_add(u64::from(seconds) * SECOND)),
            Step::WaitForDeadline { further } => {
                let deadline = self.device.poll_at().map_or(self.now, VmInstant::as_nanos);
                self.wait_until(deadline.saturating_add_signed(further.into()));
            }
            Step::Poll => self.poll(),
            Step::Reset => {
                let last = self.device.last_reset();
                self.device.reset();
                assert!(!self.device.is_armed() && !self.device.interrupt_level());
                assert_eq!(self.device.poll_at(), None);
                assert_eq!(self.device.last_reset(), last);
            }
            Step::SetLastReset { by_watchdog } => self.device.set_last_reset(LastReset::new(by_watchdog)),
            Step::SetCounter { value } => self.set_counter(value),
            Step::SaveAndRestore => self.save_and_restore(),
            Step::RestoreAnything { state } => self.restore_anything(state),
            Step::Read { refresh, offset, length } => {
                let before = self.device.save(self.at());
                let mut data = vec![0; length.into()];
                let now = self.at();
                if self.device.read(frame(refresh), offset.into(), &mut data, now) == Access::Ignored {
                    assert!(data.iter().all(|byte| *byte == 0xFF));
                }
                assert_eq!(self.device.save(self.at()), before, "a read changed the state");
            }
            Step::Write { refresh, offset, data } => {
                self.write(frame(refresh), offset.into(), &data);
            }
            Step::Offset { ticks } => {
                let was_armed = self.device.is_armed();
                let access = self.write(Frame::Control, 0x008, &ticks.to_le_bytes());
                assert_eq!(access == Access::Heartbeat, was_armed);
                let state = self.device.save(self.at());
                assert_eq!(state.wor, ticks & 0xFFFF_FFFF_FFFF);
                assert_eq!(state.wcv, state.counter.saturating_add(state.wor));
                assert!(!state.ws0 && !state.ws1);
            }
            Step::Compare { after_counter } => {
                let counter = self.device.save(self.at()).counter;
                let compare = counter.saturating_add_signed(after_counter);
                self.write(Frame::Control, 0x010, &compare.to_le_bytes());
            }
            Step::Control { value } => {
                self.write(Frame::Control, 0x000, &[value]);
                assert_eq!(self.device.is_armed(), value & 1 == 1);
            }
            Step::Refresh => {
                let access = self.write(Frame::Refresh, 0x000, &[0; 4]);
                let expected =
                    if self.device.is_armed() { Access::Heartbeat } else { Access::HeartbeatWhileDisarmed };
                assert_eq!(access, expected);
                assert!(!self.device.interrupt_level());
            }
        }
        let mut advanced = self.device.clone();
        advanced.save(self.at());
        let timeout = advanced.timeout_at();
        assert!(timeout.is_none_or(|timeout| timeout > self.at() || timeout == VmInstant::MAX), "it has passed");
    }

    fn write(&mut self, frame: Frame, offset: u64, data: &[u8]) -> Access {
        let before = self.device.save(self.at());
        let access = self.device.write(frame, offset, data, self.at());
        if access == Access::Ignored {
            assert_eq!(self.device.save(self.at()), before, "an ignored write changed the state");
        }
        access
    }

    fn set_counter(&mut self, value: u64) {
        let before = self.device.save(self.at());
        let (poll_at, timeout_at) = (self.device.poll_at(), self.device.timeout_at());
        self.device.set_counter(value, self.at());
        let after = self.device.save(self.at());
        assert_eq!(after.counter, value);
        // Far from the end of the counter, where there is no time left to keep.
        if value < u64::MAX / 4 && before.wcv < u64::MAX / 4 {
            assert_eq!((self.device.poll_at(), self.device.timeout_at()), (poll_at, timeout_at));
        }
    }

    /// Advances the time without a poll, after a check on copies that an intermediate poll changes nothing.
    ///
    /// The check is skipped if an expiry is latched: an intermediate poll takes it, and the next one is latched instead.
    fn wait_until(&mut self, later: u64) {
        let begin = self.now;
        self.now = later.max(begin);
        if self.device.poll_at().is_some_and(|poll_at| poll_at.as_nanos() <= begin) {
            return;
        }
        let (mut whole, mut cut) = (self.device.clone(), self.device.clone());
        cut.poll(VmInstant::from_nanos(begin + (self.now - begin) / 3));
        cut.poll(self.at());
        whole.poll(self.at());
        assert_eq!(cut.save(self.at()), whole.save(self.at()), "an intermediate poll changed the state");
    }

    fn poll(&mut self) {
        let announced = self.device.poll_at();
        let expired = self.device.poll(self.at());
        let first = expired.pretimeout.into_iter().chain(expired.timeout).min();
        match announced {
            Some(due) if due <= self.at() && due < VmInstant::MAX => assert_eq!(first, Some(due), "lost expiry"),
            _ => assert_eq!(first, None, "early expiry"),
        }
        assert!(expired.timeout.is_none_or(|timeout| timeout <= self.at()));
        assert!(self.device.poll(self.at()).is_empty(), "a second poll reports nothing");
        assert!(self.device.poll_at().is_none_or(|next| next > self.at() || next == VmInstant::MAX));
    }

    fn save_and_restore(&mut self) {
        let state = self.device.save(self.at());
        if self.now < u64::MAX / 2 {
            let restored = self.fresh.restored(&state, self.at()).expect("a state that a device was in");
            assert_eq!(restored, self.device);
            self.device = restored;
        }
    }

    /// Restores a state of the fuzzer's: it is refused by the name of a field, or saved again as it was.
    fn restore_anything(&mut self, state: State) {
        if self.now >= u64::MAX / 2 {
            return;
        }
        let State { enabled, ws0, ws1, wor, wcv, counter, counter_fraction, pretimeout_age_ns, timeout_age_ns } = state;
        let state =
            SbsaStateV1 { enabled, ws0, ws1, wor, wcv, counter, counter_fraction, pretimeout_age_ns, timeout_age_ns };
        match self.fresh.restored(&state, self.at()) {
            Err(error) => {
                assert!(["ws0", "ws1", "wor", "wcv", "counter_fraction"].contains(&error.field), "{error}");
            }
            Ok(mut restored) => {
                let ages = [pretimeout_age_ns, timeout_age_ns];
                if ages.into_iter().flatten().all(|age| age <= self.now) {
                    assert_eq!(restored.save(self.at()), state);
                }
                self.device = restored;
            }
        }
    }
}

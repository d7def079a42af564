//! A hostile guest and a VMM that polls at arbitrary times, on the model of the watchdog behind an ACPI table.
//!
//! The device must not panic, expire early or lose an expiry. A countdown stays between the limits of the table, and a
//! read changes nothing.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/wdat
//! cargo +nightly fuzz run wdat fuzz/corpus/wdat fuzz/seeds/wdat -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::wdat::{TimerPeriod, Wdat, WdatConfig, WdatStateV1};
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
    SaveAndRestore,
    RestoreAnything { state: State },
    Read { offset: u64, length: u8 },
    Write { offset: u64, data: Vec<u8> },
    Register { register: Register, value: u32 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Register {
    Reload,
    Count,
    Control,
    Status,
}

#[derive(Arbitrary, Debug)]
struct State {
    reload: u32,
    running: bool,
    remaining_ns: Option<u64>,
    timed_out: bool,
    timeout_age_ns: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct Run {
    seconds: bool,
    start: u64,
    steps: Vec<Step>,
}

struct Machine {
    fresh: Wdat,
    device: Wdat,
    now: u64,
}

fuzz_target!(|run: Run| {
    let period = if run.seconds { TimerPeriod::OneSecond } else { TimerPeriod::OneMillisecond };
    let fresh = Wdat::new(WdatConfig::default().with_period(period));
    let mut machine = Machine { device: fresh.clone(), fresh, now: run.start };
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
            Step::WaitSeconds { seconds } => self.wait_until(self.now.saturating_add(u64::from(seconds) * SECOND)),
            Step::WaitForDeadline { further } => {
                let deadline = self.device.poll_at().map_or(self.now, VmInstant::as_nanos);
                self.wait_until(deadline.saturating_add_signed(further.into()));
            }
            Step::Poll => self.poll(),
            Step::Reset => {
                let last = self.device.last_reset();
                self.device.reset();
                assert!(!self.device.is_armed());
                assert_eq!(self.device.poll_at(), None);
                assert_eq!(self.device.last_reset(), last);
            }
            Step::SetLastReset { by_watchdog } => self.device.set_last_reset(LastReset::new(by_watchdog)),
            Step::SaveAndRestore => self.save_and_restore(),
            Step::RestoreAnything { state } => self.restore_anything(state),
            Step::Read { offset, length } => {
                let before = self.device.save(self.at());
                let mut data = vec![0; length.into()];
                let now = self.at();
                if self.device.read(offset, &mut data, now) == Access::Ignored {
                    assert!(data.iter().all(|byte| *byte == 0xFF));
                }
                assert_eq!(self.device.save(self.at()), before, "a read changed the state");
            }
            Step::Write { offset, data } => {
                let before = self.device.save(self.at());
                let now = self.at();
                if self.device.write(offset, &data, now) == Access::Ignored {
                    assert_eq!(self.device.save(self.at()), before, "an ignored write changed the state");
                }
                self.check_limits();
            }
            Step::Register { register, value } => {
                let offset = 4 * register as u64;
                let access = self.device.write(offset, &value.to_le_bytes(), self.at());
                match register {
                    Register::Count if self.device.is_armed() => assert_eq!(access, Access::Heartbeat),
                    Register::Count => assert_eq!(access, Access::HeartbeatWhileDisarmed),
                    _ => assert_eq!(access, Access::Accepted),
                }
                self.check_limits();
            }
        }
    }

    /// The countdown of a running watchdog is never longer than the longest one of the table.
    fn check_limits(&mut self) {
        let period = self.device.config().period;
        let longest = period.as_duration() * period.max_count();
        if let Some(deadline) = self.device.timeout_at() {
            assert!(deadline.saturating_duration_since(self.at()) <= longest);
        }
        let mut reload = [0; 4];
        self.device.read(0, &mut reload, self.at());
        assert!((period.min_count()..=period.max_count()).contains(&u32::from_le_bytes(reload)));
    }

    /// Advances the time without a poll, after a check on copies that an intermediate poll changes nothing.
    ///
    /// The check is skipped if an expiry is latched: an intermediate poll takes it, and the next one is latched instead.
    fn wait_until(&mut self, later: u64) {
        let begin = self.now;
        self.now = later.max(begin);
        if self.device.poll_at() != self.device.timeout_at() {
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
        assert_eq!(expired.pretimeout, None);
        match announced {
            Some(due) if due <= self.at() && due < VmInstant::MAX => {
                assert_eq!(expired.timeout, Some(due), "lost expiry");
            }
            _ => assert_eq!(expired.timeout, None, "early expiry"),
        }
        assert!(self.device.poll(self.at()).is_empty(), "a second poll reports nothing");
        assert!(self.device.poll_at().is_none_or(|next| next > self.at() || next == VmInstant::MAX));
    }

    fn save_and_restore(&mut self) {
        let state = self.device.save(self.at());
        if self.now < u64::MAX / 2 {
            let restored = self.fresh.restored(&state, self.at()).expect("a state that a device was in");
            assert_eq!(restored.is_armed(), self.device.is_armed());
            assert_eq!(restored.poll_at(), self.device.poll_at());
            assert_eq!(restored.last_reset(), self.device.last_reset());
            self.device = restored;
        }
    }

    /// Restores a state of the fuzzer's: it is refused by the name of a field, or saved again as it was.
    fn restore_anything(&mut self, state: State) {
        if self.now >= u64::MAX / 2 {
            return;
        }
        let State { reload, running, remaining_ns, timed_out, timeout_age_ns } = state;
        let state = WdatStateV1 { reload, running, remaining_ns, timed_out, timeout_age_ns };
        match self.fresh.restored(&state, self.at()) {
            Err(error) => assert!(["remaining_ns", "running"].contains(&error.field), "{error}"),
            Ok(mut restored) => {
                if timeout_age_ns.is_none_or(|age| age <= self.now) {
                    assert_eq!(restored.save(self.at()), state);
                }
                self.device = restored;
            }
        }
    }
}

//! A hostile guest and a VMM that polls at arbitrary times, on the diag288 model: decoding, execution and time.
//!
//! The device must not panic, expire early or lose an expiry. A refused call and an instruction that is not DIAGNOSE
//! X'288' must change nothing.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/diag288
//! cargo +nightly fuzz run diag288 fuzz/corpus/diag288 fuzz/seeds/diag288 -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::diag288::{Diag288, Diagnose, UnknownCommands};
use vm_watchdog_devices::{AfterTimeout, Model, VmInstant};

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitSeconds { seconds: u16 },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SaveAndRestore,
    Intercept { icptcode: u8, ipa: u16, ipb: u32, gprs: [u64; 16], command: Option<Vec<u8>> },
    Instruction { text: [u8; 4], psw_mask: u64, gprs: [u64; 16], command: Option<Vec<u8>> },
    Linux { function: u8, conceal: bool, timeout: u16, command: Option<KnownCommand> },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum KnownCommand {
    Begin,
    Ipl,
    Unknown,
}

#[derive(Arbitrary, Debug)]
struct Run {
    zvm: Option<bool>,
    disarms: bool,
    start: u64,
    steps: Vec<Step>,
}

struct Machine {
    fresh: Diag288,
    device: Diag288,
    now: u64,
}

fuzz_target!(|run: Run| {
    let mut fresh = match run.zvm {
        None => Diag288::new(),
        Some(false) => Diag288::zvm(UnknownCommands::Refused),
        Some(true) => Diag288::zvm(UnknownCommands::Accepted),
    };
    fresh.set_after_timeout(if run.disarms { AfterTimeout::Disarmed } else { AfterTimeout::Armed });
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
            Step::WaitSeconds { seconds } => {
                self.wait_until(self.now.saturating_add(u64::from(seconds) * 1_000_000_000));
            }
            Step::WaitForDeadline { further } => {
                let deadline = self.device.poll_at().map_or(self.now, VmInstant::as_nanos);
                self.wait_until(deadline.saturating_add_signed(further.into()));
            }
            Step::Poll => self.poll(),
            Step::Reset => {
                self.device.reset();
                assert!(!self.device.is_armed());
                assert_eq!(self.device.poll_at(), None);
            }
            Step::SaveAndRestore => self.save_and_restore(),
            Step::Intercept { icptcode, ipa, ipb, gprs, command } => {
                self.call(Diagnose::from_intercept(icptcode, ipa, ipb, &gprs), command);
            }
            Step::Instruction { text, psw_mask, gprs, command } => {
                self.call(Diagnose::from_instruction(text, psw_mask, &gprs), command);
            }
            Step::Linux { function, conceal, timeout, command } => {
                let mut gprs = [0; 16];
                gprs[2] = u64::from(function % 4) | u64::from(conceal) << 31;
                gprs[3] = timeout.into();
                let command = command.map(|command| match command {
                    KnownCommand::Begin => vec![0xC2, 0xC5, 0xC7, 0xC9, 0xD5],
                    KnownCommand::Ipl => vec![0xC9, 0xD7, 0xD3],
                    KnownCommand::Unknown => vec![0xC1],
                });
                gprs[5] = command.as_ref().map_or(0, Vec::len) as u64;
                let call = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs);
                assert!(call.is_some());
                self.call(call, command);
            }
        }
    }

    /// Performs a call as a VMM does: with the command's bytes, if its memory is large enough.
    fn call(&mut self, call: Option<Diagnose>, memory: Option<Vec<u8>>) {
        let Some(call) = call else { return };
        let operand = call.command();
        assert!(operand.is_none_or(|operand| (1..=230).contains(&operand.length)));
        let command = operand.zip(memory.as_ref()).and_then(|(operand, memory)| memory.get(..operand.length));
        let state_before = self.device.save(self.at());
        let outcome = self.device.diagnose_with_command(&call, command, self.at());
        if outcome.is_err() {
            assert_eq!(self.device.save(self.at()), state_before, "a refused call changed the state");
        } else if let Some(deadline) = self.device.timeout_at() {
            let earliest = self.now.saturating_add(15_000_000_000);
            assert!(deadline.as_nanos() >= earliest, "a deadline in less than 15 s");
        }
    }

    /// Advances the time without a poll, after a check on copies that an intermediate poll changes nothing.
    ///
    /// The check is skipped if an expiry is latched: an intermediate poll takes it, and the next expiry, with another
    /// command, is latched instead.
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
                assert_eq!(expired.timeout, Some(due), "lost expiry")
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
            assert_eq!(restored.timeout_command(), self.device.timeout_command());
            self.device = restored;
        }
    }
}

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
use vm_watchdog_devices::{AfterTimeout, Model};
use vm_watchdog_fuzz::Machine;

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

fuzz_target!(|run: Run| {
    let mut fresh = match run.zvm {
        None => Diag288::new(),
        Some(false) => Diag288::zvm(UnknownCommands::Refused),
        Some(true) => Diag288::zvm(UnknownCommands::Accepted),
    };
    fresh.set_after_timeout(if run.disarms { AfterTimeout::Disarmed } else { AfterTimeout::Armed });
    let mut machine = Machine::new(fresh, run.start);
    for step in run.steps {
        take(&mut machine, step);
    }
    machine.poll_exact();
});

fn take(machine: &mut Machine<Diag288>, step: Step) {
    match step {
        Step::Wait { nanos } => machine.wait(nanos),
        Step::WaitSeconds { seconds } => machine.wait_seconds(seconds),
        Step::WaitForDeadline { further } => machine.wait_for_deadline(further),
        Step::Poll => machine.poll_exact(),
        Step::Reset => machine.reset(),
        Step::SaveAndRestore => machine.save_and_restore(),
        Step::Intercept { icptcode, ipa, ipb, gprs, command } => {
            call(machine, Diagnose::from_intercept(icptcode, ipa, ipb, &gprs), command);
        }
        Step::Instruction { text, psw_mask, gprs, command } => {
            call(machine, Diagnose::from_instruction(text, psw_mask, &gprs), command);
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
            let diagnose = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs);
            assert!(diagnose.is_some());
            call(machine, diagnose, command);
        }
    }
}

/// Performs a call as a VMM does: with the command's bytes, if its memory is large enough.
fn call(machine: &mut Machine<Diag288>, call: Option<Diagnose>, memory: Option<Vec<u8>>) {
    let Some(call) = call else { return };
    let operand = call.command();
    assert!(operand.is_none_or(|operand| (1..=230).contains(&operand.length)));
    let command = operand.zip(memory.as_ref()).and_then(|(operand, memory)| memory.get(..operand.length));
    let before = machine.save();
    let now = machine.now();
    if machine.device.diagnose_with_command(&call, command, now).is_err() {
        assert_eq!(machine.save(), before, "a refused call changed the state");
    } else if let Some(deadline) = machine.device.timeout_at() {
        let earliest = now.as_nanos().saturating_add(15_000_000_000);
        assert!(deadline.as_nanos() >= earliest, "a deadline in less than 15 s");
    }
}

//! Random DIAGNOSE calls in long batches: the model must give the answers of QEMU's device, and time out when it does.

use std::fmt;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use vm_watchdog::diag288::{Diag288, Diagnose, ProgramInterruption};
use vm_watchdog_devices::{Access, AfterTimeout, Model, VmInstant};
use vm_watchdog_test_support::random::Random;

use crate::assembler::diag;
use crate::bare_metal::with_qemu;
use crate::batch::{Call, Outcome, Results, run};

/// Calls for each action.
const CALLS: usize = 100_000;
const SEED: u64 = 0x0288_0288_0288_0288;

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;
const DIAGNOSE_288: u16 = 0x288;

/// The longest timeout whose nanoseconds QEMU's timer can hold, at the start of its clock. A run takes less than
/// [`LONGEST_RUN`].
const LONGEST: u64 = i64::MAX as u64 / 1_000_000_000;
const LONGEST_RUN: u64 = 1_000_000;

/// The guest records the time of an NMI this long after the timeout, at most, by the instructions that it counts.
const NMI_LATENCY: u64 = 200;
/// Calls are at least this long before or after a deadline.
const MARGIN: u64 = 5_000;

/// An intended difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    BaseRegister,
    Overflow,
}

/// The rules, with state, access, and both answers.
const RULES: [(Rule, &str); 2] = [
    (
        Rule::BaseRegister,
        "base register | any state | DIAGNOSE whose base and displacement give 288h, with a base | QEMU's emulated \
         processor: another DIAGNOSE | here: the watchdog's, as on KVM; then: the model does not see this call",
    ),
    (
        Rule::Overflow,
        "overflow | any state | INIT or CHANGE whose deadline is more than 2^63 ns on QEMU's clock | QEMU: the nanoseconds wrap around, so that \
         the deadline is in the past and it times out at once | here: never times out; then: the model times out too",
    ),
];

/// A difference between the outcome of a call and the model.
#[derive(Debug)]
struct Difference {
    call: usize,
    what: String,
}

/// The rules in use, and how often each was applied.
struct Rules {
    removed: Option<Rule>,
    applied: [u64; RULES.len()],
}

impl Rules {
    fn without(removed: Option<Rule>) -> Self {
        Self { removed, applied: [0; RULES.len()] }
    }

    fn apply(&mut self, rule: Rule) -> bool {
        let in_use = self.removed != Some(rule);
        self.applied[rule as usize] += u64::from(in_use);
        in_use
    }
}

/// The random calls, with waits that end before and after the deadlines of the calls before.
fn random_calls(seed: u64, calls: usize) -> Vec<Call> {
    let mut random = Random::new(seed);
    let mut deadline = None;
    let mut now = 0;
    (0..calls)
        .map(|_| {
            let call = random_call(&mut random, deadline, now);
            now += call.wait.as_nanos() as u64;
            // As if every such call succeeded: the guest's instructions take less time than the margin.
            if let [INIT | CHANGE, seconds @ 15..=3600] = [call.gprs[2], call.gprs[3]] {
                deadline = Some(now + seconds * 1_000_000_000);
            }
            call
        })
        .collect()
}

fn random_call(random: &mut Random, deadline: Option<u64>, now: u64) -> Call {
    let until_deadline = deadline.and_then(|deadline| deadline.checked_sub(now)).filter(|until| *until < 1 << 40);
    let wait = match (random.below(8), until_deadline) {
        (0, Some(until)) => until.saturating_sub(4 * MARGIN),
        (1, Some(until)) => until + 4 * MARGIN,
        (2, _) => random.next() % 20_000_000_000,
        _ => 0,
    };
    let mut gprs = [0; 16].map(|_: u64| random.next());
    // Most calls are as Linux executes them, `diag 2,4,0x288`.
    let [r1, r3] = match random.below(4) {
        0 => [random.below(16) as u8, random.below(16) as u8],
        _ => [2, 4],
    };
    let timeout = match random.below(8) {
        0 => random.of(&[0, 1, 14, 1 << 32, LONGEST - LONGEST_RUN, LONGEST + 1, 1 << 60, u64::MAX]),
        _ => random.of(&[15, 15, 16, 17, 20, 30, 3600]),
    };
    let function = match random.below(8) {
        0 => random.of(&[3, 42, CONCEAL | INIT, CONCEAL | CHANGE, 1 << 32, u64::MAX]),
        1 => CANCEL,
        2..=4 => INIT,
        _ => CHANGE,
    };
    let action = if random.below(8) == 0 { random.of(&[1, 2, 42, 1 << 32, u64::MAX]) } else { 0 };
    gprs[usize::from(r3)] = action;
    gprs[usize::from(r1)] = function;
    if let Some(after) = gprs.get_mut(usize::from(r1) + 1) {
        *after = timeout;
    }
    let (base, displacement) = match random.below(32) {
        0 => (5, DIAGNOSE_288),
        1 => {
            gprs[5] = gprs[5] & !0xFFFF | 0x100;
            (5, DIAGNOSE_288 - 0x100)
        }
        2 => (0, DIAGNOSE_288 + 1),
        _ => (0, DIAGNOSE_288),
    };
    Call {
        wait: Duration::from_nanos(wait),
        instruction: diag(r1, r3, base, displacement),
        gprs,
        problem_state: random.below(32) == 0,
    }
}

/// Compares what the guest has observed with the model. QEMU's device injects NMIs at its timeouts, and is disarmed
/// then, or does nothing and stays armed.
fn compare(calls: &[Call], results: &Results, has_nmis: bool, rules: &mut Rules) -> Result<Tally, Difference> {
    let mut device = Diag288::new();
    device.set_after_timeout(if has_nmis { AfterTimeout::Disarmed } else { AfterTimeout::Armed });
    let mut nmis = results.nmis.iter().copied().peekable();
    let mut tally = Tally::default();
    for (index, (call, outcome)) in calls.iter().zip(&results.outcomes).enumerate() {
        let differs = |what: String| Difference { call: index, what };
        let now = VmInstant::from_nanos(outcome.at);
        if let Some(deadline) = device.poll(now).timeout {
            tally.timeouts += 1;
            expect_nmi(deadline.as_nanos(), has_nmis, &mut nmis).map_err(differs)?;
        }
        if let Some(nmi) = nmis.next_if(|&nmi| nmi <= outcome.at) {
            return Err(differs(format!("an NMI at {nmi}, before the call at {}", outcome.at)));
        }
        let near = device.poll_at().filter(|at| at.as_nanos() - outcome.at < MARGIN);
        assert_eq!(near, None, "the deadline is too close to call {index}");

        let answer = answer(&mut device, call, now, rules);
        let (code, is_accepted) = match answer {
            Some(Ok(_)) => (0, true),
            Some(Err(interruption)) => (interruption.code(), false),
            // As for every DIAGNOSE that QEMU does not know.
            None => (if call.problem_state { 0x0002 } else { 0x0006 }, false),
        };
        let expected = Outcome {
            at: outcome.at,
            code,
            instruction_length: if code == 0 { 0 } else { 4 },
            condition_code: 2,
            gprs: call.gprs,
        };
        if *outcome != expected {
            return Err(differs(format!("QEMU's: {outcome:x?}\nmodel's: {expected:x?}")));
        }
        tally.accepted += u64::from(is_accepted);
        tally.armed += u64::from(device.is_armed());

        if is_accepted && call.function() != CANCEL && call.timeout() > LONGEST && rules.apply(Rule::Overflow) {
            expect_nmi(outcome.at, has_nmis, &mut nmis).map_err(differs)?;
            if has_nmis {
                device.reset();
            }
        }
    }
    match nmis.next() {
        Some(nmi) => Err(Difference { call: calls.len(), what: format!("an NMI at {nmi}, after the last call") }),
        None => Ok(tally),
    }
}

/// The model's answer; `None` if the instruction is another DIAGNOSE.
fn answer(
    device: &mut Diag288,
    call: &Call,
    now: VmInstant,
    rules: &mut Rules,
) -> Option<Result<Access, ProgramInterruption>> {
    let call_here = Diagnose::from_instruction(call.instruction, call.psw_mask(), &call.gprs)?;
    let has_base = call.instruction[2] >> 4 != 0;
    if has_base && rules.apply(Rule::BaseRegister) {
        return None;
    }
    Some(device.diagnose(&call_here, now))
}

/// Takes the NMI of a timeout at `deadline`: not before it, and immediately after it.
fn expect_nmi(
    deadline: u64,
    has_nmis: bool,
    nmis: &mut std::iter::Peekable<impl Iterator<Item = u64>>,
) -> Result<(), String> {
    if !has_nmis {
        return Ok(());
    }
    match nmis.next_if(|&nmi| (deadline..deadline + NMI_LATENCY).contains(&nmi)) {
        Some(_) => Ok(()),
        None => Err(format!("the model times out at {deadline}, and QEMU's next NMI is at {:?}", nmis.peek())),
    }
}

/// What a comparison has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: u64,
    armed: u64,
    timeouts: u64,
}

impl Call {
    fn function(&self) -> u64 {
        self.gprs[usize::from(self.instruction[1] >> 4)]
    }

    /// 0 if there is no register after r1.
    fn timeout(&self) -> u64 {
        self.gprs.get(usize::from(self.instruction[1] >> 4) + 1).copied().unwrap_or(0)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { wait, instruction: [_, registers, high, low], gprs, problem_state } = self;
        let [r1, r3] = [registers >> 4, registers & 0xF];
        let [function, timeout, action] = [self.function(), self.timeout(), gprs[usize::from(r3)]];
        let state = if *problem_state { " in problem state" } else { "" };
        write!(f, "wait {wait:?}, diag {r1},{r3},{:#x}({})", u16::from(high & 0xF) << 8 | u16::from(*low), high >> 4)?;
        write!(f, "{state}: function {function:#x}, timeout {timeout:#x}, action {action:#x}")
    }
}

/// The calls up to the difference, as far as they can matter.
fn report(calls: &[Call], Difference { call, what }: &Difference) -> String {
    let first = call.saturating_sub(5);
    let lines = calls[first..].iter().take(6).map(|call| format!("{call}\n"));
    format!("{}call {call}: {what}", lines.collect::<String>())
}

#[test]
fn random_calls_have_the_answers_and_the_timeouts_of_qemus_watchdog() {
    with_qemu("random calls", |qemu| {
        for (action, has_nmis) in [("none", false), ("inject-nmi", true)] {
            let calls = random_calls(SEED, CALLS);
            let started = Instant::now();
            let results = run(qemu, action, &calls)?;
            let seconds = started.elapsed().as_secs_f32();
            let mut rules = Rules::without(None);
            let run_time = results.outcomes[CALLS - 1].at - results.outcomes[0].at;
            assert!(run_time / 1_000_000_000 < LONGEST_RUN, "{run_time} ns");
            let tally = match compare(&calls, &results, has_nmis, &mut rules) {
                Ok(tally) => tally,
                Err(difference) => panic!("{action}: {}", report(&calls, &difference)),
            };
            let text = format!("{CALLS} calls with the action {action} in {seconds:.1} s: {tally:?}\n");
            let text = RULES
                .iter()
                .fold(text, |text, (rule, row)| text + &format!("{:>9}  {row}\n", rules.applied[*rule as usize]));
            // To standard error itself, because the harness captures what passing tests print.
            io::stderr().write_all(text.as_bytes())?;
            assert!(tally.accepted > 10_000 && tally.armed > 10_000 && tally.timeouts > 1000, "{tally:?}");

            for (rule, row) in RULES {
                let without = compare(&calls, &results, has_nmis, &mut Rules::without(Some(rule)));
                // Without NMIs a guest cannot see a timeout.
                let is_visible = has_nmis || rule != Rule::Overflow;
                assert_eq!(without.is_err(), is_visible, "without the rule: {row}");
            }
        }
        Ok(())
    });
}

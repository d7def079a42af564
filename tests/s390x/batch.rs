//! A bare-metal program that executes a long list of DIAGNOSE calls, and QEMU's device that answers them.
//!
//! Before each call the program can wait for a clock comparator. Its clock is QEMU's virtual time, which counts executed
//! instructions, one nanosecond each, and jumps to the next timer while the program waits. An NMI, as QEMU's device
//! injects it at a timeout, is a restart interruption: the program records its time.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::qemu::Qemu;

use crate::assembler::{
    If, ag, aghi, cg, cghi, halt, ipm, jump, lg, lg_from, lgfi, load_all, load_all_from, load_control_register_0,
    lpswe, mvc, ni, sckc, stck, stg, store_all, sty,
};
use crate::image::{
    EXTERNAL_NEW_PSW, Image, PROGRAM_INTERRUPTION, PROGRAM_NEW_PSW, PROGRAM_OLD_PSW, PSW_64_BIT, PSW_CONDITION_CODE_2,
    PSW_EXTERNAL, PSW_PROBLEM_STATE, PSW_WAIT, RESTART_NEW_PSW, RESTART_OLD_PSW,
};
use crate::machine::{Device, MEMORY, Machine, memory_in_file};
use crate::wait::WAIT_LIMIT;

// The program's variables.
const CURRENT: u16 = 0x400;
const END: u16 = 0x408;
const FINISHED: u16 = 0x410;
const NEXT_NMI: u16 = 0x418;
const COMPARATOR: u16 = 0x420;
const NEVER: u16 = 0x428;
const CONTROL_REGISTER_0: u16 = 0x430;
/// The interruption of the current call, then its condition code.
const NOTE: u16 = 0x440;
const NO_INTERRUPTION: u16 = 0x448;
const CALL_PSW: u16 = 0x450;
const WAIT_PSW: u16 = 0x460;
const CALLER_SAVES: u16 = 0x500;
const HANDLER_SAVES: u16 = 0x580;
const RESTART_SAVES: u16 = 0x600;

// Its parts. The instruction is on a page of its own, because an emulated processor is slow to write executed pages.
const START: u32 = 0x3000;
const NEXT: u32 = 0x3100;
const CALL: u32 = 0x3200;
const COLLECT: u32 = 0x3300;
const ON_PROGRAM: u32 = 0x3400;
const ON_EXTERNAL: u32 = 0x3500;
const ON_RESTART: u32 = 0x3600;
const INSTRUCTION: u32 = 0x5000;

const NMIS: u32 = 0x1_0000;
const MOST_NMIS: usize = 0x1_0000;
const LIST: u32 = 0x10_0000;

// A call in the list, and its result.
const CALL_TEXT: u16 = 0;
const CALL_WAIT: u16 = 8;
const CALL_MASK: u16 = 16;
const CALL_REGISTERS: u16 = 32;
const RESULT_NOTE: u16 = 160;
const RESULT_TIME: u16 = 168;
const RESULT_REGISTERS: u16 = 176;
const CALL_LENGTH: u16 = 304;

/// One DIAGNOSE of the guest.
#[derive(Clone, Debug)]
pub struct Call {
    /// How long the guest waits before it.
    pub wait: Duration,
    pub instruction: [u8; 4],
    pub gprs: [u64; 16],
    pub problem_state: bool,
}

/// What the guest observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Nanoseconds of the guest's clock, just before the call.
    pub at: u64,
    /// The program-interruption code; 0 for none.
    pub code: u16,
    pub instruction_length: u8,
    pub condition_code: u8,
    pub gprs: [u64; 16],
}

/// The results of a list of calls.
pub struct Results {
    pub outcomes: Vec<Outcome>,
    /// The time of each NMI, in nanoseconds of the guest's clock.
    pub nmis: Vec<u64>,
}

impl Call {
    pub fn psw_mask(&self) -> u64 {
        let problem_state = if self.problem_state { PSW_PROBLEM_STATE } else { 0 };
        PSW_64_BIT | PSW_CONDITION_CODE_2 | problem_state
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Image(Vec::new());
        bytes.put(CALL_TEXT.into(), &self.instruction);
        bytes.put(CALL_WAIT.into(), &clock_units(self.wait).to_be_bytes());
        bytes.put_psw(CALL_MASK.into(), self.psw_mask(), INSTRUCTION.into());
        bytes.put(CALL_REGISTERS.into(), &self.gprs.map(u64::to_be_bytes).concat());
        bytes.put(CALL_LENGTH.into(), &[]);
        bytes.0
    }
}

impl Outcome {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let [_, instruction_length, code_high, code_low, condition, ..] = word(RESULT_NOTE.into()).to_be_bytes();
        Self {
            at: nanos(word(RESULT_TIME.into())),
            code: u16::from_be_bytes([code_high, code_low]),
            instruction_length,
            condition_code: condition >> 4 & 0b11,
            gprs: std::array::from_fn(|register| word(usize::from(RESULT_REGISTERS) + 8 * register)),
        }
    }
}

/// The clock has 4096 units in a microsecond.
fn clock_units(duration: Duration) -> u64 {
    (duration.as_nanos() * 512 / 125) as u64
}

fn nanos(clock: u64) -> u64 {
    (u128::from(clock) * 125 / 512) as u64
}

fn program(calls: usize) -> Vec<u8> {
    let mut image = Image::starting_at(START);
    image.put_psw(PROGRAM_NEW_PSW, PSW_64_BIT, ON_PROGRAM.into());
    image.put_psw(EXTERNAL_NEW_PSW, PSW_64_BIT, ON_EXTERNAL.into());
    image.put_psw(RESTART_NEW_PSW, PSW_64_BIT, ON_RESTART.into());
    image.put_psw(WAIT_PSW.into(), PSW_64_BIT | PSW_WAIT | PSW_EXTERNAL, NEXT.into());
    let end = u64::from(LIST) + calls as u64 * u64::from(CALL_LENGTH);
    let clock_comparator_interruptions = 0x800_u64;
    for (variable, value) in [
        (CURRENT, LIST.into()),
        (END, end),
        (NEXT_NMI, NMIS.into()),
        (NEVER, u64::MAX),
        (CONTROL_REGISTER_0, clock_comparator_interruptions),
    ] {
        image.put(variable.into(), &value.to_be_bytes());
    }

    let at = |variable| (variable, 0);
    let current = |field| (field, 1);
    let mut put = |address: u32, instructions: &[Vec<u8>]| {
        image.put(address as usize, &instructions.concat());
    };
    let start = [sckc(at(NEVER)), load_control_register_0(CONTROL_REGISTER_0.into())];
    put(START, &[&start[..], &[jump(If::Always, START + 10, NEXT)]].concat());

    // Waits if the call asks for it.
    let next = [lg(1, CURRENT.into()), lg_from(2, current(CALL_WAIT)), cghi(2, 0)];
    let next_length = 6 + 6 + 4;
    let wait = [
        jump(If::Equal, NEXT + next_length, CALL),
        stck(at(COMPARATOR)),
        ag(2, COMPARATOR.into()),
        stg(2, COMPARATOR.into()),
        sckc(at(COMPARATOR)),
        lpswe(WAIT_PSW),
    ];
    put(NEXT, &[&next[..], &wait].concat());

    // Loads the registers, and jumps to the instruction with the condition code 2.
    put(
        CALL,
        &[
            lg(1, CURRENT.into()),
            lgfi(2, INSTRUCTION as i32),
            mvc((0, 2), 4, current(CALL_TEXT)),
            mvc(at(CALL_PSW), 16, current(CALL_MASK)),
            mvc(at(NOTE), 4, at(NO_INTERRUPTION)),
            stck(current(RESULT_TIME)),
            load_all_from(current(CALL_REGISTERS)),
            lpswe(CALL_PSW),
        ],
    );
    put(INSTRUCTION + 4, &[jump(If::Always, INSTRUCTION + 4, COLLECT)]);

    let collect = [
        store_all(CALLER_SAVES.into()),
        ipm(0),
        sty(0, u32::from(NOTE) + 4),
        lg(1, CURRENT.into()),
        mvc(current(RESULT_NOTE), 8, at(NOTE)),
        mvc(current(RESULT_REGISTERS), 128, at(CALLER_SAVES)),
        aghi(1, CALL_LENGTH as i16),
        stg(1, CURRENT.into()),
        cg(1, END.into()),
    ];
    let collect_length = collect.iter().map(|instruction| instruction.len() as u32).sum::<u32>();
    let again = [jump(If::Low, COLLECT + collect_length, NEXT), lgfi(1, 1), stg(1, FINISHED.into()), halt()];
    put(COLLECT, &[&collect[..], &again].concat());

    // Records the interruption, and continues behind the instruction in supervisor state.
    put(
        ON_PROGRAM,
        &[
            store_all(HANDLER_SAVES.into()),
            mvc(at(NOTE), 4, at(PROGRAM_INTERRUPTION)),
            ni(PROGRAM_OLD_PSW + 1, !1),
            load_all(HANDLER_SAVES.into()),
            lpswe(PROGRAM_OLD_PSW),
        ],
    );
    // The end of a wait.
    put(ON_EXTERNAL, &[sckc(at(NEVER)), jump(If::Always, ON_EXTERNAL + 4, CALL)]);
    // An NMI: records the time, and continues.
    put(
        ON_RESTART,
        &[
            store_all(RESTART_SAVES.into()),
            lg(1, NEXT_NMI.into()),
            stck((0, 1)),
            aghi(1, 8),
            stg(1, NEXT_NMI.into()),
            load_all(RESTART_SAVES.into()),
            lpswe(RESTART_OLD_PSW),
        ],
    );
    image.0
}

/// Executes the calls with QEMU's device, which performs this action at a timeout.
pub fn run(qemu: &Qemu, action: &'static str, calls: &[Call]) -> Result<Results, Box<dyn Error>> {
    let list: Vec<u8> = calls.iter().flat_map(Call::bytes).collect();
    assert!(u64::from(LIST) + (list.len() as u64) < MEMORY, "the list fits into memory");
    let mut memory = None;
    let machine = Machine::start(qemu, Device::Qemu { action }, |folder: &Path, command| {
        let kernel = folder.join("kernel");
        fs::write(&kernel, program(calls.len()))?;
        memory = Some(memory_in_file(folder, command)?);
        command.args(["-icount", "shift=0,sleep=off", "-S", "-kernel"]).arg(kernel);
        Ok(())
    })?;
    let memory = memory.expect("made above");
    memory.write_all_at(&list, LIST.into())?;
    machine.qmp.execute("cont")?;

    let word = |address: u32| -> io::Result<u64> {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, address.into())?;
        Ok(u64::from_be_bytes(bytes))
    };
    let started = Instant::now();
    while word(FINISHED.into())? != 1 {
        let at = word(CURRENT.into())?;
        assert!(started.elapsed() < WAIT_LIMIT, "the program does not finish; it is at {at:#x}");
        sleep(Duration::from_millis(10));
    }
    let mut results = vec![0; list.len()];
    memory.read_exact_at(&mut results, LIST.into())?;
    let outcomes = results.chunks_exact(CALL_LENGTH.into()).map(Outcome::parse).collect();
    let nmis = (u64::from(NMIS)..word(NEXT_NMI.into())?).step_by(8);
    assert!(nmis.clone().count() < MOST_NMIS, "the list of NMIs is full");
    let nmis = nmis.map(|at| word(at as u32).map(nanos)).collect::<io::Result<_>>()?;
    Ok(Results { outcomes, nmis })
}

//! A bare-metal program that runs every case of the contract, and checks everything that a guest can observe.
//!
//! For each case it loads all registers, executes one DIAGNOSE, and records the registers, the condition code and the
//! interruption. The program runs with our watchdog and with QEMU's, which must give the same results.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_watchdog::diag288::{Diag288, ProgramInterruption};
use vm_watchdog::{Action, Event, Policy, Stage, VmClock, Watchdog};
use vm_watchdog_test_support::qemu::Qemu;
use vm_watchdog_test_support::{assets, skip};

use crate::assembler::{cghi, diag, halt, ipm, lg, lgfi, load_all, lpswe, mvc_to, ni, stg, store_all, sty};
use crate::bridge::{Answer, Bridge, Hook, Interrupted};
use crate::gdb::{Gdb, Registers};
use crate::image::{
    Image, PROGRAM_INTERRUPTION, PROGRAM_NEW_PSW, PROGRAM_OLD_PSW, PSW_64_BIT, PSW_CONDITION_CODE_2, PSW_PROBLEM_STATE,
};
use crate::machine::{Device, Machine, memory_in_file, reader};
use crate::wait::WAIT_LIMIT;

// Addresses that this program chooses.
const PROBLEM_STATE_PSW: u16 = 0x400;
const HANDLER: u64 = 0x3000;
const HANDLER_SAVES: u32 = 0x2000;
/// Address of the current case's record.
const CURRENT_NOTE: u32 = 0x2080;
const FINISHED: u32 = 0x2088;
const PROGRAM: u64 = 0x4000;
const NOTES: u32 = 0x8000;
const INPUTS: u32 = 0x1_0000;
const OUTPUTS: u32 = 0x2_0000;

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;

/// One DIAGNOSE, and its expected result.
struct Case {
    name: &'static str,
    instruction: [u8; 4],
    gprs: [u64; 16],
    problem_state: bool,
    /// The device's answer; `None` if the instruction is not a call of the device.
    answer: Option<Answer>,
    /// The program-interruption code that the guest sees; 0 for none.
    code: u16,
}

/// The cases of the contract, in the order in which the guest runs them.
fn cases() -> Vec<Case> {
    let refused = Err(ProgramInterruption::Specification);
    let privileged = Err(ProgramInterruption::PrivilegedOperation);
    vec![
        linux("CANCEL when disarmed", CANCEL, 0).answered(refused),
        linux("CHANGE when disarmed", CHANGE, 15).answered(refused),
        linux("INIT in problem state", INIT, 15).in_problem_state().answered(privileged),
        linux("INIT with an odd r1", INIT, 15).with_instruction(diag(3, 4, 0, 0x288)).answered(refused),
        linux("INIT with r1 = 15", INIT, 15).with_instruction(diag(15, 4, 0, 0x288)).answered(refused),
        linux("INIT with action 42", INIT, 15).with_gpr(4, 42).answered(refused),
        linux("INIT with action 2^32", INIT, 15).with_gpr(4, 1 << 32).answered(refused),
        linux("function 42", 42, 15).answered(refused),
        linux("function 3", 3, 15).answered(refused),
        linux("INIT with CONCEAL", INIT | CONCEAL, 15).answered(refused),
        linux("INIT with 14", INIT, 14).answered(refused),
        linux("INIT with 0", INIT, 0).answered(refused),
        linux("CANCEL after the refused calls", CANCEL, 0).answered(refused),
        linux("INIT with 15", INIT, 15).answered(Ok(())),
        linux("CHANGE with 14", CHANGE, 14).answered(refused),
        linux("CHANGE with action 42", CHANGE, 15).with_gpr(4, 42).answered(refused),
        linux("CHANGE with CONCEAL", CHANGE | CONCEAL, 15).answered(refused),
        linux("CHANGE in problem state", CHANGE, 15).in_problem_state().answered(privileged),
        linux("CANCEL with action 42", CANCEL, 0).with_gpr(4, 42).answered(refused),
        linux("CANCEL in problem state", CANCEL, 0).in_problem_state().answered(privileged),
        linux("INIT while armed", INIT, 3600).answered(Ok(())),
        linux("CHANGE with 20", CHANGE, 20).answered(Ok(())),
        linux("CHANGE with 2^32", CHANGE, 1 << 32).answered(Ok(())),
        linux("CHANGE with a base register", CHANGE, 15)
            .with_instruction(diag(2, 4, 5, 0x188))
            .with_gpr(5, 0xFFFF_FFFF_FFFF_0100)
            .answered(Ok(())),
        linux("CHANGE with base register 0, which means no base", CHANGE, 15).with_gpr(0, 0x1000).answered(Ok(())),
        linux("CHANGE in registers 14 and 15", CHANGE, 15)
            .with_instruction(diag(14, 0, 0, 0x288))
            .with_gpr(14, CHANGE)
            .with_gpr(15, 15)
            .with_gpr(0, 0)
            .answered(Ok(())),
        linux("another DIAGNOSE", CHANGE, 15).with_instruction(diag(2, 4, 0, 0x289)).not_ours(0x0006),
        linux("CANCEL with 14, which it ignores", CANCEL, 14).answered(Ok(())),
        linux("CHANGE after CANCEL", CHANGE, 15).answered(refused),
        linux("INIT for the timeout", INIT, 15).answered(Ok(())),
    ]
}

/// The call as Linux executes it, `diag 2,4,0x288`, with recognizable values in the other registers.
fn linux(name: &'static str, function: u64, timeout: u64) -> Case {
    let gprs = std::array::from_fn(|register| 0x1111_1111_1111_1111 * register as u64);
    let case = Case { name, instruction: diag(2, 4, 0, 0x288), gprs, problem_state: false, answer: None, code: 0 };
    case.with_gpr(2, function).with_gpr(3, timeout).with_gpr(4, 0)
}

impl Case {
    fn with_instruction(self, instruction: [u8; 4]) -> Self {
        Self { instruction, ..self }
    }

    fn with_gpr(mut self, register: usize, value: u64) -> Self {
        self.gprs[register] = value;
        self
    }

    fn in_problem_state(self) -> Self {
        Self { problem_state: true, ..self }
    }

    fn answered(self, answer: Answer) -> Self {
        let code = match answer {
            Ok(()) => 0,
            Err(ProgramInterruption::PrivilegedOperation) => 0x0002,
            Err(ProgramInterruption::Addressing) => 0x0005,
            Err(_) => 0x0006,
        };
        Self { answer: Some(answer), code, ..self }
    }

    fn not_ours(self, code: u16) -> Self {
        Self { code, ..self }
    }
}

fn program(cases: &[Case]) -> Vec<u8> {
    let mut image = Image::starting_at(PROGRAM as u32);
    image.put_psw(PROGRAM_NEW_PSW, PSW_64_BIT, HANDLER);

    // Records the interruption, and continues behind the instruction in supervisor state.
    let handler = [
        store_all(HANDLER_SAVES),
        lg(1, CURRENT_NOTE),
        mvc_to(1, 4, PROGRAM_INTERRUPTION),
        ni(PROGRAM_OLD_PSW + 1, !1),
        load_all(HANDLER_SAVES),
        lpswe(PROGRAM_OLD_PSW),
    ];
    image.put(HANDLER as usize, &handler.concat());

    let mut at = PROGRAM as usize;
    for (index, case) in (0..).zip(cases) {
        let (note, input, output) = (NOTES + 8 * index, INPUTS + 128 * index, OUTPUTS + 128 * index);
        let registers = case.gprs.map(u64::to_be_bytes).concat();
        image.put(input as usize, &registers);
        at = image.put(at, &[lgfi(1, note as i32), stg(1, CURRENT_NOTE)].concat());
        // Condition code 2: a program never starts with it.
        at = image.put(at, &[lgfi(0, 1), cghi(0, 0), load_all(input)].concat());
        if case.problem_state {
            let psw = PROBLEM_STATE_PSW + 16 * index as u16;
            let jump = lpswe(psw);
            let mask = PSW_64_BIT | PSW_PROBLEM_STATE | PSW_CONDITION_CODE_2;
            image.put_psw(psw.into(), mask, (at + jump.len()) as u64);
            at = image.put(at, &jump);
        }
        at = image.put(at, &case.instruction);
        at = image.put(at, &[store_all(output), ipm(0), sty(0, note + 4)].concat());
    }
    image.put(at, &[lgfi(1, 1), stg(1, FINISHED), halt()].concat());
    image.put(OUTPUTS as usize + 128 * cases.len(), &[]);
    image.0
}

/// The program's handler of program interruptions.
struct ProgramCheck;

impl Hook for ProgramCheck {
    fn address(&self) -> u64 {
        HANDLER
    }

    fn interrupted(&self, cpu: &mut Gdb, here: &Registers) -> io::Result<Option<Interrupted>> {
        let mut word = |address: u64| -> io::Result<u64> {
            Ok(u64::from_be_bytes(cpu.read_memory(address, 8)?.try_into().expect("eight bytes")))
        };
        let psw_mask = word(PROGRAM_OLD_PSW.into())?;
        let psw_address = word(u64::from(PROGRAM_OLD_PSW) + 8)?;
        let instruction = cpu.read_memory(psw_address - 4, 4)?.try_into().expect("four bytes");
        Ok(Some(Interrupted { instruction, psw_mask, psw_address, gprs: here.gprs }))
    }

    fn complete(&self, cpu: &mut Gdb, _: &Registers, interrupted: &Interrupted) -> io::Result<()> {
        cpu.set_psw(interrupted.psw_mask, interrupted.psw_address)
    }

    fn inject(&self, cpu: &mut Gdb, interruption: ProgramInterruption) -> io::Result<()> {
        cpu.write_memory(u64::from(PROGRAM_INTERRUPTION) + 2, &interruption.code().to_be_bytes())
    }
}

/// A machine that is stopped before the program starts, and whose memory the test can read.
struct Computer {
    machine: Machine,
    memory: File,
}

impl Computer {
    fn load(qemu: &Qemu, device: Device, image: &[u8]) -> Result<Self, Box<dyn Error>> {
        let mut memory = None;
        let machine = Machine::start(qemu, device, |folder: &Path, command| {
            let kernel = folder.join("kernel");
            fs::write(&kernel, image)?;
            memory = Some(memory_in_file(folder, command)?);
            command.arg("-S").arg("-kernel").arg(kernel);
            Ok(())
        })?;
        Ok(Self { machine, memory: memory.expect("made above") })
    }

    /// Waits until the program has finished, and returns its record of each case.
    fn notes(&self, cases: &[Case]) -> Result<Vec<Note>, Box<dyn Error>> {
        let started = Instant::now();
        while self.read::<8>(FINISHED)? != 1u64.to_be_bytes() {
            assert!(started.elapsed() < WAIT_LIMIT, "the program does not finish");
            sleep(Duration::from_millis(10));
        }
        let indices = 0..cases.len() as u32;
        indices.map(|index| self.note(index)).collect()
    }

    fn note(&self, index: u32) -> Result<Note, Box<dyn Error>> {
        let [_, length, code_high, code_low, condition, _, _, _] = self.read(NOTES + 8 * index)?;
        let registers: [u8; 128] = self.read(OUTPUTS + 128 * index)?;
        let mut words = registers.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
        Ok(Note {
            code: u16::from_be_bytes([code_high, code_low]),
            instruction_length: length,
            condition_code: condition >> 4 & 0b11,
            gprs: std::array::from_fn(|_| words.next().expect("16 words")),
        })
    }

    fn read<const N: usize>(&self, address: u32) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, address.into())?;
        Ok(bytes)
    }
}

/// The program's record of a case.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    code: u16,
    instruction_length: u8,
    condition_code: u8,
    gprs: [u64; 16],
}

fn check(notes: &[Note], cases: &[Case]) {
    for (note, case) in notes.iter().zip(cases) {
        let instruction_length = if case.code == 0 { 0 } else { 4 };
        let expected = Note { code: case.code, instruction_length, condition_code: 2, gprs: case.gprs };
        assert_eq!(*note, expected, "{}", case.name);
    }
}

pub fn with_qemu(name: &str, test: impl FnOnce(&Qemu) -> Result<(), Box<dyn Error>>) {
    match Qemu::current().and_then(|qemu| assets::machine_for_this_process().map(|()| qemu)) {
        Ok(qemu) => test(&qemu).unwrap(),
        Err(why) => skip::loudly(name, &why),
    }
}

#[test]
fn our_watchdog_follows_the_contract_and_times_out_after_15_s() {
    with_qemu("bare metal with our watchdog", |qemu| {
        let cases = cases();
        let (clock, time) = VmClock::manual();
        let (sender, events) = channel();
        let sender = Mutex::new(sender);
        let watchdog = Watchdog::builder("diag288", Diag288::new())
            .clock(clock)
            .policy(Policy::new(Action::Reset))
            .build(move |event: &Event| Ok(sender.lock().unwrap().send((event.stage, event.action))?))?;

        let computer = Computer::load(qemu, Device::None, &program(&cases))?;
        let device = watchdog.clone();
        let bridge = Bridge::attach(computer.machine.debug()?, ProgramCheck, move |guest| {
            guest.call().map(|call| device.diagnose(&call))
        })?;
        let expected: Vec<Answer> = cases.iter().filter_map(|case| case.answer).collect();
        // The second run follows a platform reset while armed; the first case checks that the reset disarms.
        for run in 0..2 {
            check(&computer.notes(&cases)?, &cases);
            let answers: Vec<Answer> = bridge.decisions.try_iter().map(|decision| decision.answer).collect();
            assert_eq!(answers, expected, "the model's own answers");
            assert!(watchdog.stats().armed);
            if run == 0 {
                computer.memory.write_all_at(&[0; 8], FINISHED.into())?;
                watchdog.reset();
                computer.machine.qmp.execute("system_reset")?;
            }
        }

        time.advance(Duration::from_secs(15) - Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(events.try_recv().ok(), None, "one nanosecond before the deadline");
        time.advance(Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(events.try_recv(), Ok((Stage::Timeout, Action::Reset)));
        Ok(())
    });
}

#[test]
fn qemus_watchdog_gives_the_same_answers() {
    with_qemu("bare metal with QEMU's watchdog", |qemu| {
        // QEMU's emulated processor knows no watchdog call with a base register, unlike its KVM support.
        let without_base = |case: &Case| case.instruction[2] >> 4 == 0;
        let cases: Vec<Case> = cases().into_iter().filter(without_base).collect();
        let computer = Computer::load(qemu, Device::Qemu { action: "none" }, &program(&cases))?;
        computer.machine.qmp.execute("cont")?;
        check(&computer.notes(&cases)?, &cases);
        Ok(())
    });
}

/// Without a device every call ends in a specification exception. The other tests must not pass for that reason.
#[test]
fn a_machine_without_a_watchdog_gives_other_answers() {
    with_qemu("bare metal without a watchdog", |qemu| {
        let cases = cases();
        let computer = Computer::load(qemu, Device::None, &program(&cases))?;
        computer.machine.qmp.execute("cont")?;
        for (note, case) in computer.notes(&cases)?.iter().zip(&cases) {
            assert_eq!(note.code, if case.problem_state { 0x0002 } else { 0x0006 }, "{}", case.name);
        }
        Ok(())
    });
}

/// Calls as on z/VM: registers 4 and 5 have the command's address and length, the text is in guest memory.
mod zvm {
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
    use vm_watchdog::diag288::{Intercept, UnknownCommands};

    use super::*;

    const IPL: u64 = 0x7000;
    const BEGIN: u64 = 0x7010;
    const MSG: u64 = 0x7020;
    const END_OF_MEMORY: u64 = crate::machine::MEMORY;

    fn cases() -> Vec<Case> {
        let refused = Err(ProgramInterruption::Specification);
        let outside = Err(ProgramInterruption::Addressing);
        vec![
            with_command("CHANGE when disarmed", CHANGE, IPL, 3).answered(refused),
            with_command("INIT with BEGIN, the probe", INIT, BEGIN, 5).answered(Ok(())),
            linux("CANCEL of the probe", CANCEL, 0).answered(Ok(())),
            with_command("INIT beyond memory", INIT, END_OF_MEMORY, 3).answered(outside),
            with_command("INIT across the end of memory", INIT, END_OF_MEMORY - 2, 3).answered(outside),
            with_command("INIT at the end of addresses", INIT, u64::MAX, 3).answered(outside),
            with_command("INIT without a command", INIT, IPL, 0).answered(refused),
            with_command("INIT with 231 bytes", INIT, IPL, 231).answered(refused),
            with_command("INIT with a command that only CP has", INIT, MSG, 3).answered(refused),
            with_command("INIT with an odd r3", INIT, IPL, 3).with_instruction(diag(2, 5, 0, 0x288)).answered(refused),
            linux("CANCEL after the refused calls", CANCEL, 0).answered(refused),
            with_command("INIT with CONCEAL", INIT | CONCEAL, BEGIN, 5).answered(Ok(())),
            with_command("CHANGE beyond memory", CHANGE, END_OF_MEMORY, 3).answered(outside),
            with_command("CHANGE with CONCEAL", CHANGE | CONCEAL, IPL, 3).answered(Ok(())),
        ]
    }

    fn with_command(name: &'static str, function: u64, address: u64, length: u64) -> Case {
        linux(name, function, 15).with_gpr(4, address).with_gpr(5, length)
    }

    #[test]
    fn a_guest_on_zvm_selects_the_action_at_its_timeout() {
        with_qemu("bare metal on z/VM", |qemu| {
            let cases = cases();
            let (clock, time) = VmClock::manual();
            let (sender, events) = channel();
            let sender = Mutex::new(sender);
            let watchdog = Watchdog::builder("diag288", Diag288::zvm(UnknownCommands::Refused))
                .clock(clock)
                .policy(Policy::new(Action::Shutdown))
                .build(move |event: &Event| Ok(sender.lock().unwrap().send((event.stage, event.action))?))?;

            let mut image = Image(program(&cases));
            image.put(IPL as usize, &[0xC9, 0xD7, 0xD3]);
            image.put(BEGIN as usize, &[0xC2, 0xC5, 0xC7, 0xC9, 0xD5]);
            image.put(MSG as usize, &[0xD4, 0xE2, 0xC7]);
            let computer = Computer::load(qemu, Device::None, &image.0)?;
            let file = FileOffset::new(computer.memory.try_clone()?, 0);
            let ranges = [(GuestAddress(0), END_OF_MEMORY as usize, Some(file))];
            let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files(&ranges)?;

            let device = watchdog.clone();
            let bridge = Bridge::attach(computer.machine.debug()?, ProgramCheck, move |guest| {
                // Passes the instruction in the form of KVM's intercept.
                let [opcode, registers, address @ ..] = guest.instruction;
                let ipa = u16::from_be_bytes([opcode, registers]);
                let ipb = u32::from(u16::from_be_bytes(address)) << 16;
                match device.intercept_with_memory(4, ipa, ipb, &guest.gprs, reader(&memory)) {
                    Intercept::NotOurs => None,
                    Intercept::Done => Some(Ok(())),
                    Intercept::Inject(interruption) => Some(Err(interruption)),
                    other => unreachable!("{other:?}"),
                }
            })?;
            check(&computer.notes(&cases)?, &cases);
            let answers: Vec<Answer> = bridge.decisions.try_iter().map(|decision| decision.answer).collect();
            let expected: Vec<Answer> = cases.iter().filter_map(|case| case.answer).collect();
            assert_eq!(answers, expected, "the model's own answers");

            time.advance(Duration::from_secs(15));
            watchdog.on_readable();
            assert_eq!(events.try_recv(), Ok((Stage::Timeout, Action::Reset)), "the guest's IPL, not the policy");
            Ok(())
        });
    }
}

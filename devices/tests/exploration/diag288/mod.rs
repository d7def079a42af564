//! The worlds of diag288: LPAR, and z/VM with both ways to treat commands that have no meaning for a VMM.

mod contract;

use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;

use vm_watchdog_devices::diag288::{Diag288, Diag288StateV1, Diagnose, ProgramInterruption, UnknownCommands};
use vm_watchdog_devices::{Access, AfterTimeout, Expired, LastReset, Model, VmInstant};

use contract::{Diag288Contract, View};

use crate::device::{Device, NEVER, Seam, Sound, at, from, unchanged};
use crate::world::{Contract, DeviceWorld, Outcome};

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;

/// A call of the guest: its registers, and on z/VM its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub function: u64,
    pub timeout: u64,
    r1: u8,
    r3: u8,
    action: u64,
    is_in_problem_state: bool,
    /// The command in the guest's memory, if it can be read.
    command: Option<&'static str>,
    length: u64,
}

const RESTART: &str = "SYSTEM RESTART";
const LOGOFF: &str = "LOGOFF";
/// Only z/VM knows what to do.
const MESSAGE: &str = "MSG OPERATOR";

impl Call {
    const fn lpar(function: u64, timeout: u64) -> Self {
        let is_in_problem_state = false;
        Self { function, timeout, r1: 2, r3: 4, action: 0, is_in_problem_state, command: None, length: 0 }
    }

    const fn zvm(function: u64, timeout: u64, command: &'static str) -> Self {
        let length = command.len() as u64;
        Self { action: 0x1000, command: Some(command), length, ..Self::lpar(function, timeout) }
    }

    fn diagnose(self) -> Diagnose {
        let mut gprs = [0; 16];
        gprs[usize::from(self.r1)] = self.function;
        gprs[usize::from(self.r3)] = self.action;
        for (register, value) in [(self.r1 + 1, self.timeout), (self.r3 + 1, self.length)] {
            if let Some(register) = gprs.get_mut(usize::from(register)) {
                *register = value;
            }
        }
        let psw_mask = if self.is_in_problem_state { 1 << 48 } else { 0 };
        let text = [0x83, self.r1 << 4 | self.r3, 0x02, 0x88];
        Diagnose::from_instruction(text, psw_mask, &gprs).expect("DIAGNOSE X'288'")
    }
}

/// The calls of the guest at the seam.
pub trait Hypercall: Seam<Diag288> {
    fn call(&self, model: &mut Diag288, call: Call, now: u64) -> Result<Access, ProgramInterruption> {
        self.execute(model, call, now)
    }

    fn execute(&self, model: &mut Diag288, call: Call, now: u64) -> Result<Access, ProgramInterruption> {
        let text = call.command.map(ebcdic);
        model.diagnose_with_command(&call.diagnose(), text.as_deref(), at(now))
    }
}

impl Hypercall for Sound {}

fn ebcdic(text: &str) -> Vec<u8> {
    let letter = |letter: u8| match letter {
        b'A'..=b'I' => letter - b'A' + 0xC1,
        b'J'..=b'R' => letter - b'J' + 0xD1,
        b'S'..=b'Z' => letter - b'S' + 0xE2,
        _ => 0x40,
    };
    text.bytes().map(letter).collect()
}

/// What happens in a step.
#[derive(Clone, Copy)]
pub enum Act {
    Call(Call),
    Poll,
    Reset,
    /// The host says whether a timeout leaves the device armed.
    StaysArmed(bool),
    /// The device takes the place of one that had timed out before a reset.
    TakeOver,
}

/// An exploration of a device behind the seam `S`.
pub struct Diag288World<S> {
    pub name: &'static str,
    zvm: Option<bool>,
    acts: Vec<Act>,
    seam: PhantomData<S>,
}

impl<S: Hypercall> Diag288World<S> {
    fn new(name: &'static str, zvm: Option<bool>, calls: &[Call], host: &[Act]) -> Self {
        let acts = calls.iter().map(|&call| Act::Call(call)).chain(host.iter().copied()).collect();
        Self { name, zvm, acts, seam: PhantomData }
    }

    pub fn all() -> [Self; 3] {
        [Self::lpar(), Self::zvm(true), Self::zvm(false)]
    }

    pub fn lpar() -> Self {
        let init = Call::lpar(INIT, 15);
        let calls = [
            init,
            Call::lpar(INIT, 20),
            Call::lpar(INIT, u64::MAX),
            Call::lpar(INIT, 14),
            Call::lpar(CHANGE, 15),
            Call::lpar(CHANGE, 20),
            Call::lpar(CHANGE, 14),
            Call::lpar(CANCEL, 15),
            Call::lpar(CANCEL, 0),
            Call::lpar(42, 15),
            Call::lpar(INIT | CONCEAL, 15),
            Call { r1: 3, ..init },
            Call { r1: 15, ..init },
            Call { action: 42, ..init },
            Call { is_in_problem_state: true, ..init },
        ];
        let host = [Act::Poll, Act::Reset, Act::StaysArmed(true), Act::StaysArmed(false), Act::TakeOver];
        Self::new("LPAR", None, &calls, &host)
    }

    pub fn zvm(refuses_unknown: bool) -> Self {
        let init = Call::zvm(INIT, 15, RESTART);
        let calls = [
            init,
            Call::zvm(INIT | CONCEAL, 20, LOGOFF),
            Call::zvm(INIT, 15, MESSAGE),
            Call::zvm(INIT, 14, RESTART),
            Call::zvm(CHANGE, 15, LOGOFF),
            Call::zvm(CHANGE | CONCEAL, 20, MESSAGE),
            Call::lpar(CANCEL, 0),
            Call::zvm(42, 15, RESTART),
            Call { r1: 3, ..init },
            Call { r3: 5, ..init },
            Call { length: 0, ..init },
            Call { length: 231, ..init },
            Call { length: 13, ..init },
            Call { command: None, ..init },
            Call { is_in_problem_state: true, ..init },
        ];
        let name = if refuses_unknown { "z/VM, refusing" } else { "z/VM, accepting" };
        Self::new(name, Some(refuses_unknown), &calls, &[Act::Poll, Act::Reset, Act::StaysArmed(false)])
    }
}

impl<S: Hypercall> DeviceWorld for Diag288World<S> {
    type Model = Diag288;
    type Seam = S;
    type Act = Act;
    type Contract = Diag288Contract;

    fn contract(&self, now: u64) -> Diag288Contract {
        Diag288Contract::new(self.zvm, now)
    }

    fn fresh(&self, contract: &Diag288Contract) -> Diag288 {
        let mut fresh = match self.zvm {
            None => Diag288::new(),
            Some(true) => Diag288::zvm(UnknownCommands::Refused),
            Some(false) => Diag288::zvm(UnknownCommands::Accepted),
        };
        fresh.set_after_timeout(after_timeout(contract.stays_armed));
        fresh
    }

    fn acts(&self) -> &[Act] {
        &self.acts
    }

    fn tells_the_time(act: Act) -> bool {
        matches!(act, Act::Call(_) | Act::Poll)
    }

    fn act(&self, device: &mut Device<Diag288, S>, act: Act, now: u64) -> Outcome {
        match act {
            Act::Call(call) => return device.seam.call(&mut device.model, call, now).into(),
            Act::Poll => return Outcome::Expired(device.poll(now)),
            Act::Reset => device.reset(),
            Act::StaysArmed(stays_armed) => device.model.set_after_timeout(after_timeout(stays_armed)),
            Act::TakeOver => device.model.set_last_reset(LastReset::new(true)),
        }
        Outcome::Nothing
    }

    fn view(&self, device: &Device<Diag288, S>, now: u64) -> View {
        let model = &device.model;
        View {
            timeout_in: model.timeout_at().map(|instant| from(now, instant)),
            poll_in: device.poll_in(now),
            is_armed: model.is_armed(),
            has_timed_out: model.last_reset().by_watchdog,
            request: model.timeout_request(),
            command: model.timeout_command().map(|command| command.to_string()),
        }
    }

    fn inspect_device(&self, device: &Device<Diag288, S>, contract: &Diag288Contract) -> Result<(), String> {
        let now = contract.now();
        if contract.timeout_in() == Some(NEVER) {
            let mut model = device.model.clone();
            model.poll(at(now));
            let at_the_end = model.poll(VmInstant::MAX);
            unchanged("a deadline beyond the range of the clock, at its end", &Expired::default(), &at_the_end)?;
        }
        for act in &self.acts {
            let Act::Call(call) = act else { continue };
            let mut called = device.clone();
            if called.seam.call(&mut called.model, *call, now).is_err() {
                unchanged("a refused call", device, &called)?;
            }
        }
        Ok(())
    }

    /// How long never lasts depends on the clock.
    fn effective(&self, saved: Diag288StateV1, contract: &Diag288Contract) -> Diag288StateV1 {
        let remaining_ns = saved.remaining_ns.filter(|_| contract.timeout_in() != Some(NEVER));
        Diag288StateV1 { remaining_ns, ..saved }
    }
}

fn after_timeout(stays_armed: bool) -> AfterTimeout {
    if stays_armed { AfterTimeout::Armed } else { AfterTimeout::Disarmed }
}

impl Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Call(call) => write!(f, "the guest {call}"),
            Act::Poll => f.write_str("the host polls"),
            Act::TakeOver => f.write_str("the VMM makes the device anew, after one that had timed out"),
            Act::Reset => f.write_str("the platform resets"),
            Act::StaysArmed(true) => f.write_str("the host chooses an action that leaves the watchdog armed"),
            Act::StaysArmed(false) => f.write_str("the host chooses an action that disarms the watchdog"),
        }
    }
}

impl Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, timeout, r1, r3, .. } = self;
        let name = match *function & !CONCEAL {
            INIT => "INIT",
            CHANGE => "CHANGE",
            CANCEL => "CANCEL",
            _ => "an unknown function",
        };
        write!(f, "calls {name} ({function:#x}) with {timeout} s by diag {r1},{r3},0x288")?;
        match self.command {
            Some(command) => write!(f, " and the command {command}, length {}", self.length)?,
            None if self.action != 0 => write!(f, " and action {}", self.action)?,
            None => {}
        }
        if self.is_in_problem_state { write!(f, ", in problem state") } else { Ok(()) }
    }
}

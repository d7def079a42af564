//! The contract of DIAGNOSE X'288', restated: what a guest and a host find after each step.

use vm_watchdog_devices::diag288::ProgramInterruption;
use vm_watchdog_devices::{Access, Request};

use super::{Act, CANCEL, CHANGE, CONCEAL, Call, INIT, LOGOFF, RESTART};
use crate::device::{Ahead, NEVER, in_words};
use crate::world::{self, Contract, Outcome};

const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Diag288Contract {
    now: u64,
    /// z/VM, and whether unknown commands are refused.
    zvm: Option<bool>,
    pub stays_armed: bool,
    timer: Timer,
    unpolled: Option<u64>,
    has_timed_out: bool,
    command: Option<&'static str>,
    /// The command of the last timeout.
    timeout_command: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Timer {
    Stopped,
    /// `None`: beyond the range of the clock, never.
    Until(Option<u64>),
    Expired,
}

impl Diag288Contract {
    pub fn new(zvm: Option<bool>, now: u64) -> Self {
        Self {
            now,
            zvm,
            stays_armed: true,
            timer: Timer::Stopped,
            unpolled: None,
            has_timed_out: false,
            command: None,
            timeout_command: None,
        }
    }

    /// The deadline is the last INIT or CHANGE and its timeout.
    fn restart(&mut self, timeout: u64) -> Access {
        let was_stopped = self.timer == Timer::Stopped;
        let nanos = timeout.checked_mul(SECOND);
        self.timer = Timer::Until(nanos.and_then(|nanos| self.now.checked_add(nanos)));
        if was_stopped { Access::Accepted } else { Access::Heartbeat }
    }

    fn is_armed(&self) -> bool {
        match self.timer {
            Timer::Stopped => false,
            Timer::Until(_) => true,
            Timer::Expired => self.zvm.is_none() && self.stays_armed,
        }
    }

    fn call(&mut self, call: Call) -> Result<Access, ProgramInterruption> {
        let refused = Err(ProgramInterruption::Specification);
        let function = call.function;
        if call.is_in_problem_state {
            return Err(ProgramInterruption::PrivilegedOperation);
        }
        if call.r1 % 2 != 0 || function != CANCEL && call.timeout < 15 {
            return refused;
        }
        let function = match self.zvm {
            None if call.action != 0 => return refused,
            None => function,
            Some(_) if function == CANCEL => function,
            Some(refuses_unknown) => {
                let function = function & !CONCEAL;
                let is_call = function <= CHANGE && call.r3 % 2 == 0 && (1..=230).contains(&call.length);
                if !is_call || function == CHANGE && !self.is_armed() {
                    return refused;
                }
                let command = call.command.filter(|command| command.len() as u64 == call.length);
                let command = command.ok_or(ProgramInterruption::Addressing)?;
                if refuses_unknown && request(command).is_none() {
                    return refused;
                }
                self.command = Some(command);
                function
            }
        };
        match function {
            INIT => {
                self.has_timed_out = false;
                Ok(self.restart(call.timeout))
            }
            CHANGE if self.is_armed() => Ok(self.restart(call.timeout)),
            CANCEL if self.is_armed() => {
                (self.timer, self.command) = (Timer::Stopped, None);
                Ok(Access::Accepted)
            }
            _ => refused,
        }
    }

    fn reset(&mut self) {
        let Self { now, zvm, stays_armed, has_timed_out, .. } = *self;
        *self = Self { stays_armed, has_timed_out, ..Self::new(zvm, now) };
    }

    fn unpolled(&self) -> Option<i64> {
        self.unpolled.map(|instant| instant as i64 - self.now as i64)
    }

    pub fn timeout_in(&self) -> Option<i64> {
        match self.timer {
            Timer::Until(deadline) => Some(deadline.map_or(NEVER, |deadline| (deadline - self.now) as i64)),
            Timer::Stopped | Timer::Expired => None,
        }
    }
}

impl Contract for Diag288Contract {
    type Act = Act;
    type View = View;
    type Relative = Self;

    fn now(&self) -> u64 {
        self.now
    }

    fn pass_until(&mut self, now: u64) {
        self.now = now;
        let Timer::Until(Some(deadline)) = self.timer else { return };
        if deadline <= now {
            self.timer = Timer::Expired;
            self.has_timed_out = true;
            let command = self.command.take();
            if self.unpolled.is_none() {
                (self.unpolled, self.timeout_command) = (Some(deadline), command);
            }
        }
    }

    fn unpolled_for(&self) -> Option<u64> {
        self.unpolled.map(|instant| self.now - instant)
    }

    fn ahead(&self) -> Option<Ahead> {
        let nanos = self.timeout_in().filter(|&nanos| nanos != NEVER)?.unsigned_abs();
        Some(Ahead { end: "the deadline", nanos, unit: 5 * SECOND, long: None })
    }

    fn next(&self) -> [Option<i64>; 2] {
        [None, self.timeout_in()]
    }

    fn perform(&mut self, act: Act) -> Outcome {
        match act {
            Act::Call(call) => return self.call(call).into(),
            Act::Poll => {
                let expired = [None, self.unpolled()];
                self.unpolled = None;
                return Outcome::Expired(expired);
            }
            Act::Reset => self.reset(),
            Act::StaysArmed(stays_armed) => self.stays_armed = stays_armed,
            Act::TakeOver => self.has_timed_out = true,
        }
        Outcome::Nothing
    }

    fn view(&self) -> View {
        View {
            timeout_in: self.timeout_in(),
            poll_in: self.unpolled().or(self.timeout_in()),
            is_armed: self.is_armed(),
            has_timed_out: self.has_timed_out,
            request: self.timeout_command.and_then(request),
            command: self.timeout_command.map(String::from),
        }
    }

    fn relative(&self) -> Self {
        let timer = match self.timer {
            Timer::Until(deadline) => Timer::Until(deadline.map(|deadline| deadline - self.now)),
            timer => timer,
        };
        Self { now: 0, timer, unpolled: self.unpolled.map(|instant| self.now - instant), ..self.clone() }
    }
}

/// What the host sees of the device. Times are in nanoseconds from now.
#[derive(PartialEq, Eq)]
pub struct View {
    pub timeout_in: Option<i64>,
    pub poll_in: Option<i64>,
    pub is_armed: bool,
    pub has_timed_out: bool,
    pub request: Option<Request>,
    pub command: Option<String>,
}

impl world::View for View {
    fn named(&self) -> Vec<(&'static str, String)> {
        vec![
            ("the timeout", in_words(self.timeout_in)),
            ("the next poll", in_words(self.poll_in)),
            ("the device, armed,", self.is_armed.to_string()),
            ("the last reset, by the watchdog,", self.has_timed_out.to_string()),
            ("the guest's request", format!("{:?}", self.request)),
            ("the command of the timeout", format!("{:?}", self.command)),
        ]
    }
}

fn request(command: &str) -> Option<Request> {
    [(RESTART, Request::Restart), (LOGOFF, Request::Poweroff)]
        .into_iter()
        .find_map(|(known, request)| (known == command).then_some(request))
}

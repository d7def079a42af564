//! The worlds of the watchdog behind the ACPI watchdog table: one for each period.

use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;

use vm_watchdog_devices::wdat::{TimerPeriod, Wdat, WdatConfig, WdatStateV1};
use vm_watchdog_devices::{Access, LastReset, Model};

use crate::device::{
    Ahead, BEGIN, Device, ELSEWHERE, Seam, Sound, Wait, at, compare_expired, differences, from, unchanged,
};
use crate::search::World;

const RELOAD: u64 = 0x0;
const COUNT: u64 = 0x4;
const CONTROL: u64 = 0x8;
const STATUS: u64 = 0xC;

/// A write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub register: u64,
    pub value: u32,
}

/// The writes of the guest at the seam.
pub trait Registers: Seam<Wdat> {
    fn write(&self, model: &mut Wdat, write: Write, now: u64) -> Access {
        self.write_through(model, write, now)
    }

    fn write_through(&self, model: &mut Wdat, Write { register, value }: Write, now: u64) -> Access {
        model.write(register, &value.to_le_bytes(), at(now))
    }
}

impl Registers for Sound {}

/// What happens in a step.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Write(Write),
    Poll,
    Reset,
    /// The device takes the place of one that had timed out before a reset.
    TakeOver,
}

#[derive(Clone, Copy, Debug)]
pub struct Step {
    wait: Wait,
    act: Act,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Access(Access),
    Expired([Option<i64>; 2]),
    Nothing,
}

/// The period, and the limits of the countdown: nanoseconds, and periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Limits {
    period: u64,
    min: u32,
    max: u32,
    after_reset: u32,
}

/// What the registers are by the contract. Instants are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contract {
    limits: Limits,
    reload: u32,
    runs: bool,
    deadline: Option<u64>,
    has_timed_out: bool,
    /// The first timeout that the host has not polled.
    unpolled: Option<u64>,
    now: u64,
}

impl Contract {
    fn new(limits: Limits, now: u64) -> Self {
        let reload = limits.after_reset;
        Self { limits, reload, runs: false, deadline: None, has_timed_out: false, unpolled: None, now }
    }

    fn count(&self) -> u32 {
        self.reload.max(self.limits.min).min(self.limits.max)
    }

    fn start(&mut self) {
        self.deadline = Some(self.now + u64::from(self.count()) * self.limits.period);
    }

    fn pass_until(&mut self, now: u64) {
        self.now = now;
        if let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) {
            self.deadline = None;
            self.has_timed_out = true;
            self.unpolled = self.unpolled.or(Some(deadline));
        }
    }

    fn timeout_in(&self) -> Option<i64> {
        self.deadline.map(|deadline| from(self.now, at(deadline)))
    }

    fn perform(&mut self, act: Act) -> Outcome {
        match act {
            Act::Write(write) => return Outcome::Access(self.write(write)),
            Act::Poll => {
                let expired = self.unpolled.take().map(|instant| from(self.now, at(instant)));
                return Outcome::Expired([None, expired]);
            }
            Act::Reset => *self = Self { has_timed_out: self.has_timed_out, ..Self::new(self.limits, self.now) },
            Act::TakeOver => self.has_timed_out = true,
        }
        Outcome::Nothing
    }

    fn write(&mut self, Write { register, value }: Write) -> Access {
        match (register, value & 1 == 1) {
            (RELOAD, _) => self.reload = value,
            (COUNT, _) if self.runs => {
                self.start();
                return Access::Heartbeat;
            }
            (COUNT, _) => return Access::HeartbeatWhileDisarmed,
            (CONTROL, true) if !self.runs => {
                self.runs = true;
                self.start();
            }
            (CONTROL, true) => {}
            (CONTROL, false) => (self.runs, self.deadline) = (false, None),
            (STATUS, clears) => self.has_timed_out &= !clears,
            _ => return Access::Ignored,
        }
        Access::Accepted
    }

    fn view(&self) -> View {
        let left = self.deadline.map_or(0, |deadline| (deadline - self.now).div_ceil(self.limits.period));
        View {
            registers: [self.count(), left as u32, self.runs.into(), self.has_timed_out.into()],
            timeout_in: self.timeout_in(),
            poll_in: self.unpolled.map(|instant| from(self.now, at(instant))).or(self.timeout_in()),
            is_armed: self.runs,
            has_timed_out: self.has_timed_out,
        }
    }

    /// The same on a clock that shows zero.
    fn relative(&self) -> (Self, Option<i64>, Option<i64>) {
        let unpolled = self.unpolled.map(|instant| from(self.now, at(instant)));
        (Self { deadline: None, unpolled: None, now: 0, ..*self }, self.timeout_in(), unpolled)
    }
}

/// What guest and host see.
#[derive(Debug, PartialEq, Eq)]
struct View {
    registers: [u32; 4],
    timeout_in: Option<i64>,
    poll_in: Option<i64>,
    is_armed: bool,
    has_timed_out: bool,
}

impl View {
    fn named(&self) -> Vec<(&'static str, String)> {
        let registers = ["RELOAD", "COUNT", "CONTROL", "STATUS"].into_iter().zip(self.registers);
        let mut named: Vec<_> = registers.map(|(name, value)| (name, value.to_string())).collect();
        named.push(("the timeout", crate::device::in_words(self.timeout_in)));
        named.push(("the next poll", crate::device::in_words(self.poll_in)));
        named.push(("is_armed", self.is_armed.to_string()));
        named.push(("the cause of the last reset", self.has_timed_out.to_string()));
        named
    }
}

#[derive(Clone)]
pub struct State<S> {
    device: Device<Wdat, S>,
    /// The same on another clock.
    elsewhere: Device<Wdat, S>,
    contract: Contract,
}

/// An exploration of a device behind the seam `S`.
pub struct WdatWorld<S> {
    pub name: &'static str,
    config: WdatConfig,
    limits: Limits,
    acts: Vec<Act>,
    seam: PhantomData<S>,
}

impl<S: Registers> WdatWorld<S> {
    pub fn all() -> [Self; 2] {
        [Self::milliseconds(), Self::seconds()]
    }

    pub fn milliseconds() -> Self {
        let limits = Limits { period: 1_000_000, min: 1_000, max: 0xFF_FFFF, after_reset: 60_000 };
        Self::new("a period of 1 ms", TimerPeriod::OneMillisecond, limits)
    }

    fn seconds() -> Self {
        let limits = Limits { period: 1_000_000_000, min: 5, max: 65_535, after_reset: 60 };
        Self::new("a period of 1 s", TimerPeriod::OneSecond, limits)
    }

    fn new(name: &'static str, period: TimerPeriod, limits: Limits) -> Self {
        let writes = [
            (RELOAD, 0),
            (RELOAD, limits.min + 2),
            (RELOAD, u32::MAX),
            (COUNT, 0),
            (COUNT, 1),
            (CONTROL, 0),
            (CONTROL, 1),
            (CONTROL, !1),
            (STATUS, 0),
            (STATUS, 1),
            (0x10, 1),
        ];
        let writes = writes.map(|(register, value)| Act::Write(Write { register, value }));
        let acts = writes.into_iter().chain([Act::Poll, Act::Reset, Act::TakeOver]).collect();
        let config = WdatConfig::default().with_period(period);
        Self { name, config, limits, acts, seam: PhantomData }
    }

    fn fresh(&self) -> Wdat {
        Wdat::new(self.config)
    }

    fn act(&self, device: &mut Device<Wdat, S>, act: Act, now: u64) -> Outcome {
        match act {
            Act::Write(write) => return Outcome::Access(device.seam.write(&mut device.model, write, now)),
            Act::Poll => return Outcome::Expired(device.poll(now)),
            Act::Reset => device.reset(),
            Act::TakeOver => device.model.set_last_reset(LastReset::new(true)),
        }
        Outcome::Nothing
    }

    fn view(&self, device: &Device<Wdat, S>, now: u64) -> View {
        let mut model = device.model.clone();
        let registers = [RELOAD, COUNT, CONTROL, STATUS].map(|register| {
            let mut data = [0; 4];
            model.read(register, &mut data, at(now));
            u32::from_le_bytes(data)
        });
        View {
            registers,
            timeout_in: model.timeout_at().map(|instant| from(now, instant)),
            poll_in: device.poll_in(now),
            is_armed: model.is_armed(),
            has_timed_out: model.last_reset().by_watchdog,
        }
    }
}

impl<S: Registers> World for WdatWorld<S> {
    type State = State<S>;
    type Key = (WdatStateV1, (Contract, Option<i64>, Option<i64>), S);
    type Step = Step;

    fn start(&self) -> State<S> {
        let [mut device, mut elsewhere] = [(); 2].map(|()| Device::new(self.fresh()));
        device.poll(BEGIN);
        elsewhere.poll(BEGIN + ELSEWHERE);
        State { device, elsewhere, contract: Contract::new(self.limits, BEGIN) }
    }

    fn steps(&self, state: &State<S>) -> Vec<Step> {
        let contract = &state.contract;
        let ahead = contract.deadline.map(|deadline| Ahead {
            end: "the deadline",
            nanos: deadline - contract.now,
            unit: self.limits.period,
            long: None,
        });
        let waits = Wait::all(contract.unpolled.map(|instant| contract.now - instant), ahead);
        let steps = self.acts.iter().flat_map(|&act| {
            // The others do not tell the device the time.
            let is_timeless = !matches!(act, Act::Write(_) | Act::Poll);
            waits.iter().take(if is_timeless { 1 } else { waits.len() }).map(move |&wait| Step { wait, act })
        });
        steps.collect()
    }

    fn perform(&self, state: &mut State<S>, step: Step) -> Result<(), String> {
        let State { device, elsewhere, contract } = state;
        contract.pass_until(contract.now + step.wait.nanos);
        let now = contract.now;
        let next = [None, contract.timeout_in()];
        let outcome = self.act(device, step.act, now);
        let expected = contract.perform(step.act);
        if let (Outcome::Expired(seen), Outcome::Expired(due)) = (&outcome, &expected) {
            compare_expired(*seen, *due, next)?;
        }
        if outcome != expected {
            return Err(format!("the step returns {outcome:?}, and should return {expected:?}"));
        }
        let (view, expected) = (self.view(device, now), contract.view());
        if view != expected {
            return Err(differences(&view.named(), &expected.named()));
        }
        let outcome_elsewhere = self.act(elsewhere, step.act, now + ELSEWHERE);
        unchanged("what the step returns on a restored device", &outcome, &outcome_elsewhere)?;
        device.inspect_restored(&self.fresh(), now, elsewhere)
    }

    fn inspect(&self, state: &State<S>) -> Result<(), String> {
        let State { device, contract, .. } = state;
        device.inspect_polls(contract.now)?;
        device.inspect_restored_on_a_young_clock(&self.fresh(), contract.now)?;
        let mut read = device.clone();
        read.model.read(0, &mut [0; 24], at(contract.now));
        unchanged("a read of all registers", device, &read)
    }

    fn key(&self, state: &State<S>) -> Self::Key {
        let State { device, contract, .. } = state;
        (device.saved(contract.now), contract.relative(), device.seam.clone())
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.wait)?;
        match self.act {
            Act::Write(Write { register, value }) => write!(f, "the guest writes {value:#x} to {register:X}h"),
            Act::Poll => f.write_str("the host polls"),
            Act::Reset => f.write_str("the platform resets"),
            Act::TakeOver => f.write_str("the VMM makes the device anew, after one that had timed out"),
        }
    }
}

//! The worlds of the watchdog behind the ACPI watchdog table: one for each period.

use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;

use vm_watchdog_devices::wdat::{TimerPeriod, Wdat, WdatConfig};
use vm_watchdog_devices::{Access, LastReset, Model};

use crate::device::{Ahead, Device, Seam, Sound, at, from, in_words, unchanged};
use crate::world::{self, Contract, DeviceWorld, Outcome};

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
#[derive(Clone, Copy)]
pub enum Act {
    Write(Write),
    Poll,
    Reset,
    /// The device takes the place of one that had timed out before a reset.
    TakeOver,
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
pub struct WdatContract {
    limits: Limits,
    reload: u32,
    runs: bool,
    deadline: Option<u64>,
    has_timed_out: bool,
    /// The first timeout that the host has not polled.
    unpolled: Option<u64>,
    now: u64,
}

impl WdatContract {
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

    fn timeout_in(&self) -> Option<i64> {
        self.deadline.map(|deadline| from(self.now, at(deadline)))
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
}

impl Contract for WdatContract {
    type Act = Act;
    type View = View;
    type Relative = (Self, Option<i64>, Option<i64>);

    fn now(&self) -> u64 {
        self.now
    }

    fn pass_until(&mut self, now: u64) {
        self.now = now;
        if let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) {
            self.deadline = None;
            self.has_timed_out = true;
            self.unpolled = self.unpolled.or(Some(deadline));
        }
    }

    fn unpolled_for(&self) -> Option<u64> {
        self.unpolled.map(|instant| self.now - instant)
    }

    fn ahead(&self) -> Option<Ahead> {
        let deadline = self.deadline?;
        Some(Ahead { end: "the deadline", nanos: deadline - self.now, unit: self.limits.period, long: None })
    }

    fn next(&self) -> [Option<i64>; 2] {
        [None, self.timeout_in()]
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

    fn relative(&self) -> Self::Relative {
        let unpolled = self.unpolled.map(|instant| from(self.now, at(instant)));
        (Self { deadline: None, unpolled: None, now: 0, ..*self }, self.timeout_in(), unpolled)
    }
}

/// What guest and host see.
#[derive(PartialEq, Eq)]
pub struct View {
    registers: [u32; 4],
    timeout_in: Option<i64>,
    poll_in: Option<i64>,
    is_armed: bool,
    has_timed_out: bool,
}

impl world::View for View {
    fn named(&self) -> Vec<(&'static str, String)> {
        let registers = ["RELOAD", "COUNT", "CONTROL", "STATUS"].into_iter().zip(self.registers);
        let mut named: Vec<_> = registers.map(|(name, value)| (name, value.to_string())).collect();
        named.push(("the timeout", in_words(self.timeout_in)));
        named.push(("the next poll", in_words(self.poll_in)));
        named.push(("is_armed", self.is_armed.to_string()));
        named.push(("the cause of the last reset", self.has_timed_out.to_string()));
        named
    }
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
}

impl<S: Registers> DeviceWorld for WdatWorld<S> {
    type Model = Wdat;
    type Seam = S;
    type Act = Act;
    type Contract = WdatContract;

    fn contract(&self, now: u64) -> WdatContract {
        WdatContract::new(self.limits, now)
    }

    fn fresh(&self, _: &WdatContract) -> Wdat {
        Wdat::new(self.config)
    }

    fn acts(&self) -> &[Act] {
        &self.acts
    }

    fn tells_the_time(act: Act) -> bool {
        matches!(act, Act::Write(_) | Act::Poll)
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

    fn inspect_device(&self, device: &Device<Wdat, S>, contract: &WdatContract) -> Result<(), String> {
        let mut read = device.clone();
        read.model.read(0, &mut [0; 24], at(contract.now));
        unchanged("a read of all registers", device, &read)
    }
}

impl Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Write(Write { register, value }) => write!(f, "the guest writes {value:#x} to {register:X}h"),
            Act::Poll => f.write_str("the host polls"),
            Act::Reset => f.write_str("the platform resets"),
            Act::TakeOver => f.write_str("the VMM makes the device anew, after one that had timed out"),
        }
    }
}

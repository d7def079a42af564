//! The worlds of the Generic Watchdog of Arm's BSA: one for each frequency of the counter.

use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;
use std::num::NonZeroU32;

use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig, SbsaStateV1};
use vm_watchdog_devices::{Access, LastReset, Model};

use crate::device::{Ahead, Device, Seam, Sound, at, from, in_words, unchanged};
use crate::world::{self, Contract, DeviceWorld, Outcome};

const WCS: u64 = 0x000;
const WOR: u64 = 0x008;
const WOR_HIGH: u64 = 0x00C;
const WCV: u64 = 0x010;
const W_IIDR: u64 = 0xFCC;

/// A write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// WRR: a heartbeat.
    Refresh,
    /// 32 bits of the control frame.
    Control(u64, u32),
    /// WCV, 64 bits, this many ticks after the counter.
    Compare(i64),
}

/// The writes of the guest at the seam.
pub trait Frames: Seam<Sbsa> {
    fn write(&self, model: &mut Sbsa, write: Write, now: u64) -> Access {
        self.write_through(model, write, now)
    }

    fn write_through(&self, model: &mut Sbsa, write: Write, now: u64) -> Access {
        match write {
            Write::Refresh => model.write(Frame::Refresh, 0, &[0; 4], at(now)),
            Write::Control(offset, value) => model.write(Frame::Control, offset, &value.to_le_bytes(), at(now)),
            Write::Compare(ticks) => {
                let counter = model.save(at(now)).counter;
                model.write(Frame::Control, WCV, &counter.wrapping_add_signed(ticks).to_le_bytes(), at(now))
            }
        }
    }
}

impl Frames for Sound {}

/// What happens in a step.
#[derive(Clone, Copy)]
pub enum Act {
    Write(Write),
    Poll,
    Reset,
    /// The device takes the place of one that had timed out before a reset.
    TakeOver,
    /// The VMM sets the counter this many ticks ahead.
    SetCounter(u64),
}

/// What the registers are by the contract. Instants are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SbsaContract {
    hz: u32,
    now: u64,
    /// What the counter reads more than the ticks since the clock started.
    ahead: u64,
    enabled: bool,
    ws0: bool,
    ws1: bool,
    wor: u64,
    wcv: u64,
    /// WS0 and WS1: the first that the host has not polled.
    unpolled: [Option<u64>; 2],
}

impl SbsaContract {
    fn new(hz: u32, now: u64) -> Self {
        Self { hz, now, ahead: 0, enabled: false, ws0: false, ws1: false, wor: 0, wcv: 0, unpolled: [None; 2] }
    }

    fn billionths(&self) -> u128 {
        u128::from(self.now) * u128::from(self.hz)
    }

    fn counter(&self) -> u64 {
        (self.billionths() / 1_000_000_000) as u64 + self.ahead
    }

    fn fraction(&self) -> u64 {
        (self.billionths() % 1_000_000_000) as u64
    }

    /// The instant at which the counter comes to this value.
    fn reads_at(&self, value: u64) -> u64 {
        let billionths = u128::from(value - self.ahead) * 1_000_000_000;
        billionths.div_ceil(self.hz.into()).try_into().expect("within the range of the clock")
    }

    fn counts(&self) -> bool {
        self.enabled && !self.ws1
    }

    /// When the watch period ends: at the first value that is greater, or now.
    fn end(&self) -> Option<u64> {
        self.counts().then(|| if self.counter() > self.wcv { self.now } else { self.reads_at(self.wcv + 1) })
    }

    fn timeout(&self) -> Option<u64> {
        let end = self.end()?;
        Some(if self.ws0 { end } else { self.reads_at(self.wcv + 1 + self.wor + 1) })
    }

    fn in_nanos(&self, instant: Option<u64>) -> Option<i64> {
        instant.map(|instant| from(self.now, at(instant)))
    }

    fn write(&mut self, write: Write) -> Access {
        let was_enabled = self.enabled;
        match write {
            Write::Control(WCS, value) => self.enabled = value & 1 == 1,
            Write::Control(WOR, value) => self.wor = self.wor >> 32 << 32 | u64::from(value),
            Write::Control(WOR_HIGH, value) => self.wor = u64::from(value & 0xFFFF) << 32 | self.wor & 0xFFFF_FFFF,
            Write::Refresh => {}
            Write::Control(..) => return Access::Ignored,
            Write::Compare(ticks) => {
                self.wcv = self.counter().wrapping_add_signed(ticks);
                self.pass_until(self.now);
                return Access::Accepted;
            }
        }
        (self.ws0, self.ws1) = (false, false);
        self.wcv = self.counter() + self.wor;
        match (was_enabled && self.enabled, write) {
            (true, _) => Access::Heartbeat,
            (false, Write::Refresh) => Access::HeartbeatWhileDisarmed,
            (false, _) => Access::Accepted,
        }
    }
}

impl Contract for SbsaContract {
    type Act = Act;
    type View = View;
    type Relative = (Self, u64, [Option<i64>; 2]);

    fn now(&self) -> u64 {
        self.now
    }

    fn pass_until(&mut self, now: u64) {
        while let Some(end) = self.end().filter(|end| *end <= now) {
            let stage = usize::from(self.ws0);
            self.unpolled[stage] = self.unpolled[stage].or(Some(end));
            if self.ws0 {
                self.ws1 = true;
            } else {
                self.ws0 = true;
                self.wcv = self.counter().max(self.wcv + 1) + self.wor;
            }
        }
        self.now = now;
    }

    fn unpolled_for(&self) -> Option<u64> {
        self.unpolled.into_iter().flatten().min().map(|instant| self.now - instant)
    }

    fn ahead(&self) -> Option<Ahead> {
        let end = self.end()?;
        Some(Ahead {
            end: if self.ws0 { "the end of the second period" } else { "the end of the first period" },
            nanos: end - self.now,
            unit: 1_000_000_000_u64.div_ceil(self.hz.into()),
            // Both periods, in a watchdog whose host is late.
            long: Some(100).filter(|_| !self.ws0),
        })
    }

    fn next(&self) -> [Option<i64>; 2] {
        let next = [self.end().filter(|_| !self.ws0), self.timeout()];
        next.map(|instant| self.in_nanos(instant))
    }

    fn perform(&mut self, act: Act) -> Outcome {
        match act {
            Act::Write(write) => return Outcome::Access(self.write(write)),
            Act::Poll => {
                let unpolled = std::mem::take(&mut self.unpolled);
                return Outcome::Expired(unpolled.map(|instant| self.in_nanos(instant)));
            }
            Act::Reset => *self = Self { ahead: self.ahead, ws1: self.ws1, ..Self::new(self.hz, self.now) },
            Act::TakeOver => self.ws1 |= !self.enabled,
            Act::SetCounter(ticks) => {
                self.ahead += ticks;
                self.wcv += if self.counts() { ticks } else { 0 };
            }
        }
        Outcome::Nothing
    }

    fn view(&self) -> View {
        let unpolled = self.unpolled.into_iter().flatten().min();
        View {
            wcs: u64::from(self.enabled) | u64::from(self.ws0) << 1 | u64::from(self.ws1) << 2,
            wor: self.wor,
            wcv: self.wcv,
            others: [0, 0x1_0000, 0x1_0000],
            timeout_in: self.in_nanos(self.timeout()),
            poll_in: self.in_nanos(unpolled.or(self.end())),
            interrupt: self.ws0,
            is_armed: self.enabled,
            has_timed_out: self.ws1,
        }
    }

    /// The counter reads zero, too. WCV of a watchdog that does not count has no effect.
    fn relative(&self) -> Self::Relative {
        let wcv = if self.counts() { self.wcv - self.counter() } else { 0 };
        let unpolled = self.unpolled.map(|instant| self.in_nanos(instant));
        (Self { now: 0, ahead: 0, wcv, unpolled: [None; 2], ..*self }, self.fraction(), unpolled)
    }
}

/// What guest and host see.
#[derive(PartialEq, Eq)]
pub struct View {
    wcs: u64,
    wor: u64,
    wcv: u64,
    /// WRR, and W_IIDR of both frames.
    others: [u32; 3],
    timeout_in: Option<i64>,
    poll_in: Option<i64>,
    interrupt: bool,
    is_armed: bool,
    has_timed_out: bool,
}

impl world::View for View {
    fn named(&self) -> Vec<(&'static str, String)> {
        vec![
            ("WCS", format!("{:#05b}", self.wcs)),
            ("WOR", self.wor.to_string()),
            ("WCV", self.wcv.to_string()),
            ("WRR and W_IIDR", format!("{:x?}", self.others)),
            ("the timeout", in_words(self.timeout_in)),
            ("the next poll", in_words(self.poll_in)),
            ("the interrupt", self.interrupt.to_string()),
            ("is_armed", self.is_armed.to_string()),
            ("the cause of the last reset", self.has_timed_out.to_string()),
        ]
    }
}

/// An exploration of a device behind the seam `S`.
pub struct SbsaWorld<S> {
    pub name: &'static str,
    hz: u32,
    acts: Vec<Act>,
    seam: PhantomData<S>,
}

impl<S: Frames> SbsaWorld<S> {
    pub fn all() -> [Self; 2] {
        [Self::gigahertz(), Self::fractions()]
    }

    pub fn fractions() -> Self {
        Self::new("2.5 ns in a tick", 400_000_000)
    }

    pub fn gigahertz() -> Self {
        Self::new("1 ns in a tick", 1_000_000_000)
    }

    fn new(name: &'static str, hz: u32) -> Self {
        let writes = [
            Write::Refresh,
            Write::Control(WCS, 0),
            Write::Control(WCS, 1),
            Write::Control(WCS, !1),
            Write::Control(WOR, 0),
            Write::Control(WOR, 5),
            Write::Control(WOR_HIGH, 0),
            Write::Control(WOR_HIGH, 0x0001_0001),
            Write::Control(W_IIDR, 1),
            Write::Compare(-1),
            Write::Compare(0),
            Write::Compare(7),
        ];
        let others = [Act::Poll, Act::Reset, Act::TakeOver, Act::SetCounter(1_000)];
        let acts = writes.into_iter().map(Act::Write).chain(others).collect();
        Self { name, hz, acts, seam: PhantomData }
    }
}

impl<S: Frames> DeviceWorld for SbsaWorld<S> {
    type Model = Sbsa;
    type Seam = S;
    type Act = Act;
    type Contract = SbsaContract;

    fn contract(&self, now: u64) -> SbsaContract {
        SbsaContract::new(self.hz, now)
    }

    fn fresh(&self, _: &SbsaContract) -> Sbsa {
        Sbsa::new(SbsaConfig::new(NonZeroU32::new(self.hz).expect("not zero")))
    }

    fn acts(&self) -> &[Act] {
        &self.acts
    }

    fn tells_the_time(act: Act) -> bool {
        matches!(act, Act::Write(_) | Act::Poll | Act::SetCounter(_))
    }

    fn act(&self, device: &mut Device<Sbsa, S>, act: Act, now: u64) -> Outcome {
        match act {
            Act::Write(write) => return Outcome::Access(device.seam.write(&mut device.model, write, now)),
            Act::Poll => return Outcome::Expired(device.poll(now)),
            Act::Reset => device.reset(),
            Act::TakeOver => device.model.set_last_reset(LastReset::new(true)),
            Act::SetCounter(ticks) => {
                let counter = device.model.save(at(now)).counter;
                device.model.set_counter(counter + ticks, at(now));
            }
        }
        Outcome::Nothing
    }

    fn view(&self, device: &Device<Sbsa, S>, now: u64) -> View {
        let mut model = device.model.clone();
        let mut read = |frame, offset| {
            let mut data = [0; 8];
            model.read(frame, offset, &mut data, at(now));
            u64::from_le_bytes(data)
        };
        let [wcs, wor, wcv] = [WCS, WOR, WCV].map(|register| read(Frame::Control, register));
        let others = [(Frame::Refresh, 0), (Frame::Control, W_IIDR), (Frame::Refresh, W_IIDR)];
        View {
            wcs,
            wor,
            wcv,
            others: others.map(|(frame, offset)| read(frame, offset) as u32),
            timeout_in: model.timeout_at().map(|instant| from(now, instant)),
            poll_in: device.poll_in(now),
            interrupt: model.interrupt_level(),
            is_armed: model.is_armed(),
            has_timed_out: model.last_reset().by_watchdog,
        }
    }

    fn inspect_device(&self, device: &Device<Sbsa, S>, contract: &SbsaContract) -> Result<(), String> {
        let mut read = device.clone();
        for frame in [Frame::Control, Frame::Refresh] {
            read.model.read(frame, 0, &mut [0; 0x20], at(contract.now));
        }
        unchanged("a read of all registers", device, &read)
    }

    fn effective(&self, saved: SbsaStateV1, _: &SbsaContract) -> SbsaStateV1 {
        let wcv = if saved.enabled && !saved.ws1 { saved.wcv - saved.counter } else { 0 };
        SbsaStateV1 { counter: 0, wcv, ..saved }
    }
}

impl Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Write(Write::Refresh) => f.write_str("the guest writes WRR"),
            Act::Write(Write::Control(offset, value)) => write!(f, "the guest writes {value:#x} to {offset:03X}h"),
            Act::Write(Write::Compare(ticks)) => write!(f, "the guest writes the counter {ticks:+} to WCV"),
            Act::Poll => f.write_str("the host polls"),
            Act::Reset => f.write_str("the platform resets"),
            Act::TakeOver => f.write_str("the VMM makes the device anew, after one that had timed out"),
            Act::SetCounter(ticks) => write!(f, "the VMM sets the counter {ticks} ticks ahead"),
        }
    }
}

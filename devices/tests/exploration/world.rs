//! What the worlds of all models have in common: a device, and its contract beside it.

use std::fmt::{self, Debug, Display};
use std::hash::Hash;

use vm_watchdog_devices::diag288::ProgramInterruption;
use vm_watchdog_devices::{Access, Model};

use crate::device::{Ahead, BEGIN, Device, ELSEWHERE, Seam, Wait, compare_expired, differences, unchanged};
use crate::search::World;

/// An alphabet for a device, with the contract that it must keep.
pub trait DeviceWorld {
    type Model: Model<State: Eq + Hash> + Clone + Debug + PartialEq;
    type Seam: Seam<Self::Model>;
    /// What a guest or a host does, in words.
    type Act: Copy + Display;
    type Contract: Contract<Act = Self::Act>;

    fn contract(&self, now: u64) -> Self::Contract;

    /// A new device, with what the host has chosen since the beginning.
    fn fresh(&self, contract: &Self::Contract) -> Self::Model;

    fn acts(&self) -> &[Self::Act];

    /// Whether an act tells the device the time, so that it is another one after a wait.
    fn tells_the_time(act: Self::Act) -> bool;

    fn act(&self, device: &mut WorldDevice<Self>, act: Self::Act, now: u64) -> Outcome;

    fn view(&self, device: &WorldDevice<Self>, now: u64) -> <Self::Contract as Contract>::View;

    /// Checks what holds in every state of this model.
    fn inspect_device(&self, device: &WorldDevice<Self>, contract: &Self::Contract) -> Result<(), String>;

    /// A saved state without what has no effect.
    fn effective(&self, saved: SavedState<Self>, _: &Self::Contract) -> SavedState<Self> {
        saved
    }
}

pub type WorldDevice<W> = Device<<W as DeviceWorld>::Model, <W as DeviceWorld>::Seam>;
type SavedState<W> = <<W as DeviceWorld>::Model as Model>::State;

/// What a device must be, restated. The contract has a clock of its own.
pub trait Contract: Clone {
    type Act;
    type View: View;
    /// The contract on a clock that shows zero.
    type Relative: Eq + Hash;

    fn now(&self) -> u64;

    fn pass_until(&mut self, now: u64);

    /// For how long the host has not polled what is due, in nanoseconds.
    fn unpolled_for(&self) -> Option<u64>;

    /// The next end of a stage.
    fn ahead(&self) -> Option<Ahead>;

    /// Nanoseconds until pretimeout and timeout are due next.
    fn next(&self) -> [Option<i64>; 2];

    /// Performs an act at the current time.
    fn perform(&mut self, act: Self::Act) -> Outcome;

    fn view(&self) -> Self::View;

    fn relative(&self) -> Self::Relative;
}

/// What a guest and a host see of a device. Times are in nanoseconds from now.
pub trait View: PartialEq {
    /// Each part with its name, in words.
    fn named(&self) -> Vec<(&'static str, String)>;
}

/// What a step returns. Instants are in nanoseconds from now.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Access(Access),
    /// The guest's call is refused.
    Interruption(ProgramInterruption),
    Expired([Option<i64>; 2]),
    Rearmed(bool),
    Nothing,
}

impl From<Result<Access, ProgramInterruption>> for Outcome {
    fn from(called: Result<Access, ProgramInterruption>) -> Self {
        called.map_or_else(Self::Interruption, Self::Access)
    }
}

/// A device beside its contract.
pub struct State<W: DeviceWorld> {
    device: WorldDevice<W>,
    /// The same on another clock.
    elsewhere: WorldDevice<W>,
    contract: W::Contract,
}

impl<W: DeviceWorld> Clone for State<W> {
    fn clone(&self) -> Self {
        let Self { device, elsewhere, contract } = self;
        Self { device: device.clone(), elsewhere: elsewhere.clone(), contract: contract.clone() }
    }
}

/// An act after a wait.
#[derive(Clone, Copy, Debug)]
pub struct Step<A> {
    wait: Wait,
    act: A,
}

impl<A: Display> Display for Step<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.wait, self.act)
    }
}

impl<W: DeviceWorld> World for W {
    type State = State<W>;
    type Key = (SavedState<W>, <W::Contract as Contract>::Relative, W::Seam);
    type Step = Step<W::Act>;

    fn start(&self) -> State<W> {
        let contract = self.contract(BEGIN);
        let fresh = self.fresh(&contract);
        let mut device = Device::new(fresh.clone());
        device.poll(BEGIN);
        let elsewhere = device.restored(&fresh, BEGIN, BEGIN + ELSEWHERE).expect("a possible state");
        State { device, elsewhere, contract }
    }

    fn steps(&self, State { contract, .. }: &State<W>) -> Vec<Self::Step> {
        let waits = Wait::all(contract.unpolled_for(), contract.ahead());
        let steps = self.acts().iter().flat_map(|&act| {
            let waits = if W::tells_the_time(act) { &waits[..] } else { &waits[..1] };
            waits.iter().map(move |&wait| Step { wait, act })
        });
        steps.collect()
    }

    fn perform(&self, state: &mut State<W>, Step { wait, act }: Self::Step) -> Result<(), String> {
        let State { device, elsewhere, contract } = state;
        contract.pass_until(contract.now() + wait.nanos);
        let now = contract.now();
        let next = contract.next();
        let outcome = self.act(device, act, now);
        let expected = contract.perform(act);
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
        let outcome_elsewhere = self.act(elsewhere, act, now + ELSEWHERE);
        unchanged("what the step returns on a restored device", &outcome, &outcome_elsewhere)?;
        device.inspect_restored(&self.fresh(contract), now, elsewhere)
    }

    fn inspect(&self, State { device, contract, .. }: &State<W>) -> Result<(), String> {
        device.inspect_polls(contract.now())?;
        device.inspect_restored_on_a_young_clock(&self.fresh(contract), contract.now())?;
        self.inspect_device(device, contract)
    }

    fn key(&self, State { device, contract, .. }: &State<W>) -> Self::Key {
        let saved = self.effective(device.saved(contract.now()), contract);
        (saved, contract.relative(), device.seam.clone())
    }
}

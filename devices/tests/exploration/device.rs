//! A device under test, the clock that it is told, and the rules that hold for every model.

use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::time::Duration;

use vm_watchdog_devices::{Expired, Model, VmInstant};

/// When the exploration begins. Not zero, so that a model that confuses an instant with a duration fails.
pub const BEGIN: u64 = 7_000_000_123;
/// How much more the clock of another process shows, which has restored a saved state.
pub const ELSEWHERE: u64 = 1_000_000_000_000_007;

pub fn at(nanos: u64) -> VmInstant {
    VmInstant::from_nanos(nanos)
}

/// The seam between exploration and model, where a test breaks the model. Each method passes the call on.
pub trait Seam<M: Model>: Clone + Debug + Default + PartialEq + Eq + Hash {
    fn poll_at(&self, model: &M) -> Option<VmInstant> {
        model.poll_at()
    }

    fn poll(&mut self, model: &mut M, now: VmInstant) -> Expired {
        model.poll(now)
    }

    fn reset(&self, model: &mut M) {
        model.reset();
    }

    fn save(&self, model: &mut M, now: VmInstant) -> M::State {
        model.save(now)
    }
}

/// The model as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sound;

impl<M: Model> Seam<M> for Sound {}

/// A model behind a seam.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device<M, S> {
    pub model: M,
    pub seam: S,
}

impl<M: Model + Clone + Debug + PartialEq, S: Seam<M>> Device<M, S> {
    pub fn new(model: M) -> Self {
        Self { model, seam: S::default() }
    }

    /// Nanoseconds until the host must poll; not positive if it must poll now.
    pub fn poll_in(&self, now: u64) -> Option<i64> {
        self.seam.poll_at(&self.model).map(|instant| from(now, instant))
    }

    /// What has expired, in nanoseconds after `now`: pretimeout and timeout.
    pub fn poll(&mut self, now: u64) -> [Option<i64>; 2] {
        let Expired { pretimeout, timeout, .. } = self.seam.poll(&mut self.model, at(now));
        [pretimeout, timeout].map(|instant| instant.map(|instant| from(now, instant)))
    }

    pub fn reset(&mut self) {
        self.seam.reset(&mut self.model);
    }

    pub fn saved(&self, now: u64) -> M::State {
        self.seam.save(&mut self.model.clone(), at(now))
    }

    /// The device that a process makes of `fresh` and of what this one saves at `now`, with `there` on its clock.
    pub fn restored(&self, fresh: &M, now: u64, there: u64) -> Result<Self, String> {
        restore(fresh, &self.saved(now), there).map(Self::new)
    }

    /// A device that is saved and restored is the same. `elsewhere` was, before the last step, on another clock, and has
    /// performed the step there.
    pub fn inspect_restored(&self, fresh: &M, now: u64, elsewhere: &Self) -> Result<(), String> {
        let state = self.saved(now);
        unchanged("a device that is saved here, and restored", &self.model, &restore(fresh, &state, now)?)?;
        let step = "the step on a device that was saved before it, and restored on another clock";
        unchanged(step, &restore(fresh, &state, now + ELSEWHERE)?, &elsewhere.model)
    }

    /// A clock that has just begun has no instant for what has expired before: it is due at once.
    pub fn inspect_restored_on_a_young_clock(&self, fresh: &M, now: u64) -> Result<(), String> {
        let (mut old, mut young) = (self.clone(), self.restored(fresh, now, 0)?);
        let kinds = |expired: [Option<i64>; 2]| expired.map(|expired| expired.is_some());
        unchanged("what is due on a young clock", &kinds(old.poll(now)), &kinds(young.poll(0)))?;
        unchanged("the next poll on a young clock", &old.poll_in(now), &young.poll_in(0))
    }

    /// One expiry is one event, a poll leaves nothing to poll, and a paused VM, whose time stands still, does not time out.
    pub fn inspect_polls(&self, now: u64) -> Result<(), String> {
        let mut polled = self.clone();
        polled.poll(now);
        if let Some(wait) = polled.poll_in(now).filter(|&wait| wait <= 0) {
            return Err(format!("after a poll, the next one is due {}", in_words(Some(wait))));
        }
        let mut paused = polled.clone();
        for instant in [now, now, now - 1, 0] {
            if paused.poll(instant) != [None, None] {
                return Err("an expiry is reported twice".into());
            }
        }
        unchanged("polls while the VM is paused", &polled, &paused)?;
        polled.inspect_next_effect(now)
    }

    /// Before the next effect nothing shows outside a device that is polled: no timeout, no interrupt.
    fn inspect_next_effect(&self, now: u64) -> Result<(), String> {
        let [poll, effect] = [self.poll_in(now), self.model.next_effect_at().map(|instant| from(now, instant))];
        if effect.is_none_or(|effect| poll.is_none_or(|poll| effect < poll)) && effect != poll {
            return Err(format!("the next effect is {}, the next poll {}", in_words(effect), in_words(poll)));
        }
        let Some(wait) = effect.filter(|&wait| 0 < wait && wait < NEVER) else {
            return Ok(());
        };
        let mut later = self.clone();
        let [_, timeout] = later.poll(now + wait.unsigned_abs() - 1);
        if timeout.is_some() {
            return Err("a poll 1 ns before the next effect reports a timeout".into());
        }
        let interrupt = |device: &Self| (device.model.interrupt_level(), device.model.message());
        unchanged("the interrupt, before the next effect", &interrupt(self), &interrupt(&later))
    }
}

fn restore<M: Model>(fresh: &M, state: &M::State, now: u64) -> Result<M, String> {
    fresh.restored(state, at(now)).map_err(|error| format!("the saved state is refused: {error}"))
}

/// In place of nanoseconds: so far away that it is never reached.
pub const NEVER: i64 = i64::MAX;

/// Nanoseconds from `now` to `instant`.
pub fn from(now: u64, instant: VmInstant) -> i64 {
    let nanos = i128::from(instant.as_nanos()) - i128::from(now);
    nanos.clamp(i64::MIN.into(), NEVER.into()) as i64
}

/// Compares what a poll reports to what is due, for pretimeout and timeout in nanoseconds after now. `next` is when
/// each of them is due next, according to the contract.
pub fn compare_expired(seen: [Option<i64>; 2], due: [Option<i64>; 2], next: [Option<i64>; 2]) -> Result<(), String> {
    for (stage, name) in ["pretimeout", "timeout"].into_iter().enumerate() {
        return Err(match (seen[stage], due[stage], next[stage]) {
            (seen, due, _) if seen == due => continue,
            (None, due, _) => format!("the {name} is not reported, which was due {}", in_words(due)),
            (Some(_), None, Some(next)) => format!("the {name} is reported {next} ns before it is due"),
            (Some(_), None, None) => format!("a {name} is reported that is not due"),
            (seen, due, _) => format!("the {name} is reported for {}, and was due {}", in_words(seen), in_words(due)),
        });
    }
    Ok(())
}

/// An error if `after` is not what `before` was. It names the first field that has changed.
pub fn unchanged<T: PartialEq + Debug>(what: &str, before: &T, after: &T) -> Result<(), String> {
    if before == after {
        return Ok(());
    }
    let [before, after] = [format!("{before:#?}"), format!("{after:#?}")];
    let depth = |line: &str| (line.len() - line.trim_start().len()) / 4;
    let mut path: Vec<&str> = Vec::new();
    for (before, after) in before.lines().zip(after.lines()) {
        path.truncate(depth(before));
        let [(field, before), (_, after)] = [before, after].map(|line| {
            let line = line.trim().trim_end_matches(',');
            line.split_once(": ").unwrap_or(("", line))
        });
        path.push(field);
        if before != after {
            path.retain(|field| !field.is_empty());
            return Err(format!("{what}: {} {before} becomes {after}", path.join(".")));
        }
    }
    Err(format!("{what} changes"))
}

/// What differs from the contract, in words. Both lists have the same names.
pub fn differences(seen: &[(&str, String)], contract: &[(&str, String)]) -> String {
    let differences = seen.iter().zip(contract).filter(|(seen, right)| seen != right);
    let words = differences.map(|((name, seen), (_, right))| format!("{name} is {seen}, and should be {right}"));
    words.collect::<Vec<_>>().join("; ")
}

/// An instant that is so many nanoseconds away, in words.
pub fn in_words(nanos: Option<i64>) -> String {
    match nanos {
        None => "not due".into(),
        Some(NEVER) => "never".into(),
        Some(nanos @ ..0) => format!("{:?} ago", Duration::from_nanos(nanos.unsigned_abs())),
        Some(nanos) => format!("in {:?}", Duration::from_nanos(nanos.unsigned_abs())),
    }
}

/// How long the guest and the host do nothing before a step.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub nanos: u64,
    until: Until,
    /// What the device waits for.
    end: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Until {
    Now,
    OneUnit,
    JustBefore,
    End,
    OneUnitAfter,
    LongAfter,
}

/// What the contract says about the next end of a stage.
pub struct Ahead {
    /// Its name.
    pub end: &'static str,
    /// Nanoseconds until then.
    pub nanos: u64,
    pub unit: u64,
    /// Time after the end in which a host that is very late polls.
    pub long: Option<u64>,
}

impl Wait {
    const NONE: Self = Self { nanos: 0, until: Until::Now, end: "" };

    /// The waits that lead to different states. `unpolled` is for how long the host has not polled what is due.
    ///
    /// The host is late once, not ever later: otherwise there is no end of states.
    pub fn all(unpolled: Option<u64>, ahead: Option<Ahead>) -> Vec<Self> {
        let mut waits = vec![Self::NONE];
        if unpolled.is_some_and(|age| age > 0) {
            return waits;
        }
        if let Some(Ahead { end, nanos, unit, long }) = ahead {
            let unit_is_short = nanos <= 3 * unit;
            let candidates = [
                (Some(nanos - 1), Until::JustBefore),
                (Some(nanos), Until::End),
                (Some(unit).filter(|_| unit_is_short), Until::OneUnit),
                (Some(nanos + unit), Until::OneUnitAfter),
                (long.map(|long| nanos + long), Until::LongAfter),
            ];
            for (nanos, until) in candidates {
                let nanos = nanos.filter(|nanos| waits.iter().all(|wait| wait.nanos != *nanos));
                waits.extend(nanos.map(|nanos| Self { nanos, until, end }));
            }
        } else if unpolled.is_some() {
            waits.push(Self { nanos: 960, until: Until::OneUnit, end: "" });
        }
        waits
    }
}

impl Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nanos, until, end } = *self;
        let after = Duration::from_nanos(nanos);
        match until {
            Until::Now => Ok(()),
            Until::OneUnit => write!(f, "{after:?} later "),
            Until::JustBefore => write!(f, "{after:?} later, 1 ns before {end}, "),
            Until::End => write!(f, "{after:?} later, at {end}, "),
            Until::OneUnitAfter | Until::LongAfter => write!(f, "{after:?} later, after {end}, "),
        }
    }
}

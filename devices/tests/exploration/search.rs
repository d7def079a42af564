//! Breadth-first search through every state that a device can reach.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Display};
use std::hash::Hash;

/// An alphabet that leads to more states does not close, or is too large for a test.
const MOST_STATES: usize = 4_000_000;

/// What is explored: a device, the contract beside it, and an alphabet of steps.
pub trait World {
    type State: Clone;
    /// Two states with one key are the same state: it holds everything but the reading of the clock.
    type Key: Eq + Hash;
    /// Prints what the guest or the host does.
    type Step: Copy + Display;

    fn start(&self) -> Self::State;

    /// The steps that are possible in this state.
    fn steps(&self, state: &Self::State) -> Vec<Self::Step>;

    /// Performs a step. The error says which rule the device violates.
    fn perform(&self, state: &mut Self::State, step: Self::Step) -> Result<(), String>;

    /// Checks what holds in every state, once for each.
    fn inspect(&self, state: &Self::State) -> Result<(), String>;

    fn key(&self, state: &Self::State) -> Self::Key;
}

/// The size of a world that was explored to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    /// Steps on the shortest way to the farthest state.
    pub depth: usize,
}

impl Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, transitions, depth } = self;
        write!(f, "{states} states, {transitions} transitions, depth {depth}")
    }
}

/// A shortest sequence of steps to a violation.
#[derive(Debug, PartialEq, Eq)]
pub struct CounterExample {
    pub steps: Vec<String>,
    pub violation: String,
    /// Transitions that were explored until then.
    pub transitions: usize,
}

impl Display for CounterExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "  {number}. {step}")?;
        }
        write!(f, "  => {}", self.violation)
    }
}

/// Explores `world` until no step leads to a new state.
pub fn explore<W: World>(world: &W) -> Result<Explored, CounterExample> {
    let start = world.start();
    let mut known = HashSet::from([world.key(&start)]);
    // For each state but the first: the state that it was reached from, and the step.
    let mut origins: Vec<(usize, W::Step)> = Vec::new();
    let mut queue = VecDeque::from([(0, 0, start)]);
    let mut explored = Explored { states: 1, ..Explored::default() };
    while let Some((index, depth, state)) = queue.pop_front() {
        explored.depth = depth;
        let counter_example = |last: Option<W::Step>, violation, transitions| {
            let mut steps: Vec<String> = last.iter().map(W::Step::to_string).collect();
            let mut index: usize = index;
            while let Some(&(from, step)) = index.checked_sub(1).map(|origin| &origins[origin]) {
                steps.push(step.to_string());
                index = from;
            }
            steps.reverse();
            CounterExample { steps, violation, transitions }
        };
        world.inspect(&state).map_err(|violation| counter_example(None, violation, explored.transitions))?;
        let mut found = Vec::new();
        for step in world.steps(&state) {
            explored.transitions += 1;
            let mut next = state.clone();
            let outcome = world.perform(&mut next, step);
            outcome.map_err(|violation| counter_example(Some(step), violation, explored.transitions))?;
            if known.insert(world.key(&next)) {
                found.push((step, next));
            }
        }
        for (step, next) in found {
            origins.push((index, step));
            queue.push_back((origins.len(), depth + 1, next));
        }
        explored.states = known.len();
        assert!(explored.states <= MOST_STATES, "the alphabet does not close");
    }
    Ok(explored)
}

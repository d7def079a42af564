//! How often the random operations reach a state that is hard to reach.

use crate::book::{Book, Stage, Unlock};

/// A state after an operation, or an event.
#[derive(Clone, Copy, Debug)]
pub enum Situation {
    Armed,
    StageTwo,
    Stopped,
    FreeRunning,
    Locked,
    OutputDisabled,
    Megahertz,
    InterruptDisabled,
    InterruptPending,
    Unlocked,
    BarMoved,
    BarNowhere,
    Sizing,
    Reload,
    Timeout,
    TimeoutWithoutOutput,
}

const NAMES: [&str; 16] = [
    "armed",
    "in stage 2",
    "armed with a stopped counter",
    "armed and free running",
    "armed and locked",
    "armed with the output disabled",
    "armed at 1 MHz",
    "armed with another interrupt type than IRQ",
    "WDT_INT_ACT set",
    "unlocked",
    "BAR0 moved",
    "BAR0 nowhere",
    "BAR0 sized while mapped",
    "reloads",
    "timeouts",
    "timeouts without output",
];

#[derive(Clone, Debug, Default)]
pub struct Situations([u64; NAMES.len()]);

impl Situations {
    pub fn note(&mut self, situation: Situation, holds: bool) {
        self.0[situation as usize] += u64::from(holds);
    }

    /// Notes the states after an operation.
    pub fn observe(&mut self, book: &Book, configuration: u32, lock: u32) {
        let is_armed = lock & 0x02 != 0;
        self.note(Situation::Armed, is_armed);
        self.note(Situation::StageTwo, book.stage == Some(Stage::Two));
        self.note(Situation::Stopped, is_armed && book.stage.is_none());
        self.note(Situation::FreeRunning, is_armed && lock & 0x04 != 0);
        self.note(Situation::Locked, is_armed && lock & 0x01 != 0);
        self.note(Situation::OutputDisabled, is_armed && configuration & 0x20 != 0);
        self.note(Situation::Megahertz, is_armed && configuration & 0x04 != 0);
        self.note(Situation::InterruptDisabled, is_armed && configuration & 0x03 != 0);
        self.note(Situation::InterruptPending, book.interrupt_active);
        self.note(Situation::Unlocked, book.unlock == Unlock::Unlocked);
        self.note(Situation::BarMoved, book.bar.is_some_and(|bar| bar != crate::operation::WINDOWS[0]));
        self.note(Situation::BarNowhere, book.bar.is_none());
        self.note(Situation::Sizing, book.is_sizing);
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// Each name with its count.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.into_iter().zip(self.0)
    }
}

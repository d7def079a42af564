//! Compares random sequences on QEMU's device and on the model, and makes a failing one short.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_watchdog_test_support::Unavailable;

use crate::comparison::Comparison;
use crate::generator::sequence;
use crate::machine::{Machine, Mismatch};
use crate::operation::Operation;
use crate::rules::Rules;
use crate::shrink::shrink;
use crate::situations::Situations;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub operations: u64,
    /// QEMUs that run side by side. The sequences of each depend on this number.
    pub machines: u64,
    pub rules: Rules,
}

impl Plan {
    /// Runs until there is a difference, or enough.
    pub fn run(&self) -> Result<(Tally, Option<Failure>), Unavailable> {
        let stop = AtomicBool::new(false);
        let results = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.machines)
                .map(|first| {
                    let (mut tally, stop) = (Tally::new(self.rules.clone()), &stop);
                    scope.spawn(move || tally.run(self, first, stop).map(|failure| (tally, failure)))
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect::<Vec<_>>()
        });
        let mut sum = Tally::new(self.rules.clone());
        let mut first_failure = None;
        for result in results {
            let (tally, failure) = result?;
            sum.add(&tally);
            first_failure = first_failure.or(failure);
        }
        Ok((sum, first_failure))
    }
}

/// What a run has done.
pub struct Tally {
    pub sequences: u64,
    pub operations: u64,
    /// qtest commands.
    pub commands: u64,
    pub rules: Rules,
    pub situations: Situations,
}

/// A sequence with different results.
#[derive(Debug)]
pub struct Failure {
    /// The number of the sequence.
    pub number: u64,
    /// Its length.
    pub length: usize,
    /// Operations up to the difference, of this sequence and of those before it on the same QEMU.
    pub operations_before: u64,
    /// The operations that are needed.
    pub operations: Vec<Operation>,
    pub mismatch: Mismatch,
}

impl Tally {
    fn new(rules: Rules) -> Self {
        Self { sequences: 0, operations: 0, commands: 0, rules, situations: Situations::default() }
    }

    /// Compares the results of a sequence. Returns the first difference.
    fn compare(&mut self, machine: &mut Machine, operations: &[Operation]) -> Option<Mismatch> {
        let mut comparison = Comparison::new(self.rules.cleared());
        let failed_here = operations.iter().find_map(|&operation| comparison.perform(operation).err());
        let Comparison { rules, situations, there, .. } = comparison;
        self.sequences += 1;
        self.operations += operations.len() as u64;
        self.commands += there.script.len() as u64;
        self.rules.add(&rules);
        self.situations.add(&situations);
        // QEMU has executed the operations only up to the one that failed here.
        machine.execute(there.script).or(failed_here)
    }

    /// Compares sequence after sequence. Returns the first difference.
    fn run(&mut self, plan: &Plan, first: u64, stop: &AtomicBool) -> Result<Option<Failure>, Unavailable> {
        let mut machine = Machine::start()?;
        let mut number = first;
        while self.operations < plan.operations / plan.machines && !stop.load(Ordering::Relaxed) {
            let operations = sequence(plan.seed.wrapping_add(number));
            let before = self.operations;
            if let Some(mismatch) = self.compare(&mut machine, &operations) {
                stop.store(true, Ordering::Relaxed);
                let operations_before = before + mismatch.operation as u64;
                let length = operations.len();
                let (operations, mismatch) = shortest(&mut machine, &self.rules, &operations, mismatch);
                return Ok(Some(Failure { number, length, operations_before, operations, mismatch }));
            }
            number += plan.machines;
        }
        Ok(None)
    }

    fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.operations += other.operations;
        self.commands += other.commands;
        self.rules.add(&other.rules);
        self.situations.add(&other.situations);
    }
}

fn shortest(
    machine: &mut Machine,
    rules: &Rules,
    operations: &[Operation],
    mut mismatch: Mismatch,
) -> (Vec<Operation>, Mismatch) {
    let end = mismatch.operation.min(operations.len());
    let short = shrink(&operations[..end], |operations| {
        let difference = Tally::new(rules.cleared()).compare(machine, operations);
        difference.map(|difference| mismatch = difference).is_some()
    });
    (short, mismatch)
}

impl Failure {
    /// The sequence in a guest's words, and the difference.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for (number, operation) in (1..).zip(&self.operations) {
            writeln!(text, "{number:>3}. {operation}").expect("a string grows");
        }
        text + &format!("after operation {}: {}", self.mismatch.operation, self.mismatch.what)
    }
}

//! Makes a failing sequence short.

use crate::operation::{Operation, Wait};

/// The shortest sequence that this finds for which `fails` holds, as it does for `operations`.
///
/// It removes operations, many at a time at first, and then makes the values small, which can make more of them
/// superfluous.
pub fn shrink(operations: &[Operation], mut fails: impl FnMut(&[Operation]) -> bool) -> Vec<Operation> {
    let mut shortest = operations.to_vec();
    loop {
        let before = shortest.clone();
        remove(&mut shortest, &mut fails);
        simplify(&mut shortest, &mut fails);
        if shortest == before {
            return shortest;
        }
    }
}

fn remove(operations: &mut Vec<Operation>, fails: &mut impl FnMut(&[Operation]) -> bool) {
    /// Operations that belong together, such as the two keys and the write after them.
    const GROUP: usize = 4;
    let mut length = operations.len();
    while length > 0 {
        let mut end = operations.len();
        while end >= length {
            let without = [&operations[..end - length], &operations[end..]].concat();
            end -= if length <= GROUP { 1 } else { length };
            if fails(&without) {
                *operations = without;
                end = end.min(operations.len());
            }
        }
        length = if length <= GROUP { length - 1 } else { length / 2 };
    }
}

fn simplify(operations: &mut [Operation], fails: &mut impl FnMut(&[Operation]) -> bool) {
    for index in 0..operations.len() {
        while let Some(simpler) =
            simpler(operations[index]).find(|&operation| fails(&replaced(operations, index, operation)))
        {
            operations[index] = simpler;
        }
    }
}

fn replaced(operations: &[Operation], index: usize, operation: Operation) -> Vec<Operation> {
    let mut changed = operations.to_vec();
    changed[index] = operation;
    changed
}

/// Simpler operations than this one, the simplest first.
fn simpler(operation: Operation) -> impl Iterator<Item = Operation> {
    let candidates = match operation {
        Operation::Write(at, value) => [0, 1, 2, value & value.wrapping_sub(1), value / 2]
            .into_iter()
            .filter(|&simpler| simpler < value)
            .map(|value| Operation::Write(at, value))
            .collect(),
        Operation::Wait(Wait::Nanos(nanos)) => [1, nanos / 1000, nanos / 2]
            .into_iter()
            .filter(|&simpler| 0 < simpler && simpler < nanos)
            .map(|nanos| Operation::Wait(Wait::Nanos(nanos)))
            .collect(),
        _ => Vec::new(),
    };
    candidates.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::sequence;
    use crate::operation::{bar, config};

    #[test]
    fn only_the_operations_that_are_needed_remain() {
        let lock = |operation: &Operation| matches!(operation, Operation::Write(at, value) if *at == config(0x68, 1) && *value >= 2);
        let later = |operation: &Operation| matches!(operation, Operation::Wait(Wait::Nanos(nanos)) if *nanos > 100);
        let fails = |operations: &[Operation]| {
            let armed = operations.iter().position(lock);
            armed.is_some_and(|armed| operations[armed..].iter().any(later))
        };
        let long = sequence(1);
        assert!(fails(&long));
        let short = shrink(&long, fails);
        assert!(matches!(short[..], [Operation::Write(_, 2), Operation::Wait(Wait::Nanos(100..=200))]), "{short:?}");
    }

    #[test]
    fn a_pair_is_removed_once_the_operation_that_needed_it_is_gone() {
        let [keys, preload] = [Operation::Write(bar(0x0C, 2), 0x80), Operation::Write(bar(0x00, 4), 0)];
        let fails = |operations: &[Operation]| {
            let count = |wanted| operations.iter().filter(|&&operation| operation == wanted).count();
            count(keys) >= count(preload) && operations.contains(&Operation::Reset)
        };
        let long = [preload, keys, Operation::Reset, keys, preload];
        assert_eq!(shrink(&long, fails), [Operation::Reset]);
    }
}

//! Random operations: a million, or as many as the environment asks for.

use std::env;
use std::io::{self, Write as _};
use std::time::Instant;

use vm_watchdog_test_support::skip;

use crate::rules::{Rules, TABLE};
use crate::run::Plan;

const OPERATIONS: u64 = 1_000_000;
const SEED: u64 = 0x6300_E5B0_25AB_8086;

/// Most operations until there is a difference that a removed rule covers.
const ENOUGH_WITHOUT_A_RULE: u64 = 100_000;

#[test]
fn random_operations_differ_only_by_the_rules() {
    let operations = from_environment("VM_WATCHDOG_ORACLE_OPERATIONS", OPERATIONS);
    let seed = from_environment("VM_WATCHDOG_ORACLE_SEED", SEED);
    let started = Instant::now();
    let plan = Plan { seed, operations, machines: 2, rules: Rules::all() };
    let (tally, failure) = match plan.run() {
        Ok(result) => result,
        Err(why) => return skip::loudly("random_operations_differ_only_by_the_rules", &why),
    };
    let seconds = started.elapsed().as_secs_f32();
    if let Some(failure) = failure {
        panic!(
            "after {} operations and {seconds:.1} s: sequence {} of seed {seed:#x}, {} operations, of which are needed:\n{}",
            failure.operations_before,
            failure.number,
            failure.length,
            failure.report()
        );
    }
    say(&format!(
        "{} random operations in {} sequences of seed {seed:#x}, {} qtest commands, {seconds:.1} s\n",
        tally.operations, tally.sequences, tally.commands
    ));
    let situations: Vec<_> = tally.situations.counts().map(|(name, count)| format!("{name} {count}")).collect();
    say(&format!("after an operation: {}\n{}", situations.join(", "), tally.rules.report()));
    for (name, count) in tally.situations.counts() {
        assert!(count >= tally.operations / 1000, "the sequences rarely reach this: {name}, {count}");
    }
    for row in &TABLE {
        assert!(tally.rules.applied(row.rule) > 0, "not applied: {}", row.name);
    }
}

#[test]
fn each_rule_is_needed() {
    for row in &TABLE {
        let rules = Rules::without(row.rule);
        let plan = Plan { seed: SEED, operations: ENOUGH_WITHOUT_A_RULE, machines: 1, rules };
        let failure = match plan.run() {
            Ok((_, failure)) => failure.unwrap_or_else(|| panic!("there is no difference without {}", row.name)),
            Err(why) => return skip::loudly("each_rule_is_needed", &why),
        };
        println!("without \"{}\", after {} operations:\n{}", row.name, failure.operations_before, failure.report());
        assert!(failure.operations.len() <= 20, "{}: not short", row.name);
    }
}

/// Writes to standard error itself, because the harness captures what passing tests print.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn from_environment(name: &str, default: u64) -> u64 {
    let Ok(text) = env::var(name) else { return default };
    let parsed = match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{name}={text:?}: {error}; a number is accepted, such as 10000000"))
}

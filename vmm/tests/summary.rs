//! Not a test: the summary of a run. Lists every test that was skipped and why.

use vm_watchdog_test_support::skip;

fn main() {
    let skipped = skip::recorded();
    println!("\nskipped tests in this run: {}", skipped.len());
    skipped.iter().for_each(|line| println!("    {line}"));
    println!();
}

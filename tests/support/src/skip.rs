//! What becomes of a test whose pieces cannot be had on this machine.

use std::env;
use std::io::{self, Write};

use crate::Unavailable;

/// Set to 1 (CI does), a test that would be skipped fails instead.
pub const REQUIRE_VARIABLE: &str = "VM_WATCHDOG_REQUIRE_GUESTS";

/// Whether a skip is a failure here.
pub fn is_failure() -> bool {
    env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1")
}

/// Skips a test of the standard harness: the caller returns afterwards. The line reaches the terminal although the
/// harness hides what passing tests print.
///
/// # Panics
///
/// If a skip [is a failure](is_failure) here.
pub fn loudly(test: &str, why: &Unavailable) {
    assert!(!is_failure(), "{test} must not be skipped ({REQUIRE_VARIABLE}=1), but: {why}");
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
}

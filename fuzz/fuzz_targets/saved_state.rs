//! Restores arbitrary bytes as a saved state: the watchdog refuses it unchanged, or runs on without a panic.
//!
//! From the top of the repository:
//!
//! ```text
//! mkdir -p fuzz/corpus/saved_state
//! cargo +nightly fuzz run saved_state fuzz/corpus/saved_state fuzz/seeds/saved_state -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vm_watchdog::i6300esb::{I6300esb, I6300esbStateV1};
use vm_watchdog::{Event, HandlerError, VmClock, Watchdog, WatchdogState};

fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = serde_json::from_slice::<WatchdogState<I6300esbStateV1>>(bytes) else {
        return;
    };
    let (clock, time) = VmClock::manual();
    time.advance(Duration::from_secs(1_000_000));
    let failing = |event: &Event| if event.attempt < 3 { Err(HandlerError::from("not yet")) } else { Ok(()) };
    let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).clock(clock).build(failing).unwrap();
    let before = watchdog.save();
    if let Err(error) = watchdog.restore(&state) {
        assert!(!error.field.is_empty());
        assert_eq!(watchdog.save(), before);
        return;
    }
    for step in [0, 1, 999_999, 1_000_000_000, 3_600_000_000_000, u64::MAX / 4] {
        time.advance(Duration::from_nanos(step));
        watchdog.on_readable();
        watchdog.read_bar(0, &mut [0; 16]);
        watchdog.write_bar(0x0C, &[0x86, 0, 0, 0]);
        watchdog.write_bar(0x0C, &[0, 1, 0, 0]);
        // A restored watchdog can be saved and restored again.
        let state = watchdog.save();
        watchdog.restore(&state).unwrap();
    }
});

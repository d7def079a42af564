//! Restores arbitrary bytes as a saved state, of each model: the watchdog refuses it unchanged, or runs on without a panic.
//!
//! From the top of the repository:
//!
//! ```text
//! mkdir -p fuzz/corpus/saved_state
//! cargo +nightly fuzz run saved_state fuzz/corpus/saved_state fuzz/seeds/saved_state -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::num::NonZeroU32;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vm_watchdog::diag288::Diag288;
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::sbsa::{Frame, Sbsa, SbsaConfig};
use vm_watchdog::wdat::{Wdat, WdatConfig};
use vm_watchdog::{AnyWatchdog, AnyWatchdogState, Event, HandlerError, ManualClock, Model, VmClock, Watchdog};

/// Writes a heartbeat, as the guest of this model does.
type Feed<M> = fn(&Watchdog<M>);

fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = serde_json::from_slice::<AnyWatchdogState>(bytes) else {
        return;
    };
    match &state {
        AnyWatchdogState::Diag288(_) => check(Diag288::new(), &state, |_| ()),
        AnyWatchdogState::Wdat(_) => check(Wdat::new(WdatConfig::default()), &state, |watchdog| {
            watchdog.write(4, &[1, 0, 0, 0]);
        }),
        AnyWatchdogState::Sbsa(_) => {
            let config = SbsaConfig::new(NonZeroU32::new(62_500_000).expect("not zero"));
            check(Sbsa::new(config), &state, |watchdog| {
                watchdog.write(Frame::Refresh, 0, &[0; 4]);
            });
        }
        _ => {
            let feed: Feed<I6300esb> = |watchdog| {
                watchdog.read_bar(0, &mut [0; 16]);
                watchdog.write_bar(0x0C, &[0x86, 0, 0, 0]);
                watchdog.write_bar(0x0C, &[0, 1, 0, 0]);
            };
            let config = I6300esbConfig::default();
            check(I6300esb::new(config), &state, feed);
            check(I6300esb::new(config.with_interrupt_pin(InterruptPin::IntA).with_msi()), &state, feed);
        }
    }
});

fn check<M: Model + Send + 'static>(device: M, state: &AnyWatchdogState, feed: Feed<M>)
where
    Watchdog<M>: Into<AnyWatchdog>,
{
    let (clock, time): (_, ManualClock) = VmClock::manual();
    time.advance(Duration::from_secs(1_000_000));
    let failing = |event: &Event| if event.attempt < 3 { Err(HandlerError::from("not yet")) } else { Ok(()) };
    let watchdog = Watchdog::builder("wd", device).clock(clock).build(failing).expect("a timer");
    let any: AnyWatchdog = watchdog.clone().into();
    let json = |any: &AnyWatchdog| serde_json::to_string(&any.save()).expect("JSON");
    let before = json(&any);
    if let Err(error) = any.restore(state) {
        assert!(!error.field.is_empty());
        assert_eq!(json(&any), before);
        return;
    }
    for step in [0, 1, 999_999, 1_000_000_000, 3_600_000_000_000, u64::MAX / 4] {
        time.advance(Duration::from_nanos(step));
        any.on_readable();
        feed(&watchdog);
        // A restored watchdog can be saved and restored again, as it was.
        let state = any.save();
        any.restore(&state).expect("its own state");
        assert_eq!(serde_json::to_string(&state).expect("JSON"), json(&any));
    }
}

//! An armed watchdog that is fed wakes the host once a timeout, and a disarmed one never.
//!
//! In real time, but whatever the machine does: the more time a wait takes, the more wakes it may have.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Driver, UNIT, device};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::wdat::Wdat;
use vm_watchdog::{Event, Watchdog};

const UNITS: u32 = 100;
const WATCHED: Duration = Duration::from_secs(2);
const FEEDS_EVERY: Duration = Duration::from_millis(5);

/// How often the host was woken while the guest fed the watchdog all the time, and how many timeouts that took.
fn while_fed(timeout: Duration, wakes: impl Fn() -> u64, feed: impl Fn()) -> (u64, u64) {
    let (before, started) = (wakes(), Instant::now());
    while started.elapsed() < WATCHED {
        feed();
        sleep(FEEDS_EVERY);
    }
    let timeouts = started.elapsed().as_nanos() / timeout.as_nanos();
    (wakes() - before, u64::try_from(timeouts).unwrap())
}

#[test]
fn a_watchdog_that_is_fed_wakes_the_host_once_a_timeout_and_not_at_all_once_it_is_disarmed() {
    // Two stages, of which the first ends without an interrupt and without an action.
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(|_: &Event| Ok(())).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(UNITS);
    let (wakes, timeouts) = while_fed(UNITS * UNIT * 2, || watchdog.stats().wakes, || watchdog.ping());
    // The first wake is that of the arming, and one may be on its way at either end.
    assert!(wakes <= timeouts + 3, "{wakes} wakes in {timeouts} timeouts");
    assert!(wakes + 3 >= timeouts / 2, "{wakes} wakes in {timeouts} timeouts: it is watched");

    watchdog.write_config(0x68, &[0x00]);
    let before = watchdog.stats().wakes;
    sleep(UNITS * UNIT * 4);
    let wakes = watchdog.stats().wakes - before;
    assert!(wakes <= 1, "{wakes} wakes after it was disarmed: the timer that was armed, and no other");
}

#[test]
fn a_watchdog_with_one_stage_wakes_the_host_once_a_timeout() {
    let watchdog = Watchdog::builder("wd", Wdat::default()).build(|_: &Event| Ok(())).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.write(0x0, &UNITS.to_le_bytes());
    watchdog.write(0x8, &1_u32.to_le_bytes());
    let feed = || watchdog.write(0x4, &1_u32.to_le_bytes());
    let (wakes, timeouts) = while_fed(Duration::from_millis(UNITS.into()), || watchdog.stats().wakes, feed);
    assert!(wakes <= timeouts + 3, "{wakes} wakes in {timeouts} timeouts");
}

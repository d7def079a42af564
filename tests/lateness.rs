//! Expiries of mixed length in real time beside busy loops: none is early. With `--nocapture` it prints how late they are,
//! and how late a bare timerfd is in the same run.
//!
//! `VM_WATCHDOG_EXPIRIES` and `VM_WATCHDOG_BUSY_LOOPS` change how many there are.

mod common;

use std::env;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use common::{Driver, UNIT, device};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Event, HandlerError, Watchdog};

/// How many guests run at the same time.
const GUESTS: u64 = 64;
/// The limit of a wait, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The duration of a preload unit with the 1 MHz prescaler: 30 ns << 5.
const SHORT_UNIT: Duration = Duration::from_nanos(960);

/// How late each expiry was.
#[derive(Default)]
struct Lateness {
    watchdog: Vec<Duration>,
    timerfd: Vec<Duration>,
}

#[test]
fn no_expiry_is_early_on_a_busy_machine() {
    let expiries = number("VM_WATCHDOG_EXPIRIES", 5_000);
    let busy_loops = number("VM_WATCHDOG_BUSY_LOOPS", 8);
    let is_over = AtomicBool::new(false);
    let mut lateness = Lateness::default();
    thread::scope(|scope| {
        for _ in 0..busy_loops {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        let share = expiries.div_ceil(GUESTS);
        let guests: Vec<_> = (0..GUESTS).map(|guest| scope.spawn(move || expire(guest, share))).collect();
        let results: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        // Before a panic of a guest is passed on, because the scope waits for the busy loops.
        is_over.store(true, Ordering::Relaxed);
        for result in results {
            let Lateness { watchdog, timerfd } = result.expect("the guest's thread");
            lateness.watchdog.extend(watchdog);
            lateness.timerfd.extend(timerfd);
        }
    });
    println!("{} expiries of 2 to 200 ms beside {busy_loops} busy loops, none early", lateness.watchdog.len());
    print("watchdog", &mut lateness.watchdog);
    print("timerfd", &mut lateness.timerfd);
}

fn number(variable: &str, default: u64) -> u64 {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: accepted is a number"));
    env::var(variable).map_or(default, parse)
}

/// Lets a watchdog expire so often, and a timerfd after each time for as long.
fn expire(guest: u64, times: u64) -> Lateness {
    let (sender, expired) = channel();
    let handler = move |event: &Event| -> Result<(), HandlerError> {
        let now = Instant::now();
        Ok(sender.send((now, event.clone()))?)
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let has_short_units = guest % 2 == 1;
    let unit = if has_short_units { SHORT_UNIT } else { UNIT };
    if has_short_units {
        watchdog.write_config(0x60, &[0x04]);
    }
    watchdog.set_preloads(0xF_FFFF);
    watchdog.enable();

    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let mut random = guest;
    let mut lateness = Lateness::default();
    for _ in 0..times {
        // From 2 to 200 ms, as many of 2 to 20 as of 20 to 200.
        let length = Duration::from_micros((2_000.0 * 100f64.powf(fraction(&mut random))) as u64);
        let units = u32::try_from(length.as_nanos().div_ceil(2 * unit.as_nanos())).unwrap();
        watchdog.set_preloads(units);
        let started = Instant::now();
        watchdog.ping();
        let due = started + 2 * units * unit;
        let (now, event) = expired.recv_timeout(LIMIT).expect("a timeout");
        assert!(now >= due, "{units} units of {unit:?} expired after {:?}", now - started);
        assert!(event.observed >= event.deadline, "{event:?}");
        assert!(expired.try_recv().is_err(), "one expiry is one event");
        lateness.watchdog.push(now - due);

        let it_value = Timespec { tv_sec: 0, tv_nsec: (due - started).as_nanos().try_into().unwrap() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let started_timer = Instant::now();
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value }).unwrap();
        rustix::io::read(&timer, &mut [0; 8]).unwrap();
        lateness.timerfd.push(started_timer.elapsed().saturating_sub(due - started));
    }
    lateness
}

/// The next number from 0 to 1 (SplitMix64).
fn fraction(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
}

fn print(name: &str, lateness: &mut [Duration]) {
    lateness.sort_unstable();
    let at = |part: f64| lateness[((lateness.len() - 1) as f64 * part) as usize];
    let [half, most, nearly_all, all] = [0.5, 0.99, 0.999, 1.0].map(at);
    println!("{name:8} late by {half:?} in the median, p99 {most:?}, p99.9 {nearly_all:?}, at most {all:?}");
}

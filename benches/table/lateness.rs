//! How late expiries come, in turns with a bare timerfd in an epoll.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Event, HandlerError, Watchdog};
use vm_watchdog_benches::{ArmedTimer, epoll_of, monotonic_now};

use crate::measure::{quantile, time};

/// How many guests expire at the same time.
const GUESTS: u64 = 4;
const EXPIRIES_EACH: u64 = 250;
/// A unit of a preload with the 1 MHz prescaler: 30 ns << 5.
const UNIT: Duration = Duration::from_nanos(960);

#[derive(Default)]
struct Lateness {
    watchdog: Vec<f64>,
    timerfd: Vec<f64>,
}

pub fn measure() {
    println!("\n| Lateness of 1,000 expiries of 2 to 20 ms | p50 | p99 | at most | x the bare timerfd, p50 and p99 |");
    println!("|---|---|---|---|---|");
    for busy_loops in [0, 8] {
        let is_over = AtomicBool::new(false);
        let mut all = Lateness::default();
        thread::scope(|scope| {
            for _ in 0..busy_loops {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        spin_loop();
                    }
                });
            }
            let guests: Vec<_> = (0..GUESTS).map(|guest| scope.spawn(move || expire(guest))).collect();
            let guests: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            for Lateness { watchdog, timerfd } in guests.into_iter().map(|guest| guest.expect("a guest")) {
                all.watchdog.extend(watchdog);
                all.timerfd.extend(timerfd);
            }
        });
        let load = if busy_loops == 0 { "quiet".to_owned() } else { format!("beside {busy_loops} busy loops") };
        print(&format!("bare timerfd, {load}"), &all.timerfd, &all.timerfd);
        print(&format!("watchdog, {load}"), &all.watchdog, &all.timerfd);
    }
}

fn print(name: &str, values: &[f64], bare: &[f64]) {
    let [half, most, all] = [0.5, 0.99, 1.0].map(|part| quantile(values, part));
    let ratio = |part| quantile(values, part) / quantile(bare, part);
    let (ratio_of_half, ratio_of_most) = (ratio(0.5), ratio(0.99));
    println!("| {name} | {} | {} | {} | {ratio_of_half:.2}, {ratio_of_most:.2} |", time(half), time(most), time(all));
}

fn expire(guest: u64) -> Lateness {
    let (sender, expired) = channel();
    let of_watchdog = sender.clone();
    let handler = move |_: &Event| -> Result<(), HandlerError> { Ok(of_watchdog.send(monotonic_now())?) };
    let device = I6300esb::new(I6300esbConfig::default());
    let watchdog = Watchdog::builder("wd", device).build(handler).expect("a timer");
    let _thread = watchdog.spawn().expect("a thread");
    watchdog.write_config(0x60, &[0x04]);
    watchdog.write_config(0x68, &[0x02]);

    let timer = ArmedTimer::new().expect("a timer");
    let mut random = guest;
    let mut lateness = Lateness::default();
    thread::scope(|scope| {
        let timer = &timer;
        // The bare timer has a thread too, as the watchdog has.
        let (arm, armed) = channel::<Duration>();
        scope.spawn(move || {
            let events = epoll_of([rustix::fd::AsFd::as_fd(timer)]).expect("an epoll");
            while let Ok(at) = armed.recv() {
                timer.arm_at(at).expect("the timer");
                let mut ready = Vec::with_capacity(1);
                epoll::wait(&events, spare_capacity(&mut ready), None).expect("the epoll");
                sender.send(monotonic_now()).expect("the guest");
                timer.arm(Duration::ZERO).expect("the timer");
            }
        });
        for _ in 0..EXPIRIES_EACH {
            let length = Duration::from_secs_f64(0.002 * 10_f64.powf(fraction(&mut random)));
            let units = u32::try_from(length.as_nanos().div_ceil(2 * UNIT.as_nanos())).expect("a preload");
            for preload in [0x00, 0x04] {
                unlock(&watchdog);
                watchdog.write_bar(preload, &units.to_le_bytes());
            }
            unlock(&watchdog);
            let due = monotonic_now() + 2 * units * UNIT;
            watchdog.write_bar(0x0C, &[0x00, 0x01]);
            lateness.watchdog.push((expired.recv().expect("a timeout") - due).as_nanos() as f64);

            let due = monotonic_now() + 2 * units * UNIT;
            arm.send(due).expect("the timer's thread");
            lateness.timerfd.push((expired.recv().expect("a timeout") - due).as_nanos() as f64);
        }
        drop(arm);
    });
    lateness
}

fn unlock(watchdog: &Watchdog<I6300esb>) {
    watchdog.write_bar(0x0C, &[0x80, 0x00]);
    watchdog.write_bar(0x0C, &[0x86, 0x00]);
}

/// The next number from 0 to 1 (SplitMix64).
pub fn fraction(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
}

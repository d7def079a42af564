//! The host's cost of a heartbeat, and of the operations in it. Compare only figures of the same run.
//!
//! `cargo bench -p vm-watchdog-benches`

#![allow(missing_docs, reason = "criterion_group makes a public function")]

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Event, Watchdog};
use vm_watchdog_benches::{ArmedTimer, Wake};

fn heartbeat(criterion: &mut Criterion) {
    let device = I6300esb::new(I6300esbConfig::default());
    let watchdog = Watchdog::builder("wd", device).build(|_: &Event| Ok(())).expect("a timer");
    watchdog.write_config(0x68, &[0x02]);

    let mut group = criterion.benchmark_group("heartbeat");
    group.bench_function("linux driver, three writes", |bencher| {
        bencher.iter(|| {
            watchdog.write_bar(0x0C, black_box(&[0x80, 0x00]));
            watchdog.write_bar(0x0C, black_box(&[0x86, 0x00]));
            watchdog.write_bar(0x0C, black_box(&[0x00, 0x01]));
        });
    });
    group.bench_function("one write", |bencher| bencher.iter(|| watchdog.write_bar(0x0C, black_box(&[0x80, 0x00]))));
    group.finish();

    let mut group = criterion.benchmark_group("floor");
    group.bench_function("clock read", |bencher| bencher.iter(Instant::now));
    let mutex = Mutex::new(0_u64);
    group.bench_function("mutex", |bencher| bencher.iter(|| *black_box(&mutex).lock().unwrap() += 1));
    let wake = Wake::new().expect("an eventfd");
    group.bench_function("write to an eventfd, which arming does", |bencher| bencher.iter(|| wake.wake()));
    let timer = ArmedTimer::new().expect("a timer");
    group.bench_function("timerfd_settime, which a heartbeat does not do", |bencher| {
        bencher.iter(|| timer.arm(Duration::from_secs(1000)));
    });
    group.finish();
}

criterion_group!(benches, heartbeat);
criterion_main!(benches);

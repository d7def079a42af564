//! What a guest's access costs the host, through the public handle and of the model alone, and what a snapshot costs.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbConfig};
use vm_watchdog::{Event, VmClock, VmInstant, Watchdog};
use vm_watchdog_benches::{ArmedTimer, Floor, Wake, read_thread_times};

use crate::measure::{Row, in_turns, print};

/// The three writes of a reload, as Linux' driver makes them.
const RELOAD: [[u8; 2]; 3] = [[0x80, 0x00], [0x86, 0x00], [0x00, 0x01]];
const RELOAD_REGISTER: u64 = 0x0C;
/// An address that firmware assigns to BAR0.
const BAR0: u32 = 0xFEBF_0000;

/// A watchdog that the guest has armed, with a timeout of 34 minutes.
pub fn armed() -> Watchdog<I6300esb> {
    let watchdog = Watchdog::builder("wd", I6300esb::new(I6300esbConfig::default())).build(|_: &Event| Ok(()));
    let watchdog = watchdog.expect("a timer");
    watchdog.write_config(0x68, &[0x02]);
    watchdog.on_readable();
    watchdog
}

pub fn reload(watchdog: &Watchdog<I6300esb>) {
    for write in &RELOAD {
        watchdog.write_bar(RELOAD_REGISTER, black_box(write));
    }
}

/// A reload at a guest-physical address, of which a VMM finds the register as `boot` does.
fn reload_at(watchdog: &Watchdog<I6300esb>, bar0: Option<u32>, address: u64) {
    for write in &RELOAD {
        let offset = bar0.and_then(|bar0| address.checked_sub(bar0.into()));
        if let Some(offset) = offset.filter(|offset| offset + write.len() as u64 <= BAR0_SIZE.into()) {
            watchdog.write_bar(offset, black_box(write));
        }
    }
}

/// Reloads of four threads, of a watchdog each or of one.
fn on_four_threads(name: &str, watchdogs: [Watchdog<I6300esb>; 4]) -> Row {
    // Threads begin some microseconds after each other.
    const LEAST: u32 = 5_000;
    Row::timed(name, move |times| {
        let reloads = times.max(LEAST);
        let begin = Arc::new(Barrier::new(watchdogs.len()));
        let threads = watchdogs.clone().map(|watchdog| {
            let begin = begin.clone();
            thread::spawn(move || {
                begin.wait();
                let started = Instant::now();
                for _ in 0..reloads {
                    reload(&watchdog);
                }
                (started, Instant::now())
            })
        });
        let spans = threads.map(|thread| thread.join().expect("the thread"));
        let started = spans.iter().map(|(started, _)| *started).min().expect("four threads");
        let ended = spans.iter().map(|(_, ended)| *ended).max().expect("four threads");
        (ended - started) * times / reloads
    })
}

pub fn heartbeats() {
    let floor = Floor::default();
    let lock = Floor::default();
    let timer = ArmedTimer::new().expect("a timer");
    let wake = Wake::new().expect("an eventfd");
    let alone = armed();
    let of_all = armed();
    let one = armed();
    let decoded = armed();
    let mut model = I6300esb::new(I6300esbConfig::default());
    let mut now = 0;
    model.write_config(0x68, &[0x02], VmInstant::ZERO);
    let rows = vec![
        Row::new("the floor: a clock read, three locks, a store", move || floor.heartbeat()),
        Row::new("a clock read", || {
            black_box(Instant::now());
        }),
        Row::new("a lock", move || lock.lock()),
        Row::new("the model alone", move || {
            now += 1000;
            for write in &RELOAD {
                model.write_bar(RELOAD_REGISTER, black_box(write), VmInstant::from_nanos(now));
            }
        }),
        Row::new("a reload through the handle", move || reload(&alone)),
        Row::new("the same, with the address decoded", move || {
            reload_at(&decoded, black_box(Some(BAR0)), black_box(u64::from(BAR0) + RELOAD_REGISTER));
        }),
        Row::new("its first write", move || {
            one.write_bar(RELOAD_REGISTER, black_box(&RELOAD[0]));
        }),
        on_four_threads("four threads, a watchdog each", [(); 4].map(|()| armed())),
        on_four_threads("four threads, one watchdog", [(); 4].map(|()| of_all.clone())),
        Row::new("`timerfd_settime`, as ACRN does for one", move || {
            timer.arm(Duration::from_secs(1000)).expect("the timer");
        }),
        Row::new("a read of /proc, as crosvm does for one", || {
            black_box(read_thread_times().expect("/proc"));
        }),
        Row::new("a `write` to an eventfd, as arming does", move || wake.wake().expect("the eventfd")),
    ];
    let title = "A heartbeat of three writes, on one thread unless it says otherwise";
    print(title, "the floor: a clock read, three locks, a store", &in_turns(rows));
}

pub fn registers() {
    let read_bar = |name, offset| {
        let watchdog = armed();
        Row::new(name, move || {
            let mut data = [0; 4];
            watchdog.read_bar(offset, black_box(&mut data));
        })
    };
    let read_config = |name, offset| {
        let watchdog = armed();
        Row::new(name, move || {
            let mut data = [0; 4];
            watchdog.read_config(offset, black_box(&mut data));
        })
    };
    let mut model = I6300esb::new(I6300esbConfig::default());
    let stats = armed();
    let rows = vec![
        Row::new("a register, of the model alone", move || {
            let mut data = [0; 4];
            model.read_bar(RELOAD_REGISTER, black_box(&mut data), VmInstant::ZERO);
        }),
        read_bar("RELOAD", 0x0C),
        read_bar("PRELOAD1", 0x00),
        read_config("vendor and device", 0x00),
        read_config("command and status", 0x04),
        Row::new("the counters, `stats()`", move || {
            black_box(stats.stats());
        }),
    ];
    print("Reads through the handle", "a register, of the model alone", &in_turns(rows));
}

pub fn snapshots() {
    let (saved, restored) = (armed(), armed());
    let state = saved.save();
    let json = serde_json::to_vec(&state).expect("JSON").len();
    let clock = VmClock::monotonic();
    let paused = clock.clone();
    let builder = Watchdog::builder("wd", I6300esb::new(I6300esbConfig::default())).clock(clock);
    let watchdog = builder.build(|_: &Event| Ok(())).expect("a timer");
    watchdog.write_config(0x68, &[0x02]);
    let rows = vec![
        Row::new("save", move || {
            black_box(saved.save());
        }),
        Row::new("restore", move || restored.restore(black_box(&state)).expect("a state")),
        Row::new("pause, wait until it is quiet, resume", move || {
            paused.pause();
            assert!(paused.quiesce(Duration::ZERO));
            paused.resume();
            watchdog.on_readable();
        }),
        Row::new("build an armed watchdog, and drop it", || drop(armed())),
    ];
    print("Snapshots", "save", &in_turns(rows));
    println!(
        "\nA saved state has {json} bytes as JSON, {} in memory.",
        size_of::<vm_watchdog::i6300esb::I6300esbState>()
    );
}

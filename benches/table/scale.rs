//! Many watchdogs in one process, all of them armed and served by one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Event, HandlerError, Watchdog, WatchdogSubscriber};
use vm_watchdog_benches::epoll_of;

use crate::accesses::reload;
use crate::lateness::fraction;
use crate::measure::{median, quantile, time};

const MOST: usize = 10_000;
const EXPIRIES: usize = 200;
const IDLE: Duration = Duration::from_secs(3);
const PASSES: usize = 21;
/// How long a loop waits before it sees that it is to end.
const LOOP_TIMEOUT: Duration = Duration::from_millis(200);

/// Counts what is allocated and not freed.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: passes each call unchanged to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

type Watchdogs = Vec<Watchdog<I6300esb>>;

/// A loop that serves watchdogs until it is told to end.
type Serve = fn(&Watchdogs, &AtomicBool);

pub fn measure() {
    println!(
        "\n| Armed watchdogs, all in one loop | heap each | descriptors each | a reload, of all in turns | lateness p50, p99 | wakes a minute while idle |"
    );
    println!("|---|---|---|---|---|---|");
    let most = most_watchdogs();
    for watchdogs in [1, 100, MOST.min(most)] {
        for (name, serve) in [("epoll", epoll_loop as Serve), ("event-manager", event_manager_loop)] {
            measure_one(watchdogs, name, serve);
        }
    }
    if most < MOST {
        println!("\nThe limit of open files of this machine is not enough for {MOST} watchdogs.");
    }
}

fn measure_one(number: usize, name: &str, serve: Serve) {
    let (sender, expired) = channel();
    let (heap, descriptors) = (ALLOCATED.load(Ordering::Relaxed), open_descriptors());
    let mut watchdogs = Watchdogs::with_capacity(number);
    watchdogs.extend((0..number).map(|_| armed(sender.clone())));
    let each = |after: usize, before: usize| (after - before) as f64 / number as f64;
    let heap = each(ALLOCATED.load(Ordering::Relaxed), heap);
    let descriptors = each(open_descriptors(), descriptors);

    let watchdogs = Arc::new(watchdogs);
    let is_over = Arc::new(AtomicBool::new(false));
    let thread = {
        let (watchdogs, is_over) = (watchdogs.clone(), is_over.clone());
        thread::spawn(move || serve(&watchdogs, &is_over))
    };
    // The loop arms all timers first.
    while watchdogs.iter().any(|watchdog| watchdog.stats().wakes == 0) {
        thread::sleep(Duration::from_millis(1));
    }
    let before = wakes(&watchdogs);
    thread::sleep(IDLE);
    let idle = (wakes(&watchdogs) - before) as f64 * 60.0 / IDLE.as_secs_f64();
    let pass = || {
        let repeats = (1000 / number).max(1);
        let started = Instant::now();
        for _ in 0..repeats {
            watchdogs.iter().for_each(reload);
        }
        started.elapsed().as_nanos() as f64 / (repeats * number) as f64
    };
    let heartbeat = median((0..PASSES).map(|_| pass()).collect());
    let lateness = expire(&watchdogs, &expired);
    is_over.store(true, Ordering::Relaxed);
    thread.join().expect("the loop");
    let [half, most] = [0.5, 0.99].map(|part| time(quantile(&lateness, part)));
    let heartbeat = time(heartbeat);
    println!("| {number}, {name} | {heap:.0} B | {descriptors:.0} | {heartbeat} | {half}, {most} | {idle:.0} |");
}

fn armed(expired: Sender<Duration>) -> Watchdog<I6300esb> {
    let handler = move |event: &Event| -> Result<(), HandlerError> { Ok(expired.send(event.lateness())?) };
    let device = I6300esb::new(I6300esbConfig::default());
    let watchdog = Watchdog::builder("wd", device).build(handler).expect("a timer");
    watchdog.write_config(0x68, &[0x02]);
    watchdog
}

/// Lets one after the other expire, and gives how late the handler was called.
fn expire(watchdogs: &Watchdogs, expired: &Receiver<Duration>) -> Vec<f64> {
    let mut random = 7;
    let mut lateness = Vec::with_capacity(EXPIRIES);
    for index in 0..EXPIRIES {
        let watchdog = &watchdogs[index * 7919 % watchdogs.len()];
        // A timeout of 2 to 20 ms.
        set_preloads(watchdog, 10_f64.powf(fraction(&mut random)) as u32);
        lateness.push(expired.recv().expect("a timeout").as_nanos() as f64);
        set_preloads(watchdog, 0xF_FFFF);
    }
    lateness
}

fn set_preloads(watchdog: &Watchdog<I6300esb>, units: u32) {
    for preload in [0x00, 0x04] {
        watchdog.write_bar(0x0C, &[0x80, 0x00]);
        watchdog.write_bar(0x0C, &[0x86, 0x00]);
        watchdog.write_bar(preload, &units.to_le_bytes());
    }
    reload(watchdog);
}

fn epoll_loop(watchdogs: &Watchdogs, is_over: &AtomicBool) {
    let events = epoll_of(watchdogs.iter().map(AsFd::as_fd)).expect("an epoll");
    let mut ready = Vec::with_capacity(64);
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOP_TIMEOUT.as_nanos() as _ };
    while !is_over.load(Ordering::Relaxed) {
        ready.clear();
        epoll::wait(&events, spare_capacity(&mut ready), Some(&timeout)).expect("the epoll");
        for event in &ready {
            let data = event.data;
            watchdogs[data.u64() as usize].on_readable();
        }
    }
}

fn event_manager_loop(watchdogs: &Watchdogs, is_over: &AtomicBool) {
    let mut events = EventManager::<WatchdogSubscriber>::new().expect("an event manager");
    for watchdog in watchdogs {
        events.add_subscriber(WatchdogSubscriber::new(watchdog.clone()));
    }
    while !is_over.load(Ordering::Relaxed) {
        events.run_with_timeout(LOOP_TIMEOUT.as_millis() as i32).expect("the event manager");
    }
}

fn wakes(watchdogs: &Watchdogs) -> u64 {
    watchdogs.iter().map(|watchdog| watchdog.stats().wakes).sum()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// How many watchdogs the limit of open files is enough for, once it is raised as far as this process may.
fn most_watchdogs() -> usize {
    let wanted = Some(40_000);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 3).unwrap_or(usize::MAX).saturating_sub(100)
}

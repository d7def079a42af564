//! A handler that calls back into its watchdog keeps no descriptor open, if it holds a weak handle.
//!
//! A file with one test, because it counts the descriptors of its process.

mod common;

use std::fs;
use std::sync::{Arc, OnceLock};

use common::{Driver, device};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Event, HandlerError, Watchdog, WeakWatchdog};

const WATCHDOGS: usize = 100;

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A watchdog whose handler resets it.
fn with_weak_handle() -> Watchdog<I6300esb> {
    let builder = Watchdog::builder("wd", device(InterruptPin::None));
    let handler = |itself: &WeakWatchdog<I6300esb>| {
        let itself = itself.clone();
        move |_: &Event| -> Result<(), HandlerError> {
            itself.upgrade().ok_or("the watchdog is gone")?.reset();
            Ok(())
        }
    };
    builder.build_cyclic(handler).unwrap()
}

/// The same with a strong handle, which keeps the watchdog alive for ever.
fn with_strong_handle() -> (Watchdog<I6300esb>, StrongHandle) {
    let itself = StrongHandle::default();
    let handler = {
        let itself = itself.clone();
        move |_: &Event| -> Result<(), HandlerError> {
            itself.get().ok_or("not built yet")?.reset();
            Ok(())
        }
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    assert!(itself.set(watchdog.clone()).is_ok());
    (watchdog, itself)
}

type StrongHandle = Arc<OnceLock<Watchdog<I6300esb>>>;

fn expire(watchdog: &Watchdog<I6300esb>) {
    watchdog.start(0);
    watchdog.on_readable();
    let stats = watchdog.stats();
    assert_eq!((stats.actions, stats.armed), (1, false), "the handler has reset the watchdog");
}

#[test]
fn a_hundred_handlers_that_call_back_leave_no_descriptor_open() {
    let before = open_descriptors();
    let watchdogs: Vec<_> = (0..WATCHDOGS).map(|_| with_weak_handle()).collect();
    watchdogs.iter().for_each(expire);
    let threads: Vec<_> = watchdogs.iter().take(10).map(|watchdog| watchdog.spawn().unwrap()).collect();
    let of_threads = threads.iter().map(|thread| thread.keep_fds().len()).sum::<usize>();
    let of_watchdogs = watchdogs.iter().map(|watchdog| watchdog.keep_fds().len()).sum::<usize>();
    assert_eq!(open_descriptors(), before + of_threads + of_watchdogs, "a jail that keeps these keeps all");
    drop(watchdogs);
    drop(threads);
    assert_eq!(open_descriptors(), before);

    let strong: Vec<_> = (0..WATCHDOGS).map(|_| with_strong_handle()).collect();
    strong.iter().for_each(|(watchdog, _)| expire(watchdog));
    let cells: Vec<StrongHandle> = strong.into_iter().map(|(_, cell)| cell).collect();
    assert_eq!(open_descriptors(), before + of_watchdogs, "the count shows the cycles of strong handles");
    // Each cell is shared with the handler that keeps it alive.
    assert!(cells.iter().all(|cell| Arc::strong_count(cell) == 2));
}

//! A heartbeat allocates no memory.
//!
//! A file with one test, because a process has one allocator.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Driver, device};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Event, Watchdog};

/// Counts the allocations of the thread under test.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: passes each call unchanged to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the contract of the caller is that of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn ten_thousand_heartbeats_allocate_nothing() {
    let line = |_high: bool| Ok(());
    let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).interrupt_line(line);
    let watchdog = builder.build(|_: &Event| Ok(())).unwrap();
    watchdog.start(0xF_FFFF);
    let before = ALLOCATIONS.get();
    for _ in 0..10_000 {
        watchdog.ping();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(watchdog.stats().heartbeats, 10_000);
    drop(Box::new(7));
    assert!(ALLOCATIONS.get() > before, "allocations are counted");
}

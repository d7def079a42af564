//! The interrupt line: a level that follows WDT_INT_ACT.

mod common;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::{Driver, UNIT, device, recorder};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::read;
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{EventFdLine, InterruptLine, ManualClock, VmClock, Watchdog};

fn wire() -> (impl InterruptLine, Receiver<bool>) {
    let (sender, levels) = channel();
    let sender: Mutex<Sender<bool>> = Mutex::new(sender);
    let line = move |high: bool| sender.lock().unwrap().send(high).map_err(io::Error::other);
    (line, levels)
}

fn watchdog(pin: InterruptPin, line: impl InterruptLine + 'static) -> (Watchdog<I6300esb>, ManualClock) {
    let (clock, time) = VmClock::manual();
    let builder = Watchdog::builder("wd", device(pin)).clock(clock).interrupt_line(line);
    (builder.build(recorder().0).unwrap(), time)
}

#[test]
fn the_line_rises_at_the_end_of_stage_one_and_falls_when_the_guest_clears_the_bit() {
    let (line, levels) = wire();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    watchdog.on_readable();
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true]);
    let mut status = [0; 2];
    watchdog.read_config(0x06, &mut status);
    assert_eq!(status, [0x08, 0x00], "status bit 3 shows the interrupt");
    watchdog.write_bar(0x08, &[0x01]);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [false]);
}

#[test]
fn a_guest_that_reads_before_the_timer_is_served_sees_bit_and_line_together() {
    let (line, levels) = wire();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.start(512);
    time.advance(UNIT * 512);
    let mut gintsr = [0; 1];
    watchdog.read_bar(0x08, &mut gintsr);
    assert_eq!((gintsr, levels.try_recv()), ([0x01], Ok(true)));
}

#[test]
fn a_reset_lowers_the_line() {
    let (line, levels) = wire();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    watchdog.reset();
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_function_without_a_pin_never_sets_the_line() {
    let (line, levels) = wire();
    let (watchdog, time) = watchdog(InterruptPin::None, line);
    watchdog.start(512);
    time.advance(UNIT * 2000);
    watchdog.on_readable();
    assert_eq!(levels.try_iter().count(), 0);
}

#[test]
fn a_line_that_fails_is_counted_and_set_again_at_the_next_access() {
    let (sender, levels) = channel();
    let outcomes = Arc::new(Mutex::new(vec![Ok(()), Err("the irqfd is gone")]));
    let sender = Mutex::new(sender);
    let line = move |high: bool| {
        sender.lock().unwrap().send(high).map_err(io::Error::other)?;
        outcomes.lock().unwrap().pop().unwrap_or(Ok(())).map_err(io::Error::other)
    };
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(watchdog.stats().interrupt_failures, 1);
    watchdog.read_bar(0x08, &mut [0]);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true, true]);
    assert_eq!(watchdog.stats().interrupt_failures, 1);
}

#[test]
fn an_eventfd_is_signalled_by_the_rising_edge_and_again_on_resample() {
    let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let number = eventfd.as_raw_fd();
    let (watchdog, time) = watchdog(InterruptPin::IntA, EventFdLine::from(eventfd));
    let signals = || {
        let mut count = [0; 8];
        // SAFETY: the watchdog keeps the descriptor open until the end of the test.
        read(unsafe { BorrowedFd::borrow_raw(number) }, &mut count).map(|_| u64::from_ne_bytes(count))
    };
    watchdog.resample_interrupt();
    assert!(signals().is_err(), "nothing to signal while the line is low");
    watchdog.start(512);
    time.advance(UNIT * 512 + Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(signals().unwrap(), 1);
    watchdog.resample_interrupt();
    assert_eq!(signals().unwrap(), 1, "the guest ended the interrupt without clearing its cause");
    watchdog.write_bar(0x08, &[0x01]);
    watchdog.resample_interrupt();
    assert!(signals().is_err());
}

#[test]
fn an_end_of_interrupt_during_the_call_that_raises_the_line_raises_it_again() {
    let itself: Arc<OnceLock<Watchdog<I6300esb>>> = Arc::default();
    let (sender, levels) = channel();
    let line = {
        let (itself, sender) = (itself.clone(), Mutex::new(sender));
        let is_first = AtomicBool::new(true);
        move |high: bool| {
            sender.lock().unwrap().send(high).map_err(io::Error::other)?;
            if is_first.swap(false, Ordering::SeqCst) {
                itself.get().ok_or(io::ErrorKind::NotFound)?.resample_interrupt();
            }
            Ok(())
        }
    };
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    assert!(itself.set(watchdog.clone()).is_ok());
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true, true]);
}

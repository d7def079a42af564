//! The interrupt line: a level that follows WDT_INT_ACT.

mod common;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::{Driver, UNIT, device, recorder};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, write};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{EventFdLine, InterruptLine, MIN_WAKE_INTERVAL, ManualClock, VmClock, Watchdog};

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

/// The eventfd of a line, which keeps it open.
///
/// There is one descriptor of it: QEMU's emulation of a big-endian processor for a program takes the bytes of an eventfd's
/// duplicate for those of a file.
struct Irqfd(RawFd);

impl Irqfd {
    fn of_a_line() -> (Self, EventFdLine) {
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (Self(eventfd.as_raw_fd()), EventFdLine::from(eventfd))
    }

    /// How often it was signalled since the last call.
    fn signals(&self) -> u64 {
        let mut count = [0; 8];
        read(self, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

impl AsFd for Irqfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the watchdog keeps the descriptor open until the end of the test.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

#[test]
fn an_eventfd_is_signalled_by_the_rising_edge_and_again_on_resample() {
    let (irqfd, line) = Irqfd::of_a_line();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.resample_interrupt();
    assert_eq!(irqfd.signals(), 0, "nothing to signal while the line is low");
    watchdog.start(512);
    time.advance(UNIT * 512 + Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(irqfd.signals(), 1);
    watchdog.resample_interrupt();
    assert_eq!(irqfd.signals(), 1, "the guest ended the interrupt without clearing its cause");
    watchdog.write_bar(0x08, &[0x01]);
    watchdog.resample_interrupt();
    assert_eq!(irqfd.signals(), 0);
}

/// An irqfd with its resample eventfd, as KVM has them: the irqfd, and KVM's end of the other.
fn resampling() -> (EventFdLine, Irqfd, OwnedFd) {
    let (irqfd, line) = Irqfd::of_a_line();
    let resample = eventfd(0, EventfdFlags::empty()).unwrap();
    (line.with_resample(&resample).unwrap(), irqfd, resample)
}

/// KVM: the guest has ended the interrupt.
fn end_interrupt(resample: &OwnedFd) {
    write(resample, &1_u64.to_ne_bytes()).unwrap();
}

fn is_readable(watchdog: &Watchdog<I6300esb>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(watchdog, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn a_resampling_line_is_raised_again_until_the_guest_clears_the_cause() {
    let (line, irqfd, resample) = resampling();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    assert!(watchdog.keep_fds().len() == 4, "the resample eventfd is one of them");
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(irqfd.signals(), 1);
    watchdog.on_readable();
    for _ in 0..3 {
        assert!(!is_readable(&watchdog));
        end_interrupt(&resample);
        assert!(is_readable(&watchdog), "without any event loop of the VMM's");
        watchdog.on_readable();
        assert_eq!(irqfd.signals(), 0, "at most once a millisecond");
        time.advance(MIN_WAKE_INTERVAL);
        watchdog.on_readable();
        assert_eq!(irqfd.signals(), 1, "the guest has not cleared the cause");
    }
    watchdog.write_bar(0x08, &[0x01]);
    end_interrupt(&resample);
    watchdog.on_readable();
    time.advance(MIN_WAKE_INTERVAL);
    watchdog.on_readable();
    assert_eq!(irqfd.signals(), 0);
}

#[test]
fn an_interrupt_that_ends_while_the_vm_is_paused_is_raised_again_when_it_runs() {
    let (line, irqfd, resample) = resampling();
    let (watchdog, time) = watchdog(InterruptPin::IntA, line);
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    assert_eq!(irqfd.signals(), 1);
    watchdog.clock().pause();
    end_interrupt(&resample);
    watchdog.on_readable();
    assert!(!is_readable(&watchdog), "a paused VM keeps no event loop busy");
    assert_eq!(irqfd.signals(), 0);
    watchdog.clock().resume();
    time.advance(MIN_WAKE_INTERVAL);
    watchdog.on_readable();
    assert_eq!(irqfd.signals(), 1);
}

#[test]
fn a_thread_of_the_library_raises_a_resampling_line_again() {
    let (line, irqfd, resample) = resampling();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA)).interrupt_line(line);
    let watchdog = watchdog.build(recorder().0).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(512);
    let raised = || {
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&irqfd, PollFlags::IN)], Some(&limit)), Ok(1), "no interrupt");
        irqfd.signals()
    };
    assert_eq!(raised(), 1);
    end_interrupt(&resample);
    assert_eq!(raised(), 1);
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

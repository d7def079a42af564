//! A quiet pause: after `pause` and `quiesce` no code of the VMM is called until `resume`.

mod common;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Driver, UNIT, device};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Event, HandlerError, ManualClock, RunDelay, VcpuDelay, VmClock, Watchdog};

/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Counts the calls to each place of the VMM, and those that overlap a quiet pause.
#[derive(Debug, Default)]
struct Calls {
    handler: AtomicU64,
    line: AtomicU64,
    reader: AtomicU64,
    is_quiet: AtomicBool,
    wrong: AtomicU64,
}

impl Calls {
    fn call(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
        let was_quiet = self.is_quiet.load(Ordering::SeqCst);
        // Time for a pause to begin during the call.
        thread::yield_now();
        if was_quiet || self.is_quiet.load(Ordering::SeqCst) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counts(&self) -> [u64; 3] {
        [&self.handler, &self.line, &self.reader].map(|counter| counter.load(Ordering::SeqCst))
    }
}

struct Reader(Arc<Calls>);

impl RunDelay for Reader {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        self.0.call(&self.0.reader);
        Ok(vec![VcpuDelay::new(0, Duration::ZERO)])
    }
}

fn counted(clock: &VmClock) -> (Watchdog<I6300esb>, Arc<Calls>) {
    let calls = Arc::<Calls>::default();
    let (of_handler, of_line) = (calls.clone(), calls.clone());
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA))
        .clock(clock.clone())
        .interrupt_line(move |_: bool| {
            of_line.call(&of_line.line);
            Ok(())
        })
        .compensate_steal_time(Reader(calls.clone()), 4)
        .build(move |_: &Event| -> Result<(), HandlerError> {
            of_handler.call(&of_handler.handler);
            Ok(())
        })
        .unwrap();
    (watchdog, calls)
}

/// The guest masks or unmasks its interrupt (bit 10 of COMMAND).
fn mask_interrupt(watchdog: &Watchdog<I6300esb>, masked: bool) {
    watchdog.write_config(0x04, &[0x02, if masked { 0x04 } else { 0x00 }]);
}

/// Ends the guest, also when a test fails.
struct EndsGuest<'a>(&'a AtomicBool);

impl Drop for EndsGuest<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn nothing_is_called_in_a_quiet_pause_whatever_the_guest_does() {
    const ENOUGH: [u64; 3] = [200, 200, 5];
    let clock = VmClock::monotonic();
    let (watchdog, calls) = counted(&clock);
    let _thread = watchdog.spawn().unwrap();
    // Free running at one microsecond, with an interrupt.
    watchdog.write_config(0x60, &[0x04, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    let is_over = AtomicBool::new(false);
    let pauses = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                mask_interrupt(&watchdog, true);
                mask_interrupt(&watchdog, false);
                watchdog.ping();
            }
        });
        let _guest = EndsGuest(&is_over);
        let started = Instant::now();
        let lacks = || calls.counts().iter().zip(ENOUGH).any(|(count, enough)| *count < enough);
        let mut pauses = 0;
        while (lacks() || pauses < 200) && started.elapsed() < LIMIT {
            clock.pause();
            assert!(clock.quiesce(LIMIT));
            calls.is_quiet.store(true, Ordering::SeqCst);
            let before = calls.counts();
            thread::sleep(Duration::from_micros(300));
            assert_eq!(calls.counts(), before);
            calls.is_quiet.store(false, Ordering::SeqCst);
            clock.resume();
            thread::sleep(Duration::from_micros(700));
            pauses += 1;
        }
        pauses
    });
    assert_eq!(calls.wrong.load(Ordering::SeqCst), 0, "calls in {pauses} pauses");
    let counts = calls.counts();
    assert!(counts.iter().zip(ENOUGH).all(|(count, enough)| *count >= enough), "{counts:?} in {pauses} pauses");
}

#[test]
fn calls_that_are_due_in_a_pause_come_after_it() {
    let (clock, time) = VmClock::manual();
    let (watchdog, calls) = counted(&clock);
    clock.pause();
    watchdog.start(512);
    assert_eq!(calls.counts(), [0, 0, 0], "the reading at the start of the watchdog");
    clock.resume();
    watchdog.on_readable();
    assert_eq!(calls.counts(), [0, 0, 1]);

    time.advance(UNIT * 1024);
    clock.pause();
    let mut gintsr = [0];
    watchdog.read_bar(0x08, &mut gintsr);
    mask_interrupt(&watchdog, true);
    mask_interrupt(&watchdog, false);
    watchdog.resample_interrupt();
    watchdog.on_readable();
    assert_eq!(calls.counts(), [0, 0, 1]);
    clock.resume();
    watchdog.on_readable();
    assert_eq!(calls.counts(), [1, 1, 2]);
}

#[test]
fn one_resume_ends_any_number_of_pauses() {
    let (clock, time) = VmClock::manual();
    clock.pause();
    clock.pause();
    assert!(clock.quiesce(Duration::ZERO));
    clock.resume();
    assert!(!clock.is_paused());
    assert!(!clock.quiesce(Duration::ZERO), "a VM that runs is not quiet");
    time.advance(UNIT);
    assert_eq!(clock.now().as_nanos(), UNIT.as_nanos() as u64);
}

/// A watchdog that has timed out, on a thread that is in its handler until the sender is dropped.
fn in_its_handler(clock: &VmClock) -> (Watchdog<I6300esb>, impl Sized, Sender<()>) {
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    let entered = Mutex::new((entered, released));
    let blocking = move |_: &Event| -> Result<(), HandlerError> {
        let entered = entered.lock().unwrap();
        entered.0.send(())?;
        let _ = entered.1.recv();
        Ok(())
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(blocking).unwrap();
    let thread = watchdog.spawn().unwrap();
    watchdog.start(0);
    has_entered.recv_timeout(LIMIT).expect("the handler is called");
    (watchdog, thread, release)
}

#[test]
fn a_vm_whose_handler_blocks_is_not_quiet_when_the_limit_has_passed() {
    let clock = VmClock::monotonic();
    let (_watchdog, _thread, release) = in_its_handler(&clock);
    clock.pause();
    let (started, limit) = (Instant::now(), Duration::from_millis(20));
    assert!(!clock.quiesce(limit));
    assert!(started.elapsed() >= limit, "no sooner than the limit");
    drop(release);
    assert!(clock.quiesce(LIMIT));
}

#[test]
fn a_resume_ends_the_wait_for_a_quiet_vm() {
    let clock = VmClock::monotonic();
    let (_watchdog, _thread, release) = in_its_handler(&clock);
    clock.pause();
    let (done, is_done) = channel();
    let waiting = thread::spawn({
        let clock = clock.clone();
        move || done.send(clock.quiesce(Duration::from_secs(3600)))
    });
    assert!(is_done.recv_timeout(Duration::from_millis(20)).is_err(), "the handler still blocks");
    clock.resume();
    assert_eq!(is_done.recv_timeout(LIMIT), Ok(false));
    waiting.join().unwrap().unwrap();
    drop(release);
}

#[test]
fn a_handler_may_wait_for_the_thread_that_it_asks_to_pause_the_vm() {
    let clock = VmClock::monotonic();
    let (request, requests) = channel::<Sender<()>>();
    let request = Mutex::new(request);
    let handler = move |_: &Event| -> Result<(), HandlerError> {
        let (reply, has_paused) = channel();
        request.lock().unwrap().send(reply)?;
        Ok(has_paused.recv_timeout(LIMIT)?)
    };
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock.clone()).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(0);
    let reply = requests.recv_timeout(LIMIT).expect("the handler is called");
    clock.pause();
    assert!(reply.send(()).is_ok(), "the handler still waits");
    assert!(clock.quiesce(LIMIT));
    assert_eq!((watchdog.stats().actions, watchdog.stats().action_failures), (1, 0));
}

/// A watchdog whose run-delay reader pauses the VM. It is called at a deadline, before the expiry is recorded.
fn paused_at_its_deadline(levels: Arc<Mutex<Vec<bool>>>) -> (Watchdog<I6300esb>, ManualClock) {
    struct Pauses(VmClock, AtomicU64);
    impl RunDelay for Pauses {
        fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
            // The first reading is that at the start.
            if self.1.fetch_add(1, Ordering::SeqCst) == 1 {
                self.0.pause();
            }
            Ok(vec![VcpuDelay::new(0, Duration::ZERO)])
        }
    }
    let (clock, time) = VmClock::manual();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA))
        .clock(clock.clone())
        .interrupt_line(move |high: bool| {
            levels.lock().unwrap().push(high);
            Ok(())
        })
        .compensate_steal_time(Pauses(clock, AtomicU64::new(0)), 4)
        .build(|_: &Event| Ok(()))
        .unwrap();
    watchdog.start(512);
    time.advance(UNIT * 512);
    watchdog.on_readable();
    (watchdog, time)
}

/// The levels that the line was set to.
fn wire() -> (impl Fn(bool) -> io::Result<()> + Send + Sync, Arc<Mutex<Vec<bool>>>) {
    let levels = Arc::<Mutex<Vec<bool>>>::default();
    let line = {
        let levels = levels.clone();
        move |high: bool| {
            levels.lock().unwrap().push(high);
            Ok(())
        }
    };
    (line, levels)
}

#[test]
fn a_snapshot_between_an_expiry_and_its_interrupt_raises_the_line_after_the_restore() {
    let levels = Arc::<Mutex<Vec<bool>>>::default();
    let (old, _time) = paused_at_its_deadline(levels.clone());
    assert!(old.clock().is_paused() && old.clock().quiesce(LIMIT));
    let mut gintsr = [0];
    old.read_bar(0x08, &mut gintsr);
    assert_eq!(
        (gintsr, levels.lock().unwrap().as_slice()),
        ([0x01], [].as_slice()),
        "the bit is set, and the line is not"
    );
    let state = old.save();

    let (line, raised) = wire();
    let (clock, _time) = VmClock::manual();
    let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).clock(clock.clone()).interrupt_line(line);
    let new = builder.build(|_: &Event| Ok(())).unwrap();
    clock.pause();
    new.restore(&state).unwrap();
    new.on_readable();
    assert_eq!(raised.lock().unwrap().as_slice(), [], "the VM is paused");
    for vm in [&old, &new] {
        vm.clock().resume();
        (0..3).for_each(|_| vm.on_readable());
        vm.read_bar(0x08, &mut gintsr);
    }
    assert_eq!(raised.lock().unwrap().as_slice(), [true], "one edge in the restored VM");
    assert_eq!(levels.lock().unwrap().as_slice(), [true], "one edge in the VM that continues");
}

#[test]
fn a_restore_during_a_change_of_the_line_ends_with_the_level_of_the_device() {
    let (noted, _time) = paused_at_its_deadline(Arc::default());
    let not_signalled = noted.save();
    for (saved, expected) in [(None, [true, false]), (Some(not_signalled), [true, true])] {
        let (entered, has_entered) = channel();
        let (release, released) = channel::<()>();
        let (wire, levels) = wire();
        let calls = Mutex::new((entered, released));
        let line = move |high: bool| {
            let calls = calls.lock().unwrap();
            calls.0.send(()).map_err(io::Error::other)?;
            let _ = calls.1.recv();
            wire(high)
        };
        let (clock, time) = VmClock::manual();
        let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).clock(clock).interrupt_line(line);
        let watchdog = builder.build(|_: &Event| Ok(())).unwrap();
        watchdog.start(512);
        let state = saved.unwrap_or_else(|| watchdog.save());
        time.advance(UNIT * 512);
        thread::scope(|scope| {
            let vcpu = scope.spawn(|| watchdog.read_bar(0x08, &mut [0]));
            has_entered.recv_timeout(LIMIT).expect("the line is being raised");
            // The VMM also restores its interrupt controller, whose line is low.
            watchdog.restore(&state).unwrap();
            drop(release);
            vcpu.join().unwrap();
        });
        watchdog.on_readable();
        assert_eq!(levels.lock().unwrap().as_slice(), expected);
    }
}

//! Failures of the VMM's code: panics, also in destructors and messages, and errors that call back.

mod common;

use std::fmt;
use std::io;
use std::panic::panic_any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use common::{Driver, UNIT, device};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Event, HandlerError, ManualClock, RunDelay, Stats, VcpuDelay, VmClock, Watchdog, WeakWatchdog};

/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// How one call of the VMM's code fails.
type Failure = fn(&Itself) -> io::Result<()>;

/// The watchdog that code calls back into, once it is built.
type Itself = Arc<OnceLock<WeakWatchdog<I6300esb>>>;

/// The three places in which a watchdog calls the VMM's code.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Handler,
    Line,
    Reader,
}

const PLACES: [Place; 3] = [Place::Handler, Place::Line, Place::Reader];

impl Place {
    fn failures(self, stats: &Stats) -> u64 {
        match self {
            Self::Handler => stats.action_failures,
            Self::Line => stats.interrupt_failures,
            Self::Reader => stats.run_delay_failures,
        }
    }
}

/// An error that calls back into the watchdog when it is dropped.
struct CallsBack(Itself);

impl Drop for CallsBack {
    fn drop(&mut self) {
        if let Some(watchdog) = self.0.get().and_then(WeakWatchdog::upgrade) {
            watchdog.stats();
            watchdog.clock().now();
            watchdog.reset();
        }
    }
}

/// Panics when it is dropped, with a payload that panics when it is dropped.
struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic_any(Self);
        }
    }
}

/// Panics when its message is asked for, and when it is dropped.
struct PanicsOnDisplay(#[allow(dead_code, reason = "for its destructor")] AlwaysPanicsOnDrop);

struct AlwaysPanicsOnDrop;

impl Drop for AlwaysPanicsOnDrop {
    fn drop(&mut self) {
        panic!("a destructor that panics, whatever else does");
    }
}

macro_rules! error {
    ($name:ident, $message:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let message: fn() -> &'static str = $message;
                f.write_str(message())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }

        impl std::error::Error for $name {}
    };
}

error!(CallsBack, || "calls back");
error!(PanicsOnDrop, || "panics on drop");
error!(PanicsOnDisplay, || panic!("no message"));

struct Reader<F>(F);

impl<F: Fn() -> io::Result<()> + Send + Sync> RunDelay for Reader<F> {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        (self.0)().map(|()| vec![VcpuDelay::new(0, Duration::ZERO)])
    }
}

/// A watchdog whose calls to one place fail at first, once or always.
fn failing(place: Place, failure: Failure, times: u32) -> (Watchdog<I6300esb>, ManualClock) {
    let (clock, time) = VmClock::manual();
    let itself = Itself::default();
    let call = |of: Place| {
        let (itself, left) = (itself.clone(), AtomicU32::new(times));
        move || {
            let is_next = |left: u32| left.checked_sub(1);
            let fails = of == place && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_next).is_ok();
            if fails { failure(&itself) } else { Ok(()) }
        }
    };
    let (handler, line, reader) = (call(Place::Handler), call(Place::Line), call(Place::Reader));
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA))
        .clock(clock)
        .interrupt_line(move |_: bool| line())
        .compensate_steal_time(Reader(reader), 2)
        .build(move |_: &Event| -> Result<(), HandlerError> { Ok(handler()?) })
        .unwrap();
    assert!(itself.set(watchdog.downgrade()).is_ok());
    (watchdog, time)
}

/// Runs `work` on a thread of its own, which is abandoned if it hangs.
fn ends(what: impl fmt::Debug, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    is_done.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{what:?}: {error}"));
}

#[test]
fn an_error_that_calls_back_when_it_is_dropped_hangs_no_thread() {
    for place in PLACES {
        let (watchdog, time) = failing(place, |itself| Err(io::Error::other(CallsBack(itself.clone()))), 1);
        // A vCPU's thread, which also sets the line and reads the run delay.
        ends(place, move || {
            watchdog.start(512);
            time.advance(UNIT * 1024);
            watchdog.read_bar(0x08, &mut [0]);
            watchdog.on_readable();
            watchdog.ping();
            assert_eq!(place.failures(&watchdog.stats()), 1);
        });
    }
}

/// Fails the first call to `place`, and checks that the watchdog then does the same as after an ordinary error.
fn recovers_from(failure: Failure) {
    for place in PLACES {
        let (watchdog, time) = failing(place, failure, 1);
        ends(place, move || {
            watchdog.start(512);
            time.advance(UNIT * 1024);
            watchdog.on_readable();
            let first = watchdog.stats();
            assert_eq!(place.failures(&first), 1, "{place:?}");
            assert_eq!(first.expiries, 1, "{place:?}");

            time.advance(Duration::from_millis(100));
            watchdog.on_readable();
            watchdog.read_bar(0x08, &mut [0]);
            assert_eq!(watchdog.stats().actions, 1, "{place:?}: the timeout is reported, at the latest by a retry");

            time.advance(UNIT * 1024);
            watchdog.on_readable();
            watchdog.ping();
            time.advance(UNIT * 1024);
            watchdog.on_readable();
            let last = watchdog.stats();
            assert!(last.actions > 1, "{place:?}: later timeouts are reported");
            assert_eq!(place.failures(&last), 1, "{place:?}: later calls are made, and do not fail");
        });
    }
}

#[test]
fn a_panic_counts_as_a_failure() {
    recovers_from(|_| panic!("a failure of the VMM"));
    recovers_from(|_| panic_any(7));
}

#[test]
fn a_panic_whose_payload_panics_when_it_is_dropped_leaves_nothing_stuck() {
    recovers_from(|_| panic_any(PanicsOnDrop));
    recovers_from(|_| panic_any(AlwaysPanicsOnDrop));
}

#[test]
fn an_error_whose_destructor_panics_leaves_nothing_stuck() {
    recovers_from(|_| Err(io::Error::other(PanicsOnDrop)));
}

#[test]
fn an_error_whose_message_and_destructor_panic_leaves_nothing_stuck() {
    recovers_from(|_| Err(io::Error::other(PanicsOnDisplay(AlwaysPanicsOnDrop))));
}

#[test]
fn code_that_always_panics_is_called_again_and_stops_no_other_call() {
    for place in PLACES {
        let (watchdog, time) = failing(place, |_| panic!("always"), u32::MAX);
        ends(place, move || {
            watchdog.start(512);
            for _ in 0..20 {
                time.advance(UNIT * 1024);
                watchdog.on_readable();
                watchdog.read_bar(0x08, &mut [0]);
            }
            let stats = watchdog.stats();
            assert!(place.failures(&stats) > 1, "{place:?}: {stats:?}");
            for other in PLACES.into_iter().filter(|other| *other != place) {
                assert_eq!(other.failures(&stats), 0, "{place:?}");
            }
            assert_eq!(stats.actions > 0, place != Place::Handler, "{place:?}");
        });
    }
}

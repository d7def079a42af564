//! A quiet VM in the same process: what its heartbeats cost, and how late its timeouts are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Event, HandlerError, Watchdog};

use crate::common::{Driver, device};
use crate::measure::millis;

/// The limit of a wait, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Twenty units of 0.983 ms.
const UNITS: u32 = 10;
const PERIOD: Duration = Duration::from_nanos(2 * UNITS as u64 * 983_040);

/// A VM with two watchdogs: one is fed all the time, the other times out repeatedly.
pub struct Neighbour {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Costs>,
}

/// What was measured, sorted.
pub struct Costs {
    heartbeats: Vec<Duration>,
    timeouts: Vec<Duration>,
    /// How late a bare sleep is at the same time.
    sleeps: Vec<Duration>,
    /// How often the watchdog that is fed has timed out.
    pub unwanted: u64,
}

impl Neighbour {
    /// Starts it. The memory that it takes is allocated then.
    pub fn start() -> Self {
        let fed = Watchdog::builder("fed", device(InterruptPin::None)).build(|_: &Event| Ok(())).unwrap();
        let (sender, expired) = channel();
        let handler = move |event: &Event| -> Result<(), HandlerError> { Ok(sender.send(event.lateness())?) };
        let expiring = Watchdog::builder("expiring", device(InterruptPin::None)).build(handler).unwrap();
        let threads = [fed.spawn().unwrap(), expiring.spawn().unwrap()];
        // About two minutes: more than a wait takes.
        fed.start(60_000);
        expiring.start(0xF_FFFF);
        expiring.set_preloads(UNITS);

        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let [mut heartbeats, mut timeouts, mut sleeps] = [(); 3].map(|()| Vec::with_capacity(1 << 10));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for _ in 0..5 {
                    let started = Instant::now();
                    fed.ping();
                    heartbeats.push(started.elapsed());
                    thread::sleep(Duration::from_millis(1));
                }
                expiring.ping();
                timeouts.push(expired.recv_timeout(LIMIT).expect("a timeout"));
                let started = Instant::now();
                thread::sleep(PERIOD);
                sleeps.push(started.elapsed() - PERIOD);
            }
            drop(threads);
            for samples in [&mut heartbeats, &mut timeouts, &mut sleeps] {
                samples.sort_unstable();
            }
            Costs { heartbeats, timeouts, sleeps, unwanted: fed.stats().expiries }
        });
        Self { is_over, thread }
    }

    pub fn end(self) -> Costs {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Costs {
    /// The median cost of a heartbeat.
    pub fn heartbeat(&self) -> Duration {
        middle(&self.heartbeats)
    }

    /// The median lateness of its timeouts.
    pub fn lateness(&self) -> Duration {
        middle(&self.timeouts)
    }

    pub fn latest_sleep(&self) -> Duration {
        last(&self.sleeps)
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {:5.0} ns", self.heartbeat().as_nanos())?;
        for lateness in [&self.timeouts, &self.sleeps] {
            write!(f, "  {:>8} {:>8}", millis(middle(lateness)), millis(last(lateness)))?;
        }
        Ok(())
    }
}

/// Something has lasted longer than the measurement if there is none.
fn middle(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or(Duration::MAX)
}

fn last(sorted: &[Duration]) -> Duration {
    sorted.last().copied().unwrap_or_default()
}

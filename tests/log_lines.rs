//! The log lines of the library: one a second of each kind, with the number of lines left out before it.
//!
//! A file with one test, because a process has one logger.

mod common;

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Driver, device};
use log::{Log, Metadata, Record};
use vm_watchdog::i6300esb::InterruptPin;
use vm_watchdog::{Event, HandlerError, RunDelay, VcpuDelay, VmClock, Watchdog};

const SECONDS: usize = 5;

/// The errors by which a line is recognized; a line with none of them reports an event.
const HANDLER_ERROR: &str = "the management socket is down";
const LINE_ERROR: &str = "the interrupt controller is gone";
const READING_ERROR: &str = "the thread has ended";

/// Keeps every line with the time of the manual clock, in milliseconds.
struct Lines(Mutex<Vec<(u64, String)>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));
static MILLIS: AtomicU64 = AtomicU64::new(0);

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        self.0.lock().unwrap().push((MILLIS.load(Ordering::SeqCst), record.args().to_string()));
    }
    fn flush(&self) {}
}

struct Unreadable;

impl RunDelay for Unreadable {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        Err(io::Error::other(READING_ERROR))
    }
}

/// The lines with this error, or those with none: when each was written, and how many lines it stands for.
fn lines_with(error: Option<&str>) -> Vec<(u64, u64)> {
    let lines = LINES.0.lock().unwrap();
    let has = |line: &str, error: &str| line.contains(error);
    let is_wanted = |line: &str| match error {
        Some(error) => has(line, error),
        None => ![HANDLER_ERROR, LINE_ERROR, READING_ERROR].iter().any(|error| has(line, error)),
    };
    lines.iter().filter(|(_, line)| is_wanted(line)).map(|(at, line)| (*at, 1 + held_back(line))).collect()
}

/// The number in the parentheses that end a line.
fn held_back(line: &str) -> u64 {
    let remark = line.strip_suffix("held back)").and_then(|line| line.rsplit_once('('));
    remark.map_or(0, |(_, remark)| remark.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_guest_that_causes_thousands_of_failures_causes_one_line_a_second_of_each_kind() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let (clock, time) = VmClock::manual();
    let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA))
        .clock(clock)
        .interrupt_line(|_: bool| Err(io::Error::other(LINE_ERROR)))
        .compensate_steal_time(Unreadable, 3)
        .build(|_: &Event| -> Result<(), HandlerError> { Err(HANDLER_ERROR.into()) })
        .unwrap();
    // Free running at a microsecond.
    watchdog.write_config(0x60, &[0x04, 0x00]);
    watchdog.set_preloads(1);
    watchdog.write_config(0x68, &[0x06]);
    let serve_after = |millis| {
        time.advance(Duration::from_millis(millis));
        MILLIS.fetch_add(millis, Ordering::SeqCst);
        watchdog.on_readable();
    };
    (0..SECONDS * 1000).for_each(|_| serve_after(1));
    let before = watchdog.stats();
    // The next line of each kind has the number of lines left out until then.
    serve_after(1000);
    let after = watchdog.stats();

    let calls = |stats: &vm_watchdog::Stats| stats.actions + stats.action_failures;
    for (kind, error, before, after) in [
        ("event", None, calls(&before), calls(&after)),
        ("handler", Some(HANDLER_ERROR), before.action_failures, after.action_failures),
        ("interrupt line", Some(LINE_ERROR), before.interrupt_failures, after.interrupt_failures),
        ("run delay", Some(READING_ERROR), before.run_delay_failures, after.run_delay_failures),
    ] {
        let lines = lines_with(error);
        assert!(lines.is_sorted_by(|one, next| one.0 + 1000 <= next.0), "{kind}: {lines:?}");
        assert!((SECONDS..=SECONDS + 2).contains(&lines.len()), "{kind}: {lines:?}");
        let stands_for: u64 = lines.iter().map(|(_, stands_for)| stands_for).sum();
        assert!((before + 1..=after).contains(&stands_for), "{kind}: {stands_for} of {before} to {after}");
        assert!(after >= 10 * SECONDS as u64, "{kind}: {after} are too few to show a limit");
    }
}

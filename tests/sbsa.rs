//! The Generic Watchdog of Arm's BSA in the runtime, as a VMM's bus, event loop and handler use it.

mod common;

use std::io;
use std::num::NonZeroU32;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{arrived, recorder};
use vm_watchdog::sbsa::{Frame, Sbsa, SbsaConfig};
use vm_watchdog::{
    Action, Event, MIN_WAKE_INTERVAL, ManualClock, Policy, RunDelay, Stage, VcpuDelay, VmClock, VmInstant, Watchdog,
};

const WCS: u64 = 0x000;
const WOR: u64 = 0x008;
const WCV: u64 = 0x010;

/// 16 ns in a tick.
const HZ: u32 = 62_500_000;
const TICK: Duration = Duration::from_nanos(16);
const SECOND: Duration = Duration::from_secs(1);

fn device() -> Sbsa {
    Sbsa::new(SbsaConfig::new(NonZeroU32::new(HZ).expect("not zero")))
}

fn write(watchdog: &Watchdog<Sbsa>, register: u64, value: u32) {
    watchdog.write(Frame::Control, register, &value.to_le_bytes());
}

fn read(watchdog: &Watchdog<Sbsa>, register: u64) -> u64 {
    let mut data = [0; 8];
    watchdog.read(Frame::Control, register, &mut data);
    u64::from_le_bytes(data)
}

/// The driver starts the watchdog with two periods of half this timeout.
fn open(watchdog: &Watchdog<Sbsa>, seconds: u32) {
    write(watchdog, WOR, HZ / 2 * seconds);
    write(watchdog, WCS, 1);
}

fn ping(watchdog: &Watchdog<Sbsa>) {
    watchdog.write(Frame::Refresh, 0, &[0; 4]);
}

fn watchdog(policy: Policy) -> (Watchdog<Sbsa>, ManualClock, Receiver<Event>) {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device()).clock(clock).policy(policy).build(handler).unwrap();
    (watchdog, time, events)
}

#[test]
fn a_guest_that_stops_feeding_times_out_and_reads_the_cause_after_the_reset() {
    let (watchdog, time, events) = watchdog(Policy::default());
    open(&watchdog, 10);
    time.advance(SECOND * 9);
    ping(&watchdog);
    time.advance(SECOND * 10 + TICK * 2 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [], "not one nanosecond early, and nothing at WS0");
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    let event = events.try_recv().expect("a timeout");
    assert_eq!((event.stage, event.action), (Stage::Timeout, Action::Reset));
    assert_eq!(event.deadline, VmInstant::ZERO + SECOND * 19 + TICK * 2);
    let stats = watchdog.stats();
    assert_eq!((stats.heartbeats, stats.expiries, stats.pretimeouts, stats.ignored_accesses), (1, 1, 2, 0));

    watchdog.reset();
    assert_eq!(read(&watchdog, WCS), 4);
    assert!(watchdog.timed_out() && watchdog.last_reset().by_watchdog);
    open(&watchdog, 10);
    assert!(!watchdog.last_reset().by_watchdog);
}

#[test]
fn ws0_is_the_pretimeout_and_an_interrupt_for_the_guest() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let (sender, levels) = channel();
    let sender = Mutex::new(sender);
    let line = move |high: bool| sender.lock().unwrap().send(high).map_err(io::Error::other);
    let policy = Policy::new(Action::Reset).with_pretimeout(Action::Dump).with_pretimeout_before(SECOND * 10);
    let watchdog =
        Watchdog::builder("wd", device()).clock(clock).policy(policy).interrupt_line(line).build(handler).unwrap();
    open(&watchdog, 10);
    time.advance(SECOND * 5);
    watchdog.on_readable();
    assert_eq!((arrived(&events), levels.try_iter().collect::<Vec<_>>()), (vec![], vec![]));
    time.advance(TICK);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Pretimeout, Action::Dump)]);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true]);
    ping(&watchdog);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [false]);
    // The level stays through the timeout of a guest that continues, until it feeds the watchdog.
    time.advance(SECOND * 20);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Pretimeout, Action::Dump), (Stage::Timeout, Action::Reset)]);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [true]);
    ping(&watchdog);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [false]);
}

#[test]
fn a_guest_that_continues_after_ws1_is_escalated_and_protected_again_when_it_feeds() {
    let policy = Policy::new(Action::None).with_escalation(SECOND * 30, Action::Poweroff);
    let (watchdog, time, events) = watchdog(policy);
    open(&watchdog, 10);
    time.advance(SECOND * 20);
    watchdog.on_readable();
    ping(&watchdog);
    time.advance(SECOND * 20);
    watchdog.on_readable();
    assert_eq!(watchdog.stats().expiries, 2);
    assert_eq!(read(&watchdog, WCS), 7);
    time.advance(SECOND * 30);
    watchdog.on_readable();
    assert_eq!(arrived(&events).last(), Some(&(Stage::Escalation, Action::Poweroff)));
}

#[test]
fn a_paused_guest_keeps_its_time() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device()).clock(clock.clone()).build(handler).unwrap();
    open(&watchdog, 10);
    time.advance(SECOND * 4);
    clock.pause();
    time.advance(SECOND * 100);
    watchdog.on_readable();
    // The guest's counter has gone on.
    watchdog.set_counter(u64::from(HZ) * 104);
    clock.resume();
    assert_eq!(read(&watchdog, WCV), u64::from(HZ) * 105, "one second of the first period is left");
    time.advance(SECOND * 6 + TICK * 2 - Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

/// The run delay of a vCPU that the test sets.
struct Stolen(Arc<Mutex<Duration>>);

impl RunDelay for Stolen {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        Ok(vec![VcpuDelay::new(0, *self.0.lock().unwrap())])
    }
}

#[test]
fn steal_time_extends_a_period_and_a_counter_that_the_vmm_sets_says_what_is_left() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let delay = Arc::new(Mutex::new(Duration::ZERO));
    let watchdog = Watchdog::builder("wd", device())
        .clock(clock)
        .compensate_steal_time(Stolen(delay.clone()), 4)
        .build(handler)
        .unwrap();
    open(&watchdog, 10);
    watchdog.on_readable();
    time.advance(SECOND * 9);
    *delay.lock().unwrap() += SECOND * 9;
    watchdog.on_readable();
    time.advance(SECOND * 9);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [], "nine seconds were stolen");
    watchdog.set_counter(u64::from(HZ) * 18);
    let left = read(&watchdog, WCV) - u64::from(HZ) * 18;
    assert!(left <= u64::from(HZ) + 1, "{left} ticks of the second period");
    time.advance(SECOND * 2);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
}

#[test]
fn an_offset_of_zero_wakes_the_host_a_thousand_times_a_second_at_most() {
    let (handler, events) = recorder();
    let watchdog = Watchdog::builder("wd", device()).build(handler).unwrap();
    let _thread = watchdog.spawn().unwrap();
    let started = Instant::now();
    write(&watchdog, WOR, 0);
    write(&watchdog, WCS, 1);
    while started.elapsed() < Duration::from_millis(500) {
        ping(&watchdog);
        thread::sleep(Duration::from_micros(20));
    }
    write(&watchdog, WCS, 0);
    let wakes = u128::from(watchdog.stats().wakes);
    let most = started.elapsed().as_nanos() / MIN_WAKE_INTERVAL.as_nanos() + 1;
    assert!(wakes <= most, "{wakes} wakes, at most {most} are allowed");
    assert!(!arrived(&events).is_empty(), "it times out");
}

/// A guest 4 s after a heartbeat of a timeout of 10 s, in its second boot, with a counter that the VMM has set.
fn second_boot() -> (Watchdog<Sbsa>, ManualClock) {
    let (watchdog, time, _events) = watchdog(Policy::new(Action::Poweroff));
    watchdog.set_counter(1 << 40);
    open(&watchdog, 10);
    time.advance(SECOND * 11);
    watchdog.on_readable();
    watchdog.reset();
    open(&watchdog, 10);
    time.advance(SECOND * 4 + Duration::from_nanos(5));
    (watchdog, time)
}

#[test]
fn a_restored_guest_times_out_after_its_remaining_time() {
    let state = second_boot().0.save();
    let (restored, time, events) = watchdog(Policy::default());
    time.advance(SECOND * 1_000);
    restored.restore(&state).unwrap();
    let counter = (1 << 40) + u64::from(HZ) * 11;
    assert_eq!([WCS, WOR, WCV].map(|register| read(&restored, register)), [1, HZ as u64 * 5, counter + HZ as u64 * 5]);
    time.advance(SECOND * 6 + TICK * 2 - Duration::from_nanos(6));
    restored.on_readable();
    assert_eq!(arrived(&events), []);
    time.advance(Duration::from_nanos(1));
    restored.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)], "the policy is the operator's");
}

#[cfg(feature = "serde")]
#[test]
fn version_1_is_saved_as_the_golden_file_says_and_restored_from_it() {
    use vm_watchdog::{AnyWatchdog, AnyWatchdogState};

    let golden = include_str!("golden/sbsa-v1.json");
    let any = AnyWatchdog::from(second_boot().0);
    let written = serde_json::to_string_pretty(&any.save()).unwrap();
    assert_eq!(written, golden.trim_end(), "{written}");
    let state: AnyWatchdogState = serde_json::from_str(golden).unwrap();
    let restored = AnyWatchdog::from(watchdog(Policy::default()).0);
    restored.restore(&state).unwrap();
    let typed = restored.downcast::<Sbsa>().unwrap();
    assert_eq!((read(&typed, WCS), read(&typed, WOR)), (1, u64::from(HZ) * 5));
    let other: AnyWatchdogState = serde_json::from_str(include_str!("golden/wdat-v1.json")).unwrap();
    assert_eq!(restored.restore(&other).unwrap_err().field, "model");
}

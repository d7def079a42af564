//! Steal-time compensation on the manual clock, with run delays that the test sets.

mod common;

use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Driver, UNIT, arrived, device, recorder};
use vm_watchdog::diag288::{Diag288, Intercept};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{Action, DEFAULT_STEAL_LIMIT, Event, ManualClock, Policy, Stage, VcpuDelay, VmClock, Watchdog};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// Two stages of 2048 units.
const TIMEOUT: Duration = Duration::from_nanos(2 * 2048 * 983_040);

/// A watchdog on a host whose run delays the test sets.
struct Host {
    watchdog: Watchdog<I6300esb>,
    time: ManualClock,
    delays: Arc<Mutex<Vec<Duration>>>,
    readings: Arc<Mutex<u32>>,
    /// Called at the end of the next reading, before it returns.
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
    events: Receiver<Event>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;

impl Host {
    /// A guest that has just started its watchdog.
    fn new(vcpus: usize) -> Self {
        let host = Self::idle(vcpus, Policy::default());
        host.watchdog.start(2048);
        host
    }

    fn idle(vcpus: usize, policy: Policy) -> Self {
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let delays = Arc::new(Mutex::new(vec![Duration::ZERO; vcpus]));
        let readings = Arc::new(Mutex::new(0));
        let meanwhile = Arc::default();
        let run_delay =
            Reader { delays: delays.clone(), readings: readings.clone(), meanwhile: Arc::clone(&meanwhile) };
        let watchdog = Watchdog::builder("wd", device(InterruptPin::None))
            .clock(clock)
            .policy(policy)
            .compensate_steal_time(run_delay, DEFAULT_STEAL_LIMIT)
            .build(handler)
            .unwrap();
        Self { watchdog, time, delays, readings, meanwhile, events }
    }

    /// Advances the time in one step, in which the first vCPU waits for a processor.
    fn starve(&self, time: Duration) {
        self.time.advance(time);
        self.delays.lock().unwrap()[0] += time;
    }

    fn fired(&self) -> Vec<(Stage, Action)> {
        let mut fired = arrived(&self.events);
        fired.retain(|(stage, _)| *stage != Stage::Pretimeout);
        fired
    }

    /// Advances the time in steps, in which the given vCPUs wait for a processor. Returns the time until the timeout.
    fn run_until_timeout(&self, starved: &[usize], most: Duration) -> Option<Duration> {
        let step = MILLISECOND * 20;
        let mut passed = Duration::ZERO;
        while passed < most {
            self.time.advance(step);
            passed += step;
            starved.iter().for_each(|&vcpu| self.delays.lock().unwrap()[vcpu] += step);
            self.watchdog.on_readable();
            if arrived(&self.events).contains(&(Stage::Timeout, Action::Reset)) {
                return Some(passed);
            }
        }
        None
    }
}

#[derive(Default)]
struct Reader {
    delays: Arc<Mutex<Vec<Duration>>>,
    readings: Arc<Mutex<u32>>,
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

impl vm_watchdog::RunDelay for Reader {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        *self.readings.lock().unwrap() += 1;
        let delays =
            (0..).zip(&*self.delays.lock().unwrap()).map(|(vcpu, delay)| VcpuDelay::new(vcpu, *delay)).collect();
        let meanwhile = self.meanwhile.lock().unwrap().take();
        meanwhile.into_iter().for_each(|happens| happens());
        Ok(delays)
    }
}

fn assert_about(timed_out: Option<Duration>, expected: Duration) {
    let waited = timed_out.expect("a timeout");
    assert!(
        waited >= expected && waited <= expected + SECOND * 2 / 5,
        "timed out after {waited:?}, expected {expected:?}"
    );
}

#[test]
fn a_starved_guest_does_not_time_out_and_then_has_the_time_that_was_left() {
    let host = Host::new(1);
    assert_eq!(host.run_until_timeout(&[], SECOND), None);
    assert_eq!(host.run_until_timeout(&[0], SECOND * 10), None);
    assert_about(host.run_until_timeout(&[], TIMEOUT * 2), TIMEOUT - SECOND);
}

#[test]
fn a_guest_that_runs_or_halts_without_heartbeats_times_out_on_time() {
    let host = Host::new(1);
    assert_about(host.run_until_timeout(&[], TIMEOUT * 2), TIMEOUT);
}

#[test]
fn the_most_delayed_vcpu_counts() {
    // The first vCPU is halted: the guest cannot move the process that feeds off a vCPU that does not run.
    let host = Host::new(2);
    assert_eq!(host.run_until_timeout(&[1], TIMEOUT * 3), None);
    assert_about(host.run_until_timeout(&[], TIMEOUT * 2), TIMEOUT);
}

#[test]
fn steal_time_extends_a_period_to_four_times_the_timeout_at_most() {
    let host = Host::new(1);
    assert_about(host.run_until_timeout(&[0], TIMEOUT * 10), TIMEOUT * DEFAULT_STEAL_LIMIT);
}

#[test]
fn the_limit_holds_in_a_restored_vm_of_any_age() {
    let saved = Host::new(1);
    assert_eq!(saved.run_until_timeout(&[], SECOND), None);
    let restored = Host::idle(1, Policy::default());
    restored.time.advance(SECOND * 3600);
    restored.watchdog.restore(&saved.watchdog.save()).unwrap();
    assert_about(restored.run_until_timeout(&[0], SECOND * 3600), TIMEOUT * DEFAULT_STEAL_LIMIT - SECOND);
}

#[test]
fn a_heartbeat_that_comes_late_after_starvation_is_in_time() {
    let host = Host::new(1);
    // The host delays the guest and the timer alike, and the heartbeat is processed before the timer.
    host.time.advance(TIMEOUT * 3 / 2);
    host.delays.lock().unwrap()[0] += TIMEOUT * 3 / 2;
    host.watchdog.ping();
    host.watchdog.on_readable();
    assert_eq!(arrived(&host.events), []);
    assert_eq!(host.watchdog.stats().starved, TIMEOUT * 3 / 2);
}

#[test]
fn a_guest_starved_from_just_before_its_deadline_does_not_time_out() {
    for before in [10, 30, 50, 70, 90, 110, 130].map(Duration::from_millis) {
        let host = Host::new(1);
        assert_eq!(host.run_until_timeout(&[], TIMEOUT - before), None);
        // An access sets the time of the device, which never goes back.
        host.watchdog.unlock();
        assert_eq!(host.run_until_timeout(&[0], TIMEOUT * 2), None, "{before:?}");
        assert_about(host.run_until_timeout(&[], TIMEOUT), before);
    }
}

#[test]
fn a_heartbeat_while_a_deadline_waits_for_a_reading_starts_a_whole_period() {
    let host = Host::new(1);
    host.time.advance(TIMEOUT / 2);
    host.watchdog.on_readable();
    host.time.advance(TIMEOUT / 2 - MILLISECOND * 50);
    // An access sets the time of the device, which never goes back.
    host.watchdog.unlock();
    host.time.advance(MILLISECOND * 50);
    host.delays.lock().unwrap()[0] += SECOND;
    host.watchdog.on_readable();
    // The deadline was moved by 50 ms. They have passed, and the next reading is not due yet.
    host.time.advance(MILLISECOND * 90);
    host.watchdog.on_readable();
    host.watchdog.ping();
    assert_about(host.run_until_timeout(&[], TIMEOUT * 2), TIMEOUT);
}

#[test]
fn a_device_with_one_stage_is_compensated_from_its_start() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let delays = Arc::new(Mutex::new(vec![Duration::ZERO]));
    let run_delay = Reader { delays: delays.clone(), ..Reader::default() };
    let builder = Watchdog::builder("wd", Diag288::new()).clock(clock);
    let watchdog = builder.compensate_steal_time(run_delay, DEFAULT_STEAL_LIMIT).build(handler).unwrap();
    // DIAGNOSE X'288' with the function INIT in register 2 and 15 s in register 3. The vCPU is starved from then on.
    let mut gprs = [0; 16];
    gprs[3] = 15;
    assert_eq!(watchdog.intercept(4, 0x8324, 0x0288_0000, &gprs), Intercept::Done);
    time.advance(SECOND * 15);
    delays.lock().unwrap()[0] += SECOND * 15;
    watchdog.on_readable();
    assert_eq!(arrived(&events), []);
    assert_eq!(watchdog.stats().time_left, Some(SECOND * 15));
}

#[test]
fn a_guest_that_reads_its_device_continuously_times_out() {
    for units in [40, 2048] {
        let host = Host::idle(1, Policy::default());
        host.watchdog.start(units);
        host.time.advance(MILLISECOND * 50);
        host.watchdog.ping();
        let mut fired = Vec::new();
        for _ in 0..(UNIT * 2 * units).as_millis() + 300 {
            host.time.advance(MILLISECOND);
            host.watchdog.read_bar(0x08, &mut [0; 4]);
            host.watchdog.on_readable();
            fired.extend(host.fired());
        }
        assert_eq!(fired, [(Stage::Timeout, Action::Reset)], "{units} units");
    }
}

#[test]
fn a_slow_reading_covers_only_the_time_before_it() {
    let host = Host::new(1);
    host.time.advance(TIMEOUT / 2);
    let (time, delays) = (host.time.clone(), host.delays.clone());
    *host.meanwhile.lock().unwrap() = Some(Box::new(move || {
        time.advance(SECOND * 3);
        delays.lock().unwrap()[0] += SECOND * 3;
    }));
    host.watchdog.on_readable();
    assert_eq!(host.fired(), []);
}

#[test]
fn one_thread_at_a_time_reads_the_run_delay() {
    let host = Host::new(1);
    host.time.advance(TIMEOUT);
    let before = *host.readings.lock().unwrap();
    let beside = host.watchdog.clone();
    *host.meanwhile.lock().unwrap() = Some(Box::new(move || {
        beside.read_bar(0x08, &mut [0; 4]);
        beside.on_readable();
    }));
    host.watchdog.on_readable();
    assert_eq!(*host.readings.lock().unwrap() - before, 1);
}

#[test]
fn a_first_stage_that_was_not_reported_does_not_hide_the_deadline() {
    let host = Host::new(1);
    host.time.advance(TIMEOUT - MILLISECOND * 50);
    host.watchdog.unlock();
    host.starve(MILLISECOND * 60);
    host.watchdog.on_readable();
    assert_eq!(host.fired(), []);
}

#[test]
fn saving_a_starved_guest_causes_no_timeout() {
    let host = Host::new(1);
    host.starve(TIMEOUT * 3 / 2);
    host.watchdog.clock().pause();
    let state = host.watchdog.save();
    host.watchdog.clock().resume();
    host.watchdog.on_readable();
    assert_eq!(host.fired(), []);
    assert_eq!(state.vm_time(), host.watchdog.clock().now());
}

#[test]
fn a_timer_without_heartbeats_does_not_accumulate_compensation() {
    let host = Host::idle(1, Policy::new(Action::None));
    host.watchdog.set_preloads(512);
    // Free running: the counter restarts after each timeout.
    host.watchdog.write_config(0x68, &[0x06]);
    for _ in 0..1000 {
        host.time.advance(MILLISECOND * 200);
        host.watchdog.on_readable();
    }
    assert!(host.fired().len() > 100);
    let mut starved = Duration::ZERO;
    while host.fired().is_empty() {
        host.starve(MILLISECOND * 100);
        starved += MILLISECOND * 100;
        host.watchdog.on_readable();
        assert!(starved < UNIT * 1024 * (DEFAULT_STEAL_LIMIT + 1));
    }
}

#[test]
fn the_grace_period_is_not_extended_by_steal_time() {
    let host = Host::idle(1, Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Poweroff));
    host.watchdog.start(1);
    host.time.advance(SECOND);
    host.watchdog.on_readable();
    assert_eq!(host.fired(), [(Stage::Timeout, Action::Shutdown)]);
    for _ in 0..340 {
        // One heartbeat before each reading.
        host.watchdog.ping();
        host.starve(MILLISECOND * 90);
        host.watchdog.on_readable();
    }
    assert!(host.fired().contains(&(Stage::Escalation, Action::Poweroff)));
    let fresh = Watchdog::builder("wd", device(InterruptPin::None)).build(|_: &Event| Ok(())).unwrap();
    assert_eq!(fresh.restore(&host.watchdog.save()), Ok(()));
}

#[test]
fn a_fast_timer_causes_a_bounded_rate_of_readings() {
    let host = Host::new(1);
    host.watchdog.start(1);
    for _ in 0..1000 {
        host.time.advance(MILLISECOND);
        host.watchdog.ping();
        host.watchdog.on_readable();
    }
    let readings = *host.readings.lock().unwrap();
    assert!(readings <= 11, "{readings} in a second");
}

#[test]
fn heartbeats_cause_no_reading() {
    let host = Host::new(1);
    let before = *host.readings.lock().unwrap();
    for _ in 0..1000 {
        host.time.advance(UNIT);
        host.watchdog.ping();
    }
    assert_eq!(*host.readings.lock().unwrap(), before);
}

#[test]
fn a_host_without_run_delays_gives_no_compensation() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    struct Broken;
    impl vm_watchdog::RunDelay for Broken {
        fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
            Err(io::Error::other("no schedstat"))
        }
    }
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).compensate_steal_time(Broken, 4);
    let watchdog = builder.build(handler).unwrap();
    watchdog.start(512);
    time.advance(UNIT * 1024);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Timeout, Action::Reset)]);
    assert_eq!(watchdog.stats().run_delay_failures, 2, "at the start and at the deadline");
}

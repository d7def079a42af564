//! When the core has the host woken, and when it has the run delay read: not more often than is stated.

use super::*;
use crate::core::MIN_WAKE_INTERVAL;
use crate::core::steal_time::READING_INTERVAL;

/// The thread that serves the timer is woken, and finds nothing to do.
fn wake(bench: &mut Bench<I6300esb>, after: Duration) -> Option<VmInstant> {
    bench.now = bench.now + after;
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), None);
    bench.core.next_wake()
}

#[test]
fn a_guest_with_a_fast_timer_wakes_the_host_a_thousand_times_a_second() {
    let mut bench = Bench::new(Policy::new(Action::None));
    // Free running at 1 MHz, with two stages of 960 ns.
    bench.access(|device, now| device.write_config(0x60, &[0x04], now));
    bench.unlocked(0x00, 1);
    bench.unlocked(0x04, 1);
    bench.lock_register(6);
    let end = bench.now + SECOND;
    while let Some(wake) = bench.core.next_wake().filter(|wake| *wake <= end) {
        bench.now = bench.now.max(wake);
        bench.serve();
        assert!(bench.core.stats(bench.now).wakes <= 1001, "at {}", bench.now);
    }
    assert!(bench.core.stats(bench.now).wakes >= 999);
}

#[test]
fn a_thread_that_a_guest_wakes_too_early_looks_again_after_two_intervals() {
    let mut bench = Bench::new(Policy::default());
    bench.start(512);
    let deadline = Some(bench.now + UNIT * 512);
    assert_eq!(wake(&mut bench, MILLISECOND * 10), deadline);
    assert_eq!(wake(&mut bench, MIN_WAKE_INTERVAL), deadline, "not too early");
    let soon = MIN_WAKE_INTERVAL - Duration::from_nanos(1);
    assert_eq!(wake(&mut bench, soon), Some(bench.now + MIN_WAKE_INTERVAL * 2));
    assert_eq!(wake(&mut bench, MIN_WAKE_INTERVAL * 2), deadline);
    // Twice at the same instant, as where time stands still: the second does not wait for time that does not pass.
    assert_eq!(wake(&mut bench, Duration::ZERO), Some(bench.now + MIN_WAKE_INTERVAL * 2));
    assert_eq!(wake(&mut bench, Duration::ZERO), deadline);
}

/// A guest on a host that reads the run delay, with one vCPU.
fn read_for() -> Bench<I6300esb> {
    let mut bench = Bench::with_steal_limit(Policy::new(Action::Reset), Some(4));
    bench.delays = vec![VcpuDelay::new(0, Duration::ZERO)];
    bench
}

#[test]
fn an_access_or_a_wake_has_the_run_delay_read_only_if_something_asks_for_it() {
    let mut bench = read_for();
    assert_eq!(bench.core.reading(bench.now), None, "the watchdog is not started");
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), None);
    bench.start(512);
    bench.now = bench.now + READING_INTERVAL * 2;
    assert_eq!(bench.core.reading(bench.now), None, "no deadline has come");
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::ReadRunDelay), "the timer went off");
    bench.core.put_back(Call::ReadRunDelay);
    assert_eq!(bench.core.reading(bench.now), Some(Call::ReadRunDelay), "what a pause has prevented is made up for");
}

#[test]
fn a_deadline_waits_for_a_reading_that_comes_a_tenth_of_a_second_after_the_last() {
    let mut bench = read_for();
    let started = bench.now;
    bench.start(20);
    for millis in [20, 50, 99] {
        bench.now = started + MILLISECOND * millis;
        bench.core.wake(bench.now);
        assert_eq!(bench.core.next_call(bench.now), None, "after {millis} ms");
    }
    bench.run(MILLISECOND * 10);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
}

#[test]
fn an_access_after_a_deadline_has_the_run_delay_read_before_the_model_is_told_the_time() {
    let mut bench = read_for();
    bench.start(512);
    bench.now = VmInstant::ZERO + UNIT * 512 - Duration::from_nanos(1);
    assert_eq!(bench.core.reading(bench.now), None);
    bench.now = VmInstant::ZERO + UNIT * 512;
    assert_eq!(bench.core.reading(bench.now), Some(Call::ReadRunDelay));
}

#[test]
fn a_deadline_comes_as_it_is_if_the_run_delay_cannot_be_read() {
    let mut bench = read_for();
    bench.start(512);
    bench.now = VmInstant::ZERO + UNIT * 512;
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::ReadRunDelay));
    bench.core.run_delay(None, bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::SetLine(true)));
}

#[test]
fn the_steal_time_of_the_period_is_part_of_the_saved_state() {
    let mut bench = read_for();
    bench.start(512);
    bench.run(MILLISECOND * 10);
    bench.delays[0].delay += TIMEOUT / 4;
    bench.run(TIMEOUT);
    let starved = bench.core.stats(bench.now).starved;
    assert_eq!(starved, TIMEOUT / 4);
    let state = bench.core.save(bench.now);
    assert_eq!(state.compensated_in_period_ns, starved.as_nanos() as u64);
    bench.ping();
    assert_eq!(bench.core.save(bench.now).compensated_in_period_ns, 0);
}

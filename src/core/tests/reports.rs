//! What the core reports: statistics, notices of guests that are not protected, and what follows from a policy that changes.

use super::*;
use crate::core::Notice;

#[test]
fn the_statistics_tell_what_the_guest_and_the_host_have_done() {
    let policy = Policy::new(Action::InjectNmi);
    let mut bench = Bench::new(policy);
    assert_eq!(bench.core.policy(), policy);
    bench.run(SECOND);
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.now, stats.armed, stats.time_left, stats.last_heartbeat), (bench.now, false, None, None));

    bench.start(512);
    bench.run(UNIT * 100);
    bench.ping();
    let fed = bench.now;
    bench.bar(0x00, 7); // without the keys
    bench.run(UNIT * 24);
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.now, stats.armed, stats.time_left), (bench.now, true, Some(UNIT * 1000)));
    assert_eq!((stats.last_heartbeat, bench.core.last_heartbeat()), (Some(fed), Some(fed)));
    assert_eq!((stats.heartbeats, stats.ignored_accesses, stats.wakes), (1, 1, 0));

    bench.run(TIMEOUT);
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.pretimeouts, stats.expiries, stats.actions, stats.wakes), (1, 1, 1, 2));
    assert_eq!((stats.action_failures, stats.interrupt_failures, stats.run_delay_failures), (0, 0, 0));
    assert_eq!((stats.starved, stats.unprotected), (Duration::ZERO, false));
}

#[test]
fn failures_of_each_call_are_counted() {
    let mut bench = Bench::with_steal_limit(Policy::default(), Some(2));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT);
    assert_eq!(bench.core.stats(bench.now).action_failures, 1);
    bench.core.line_set(false);
    assert_eq!(bench.core.stats(bench.now).interrupt_failures, 1);
    bench.core.run_delay(None, bench.now);
    assert_eq!(bench.core.stats(bench.now).run_delay_failures, 1);
}

/// A guest that has armed its watchdog with a timeout of `UNIT * 4096`, of which the device knows nothing after a reset.
fn forgotten(rearms: bool) -> Bench<I6300esb> {
    let connections = Connections { rearms, ..Connections::default() };
    let mut bench = Bench::of(I6300esb::new(I6300esbConfig::default()), Policy::default(), connections);
    bench.start(2048);
    bench.core.reset();
    bench
}

/// The notices while the guest feeds so many times.
fn notices(bench: &mut Bench<I6300esb>, times: u32, interval: Duration) -> Vec<Notice> {
    let mut notices = Vec::new();
    for _ in 0..times {
        bench.run(interval);
        bench.access(|device, now| device.read_config(0x60, &mut [0], now));
        bench.ping();
        notices.extend(bench.core.take_notice());
        assert_eq!(bench.core.take_notice(), None, "one notice is taken once");
    }
    notices
}

#[test]
fn a_guest_that_feeds_a_forgotten_watchdog_gets_it_back_if_the_host_wants_that() {
    let mut bench = forgotten(true);
    assert_eq!(notices(&mut bench, 4, SECOND), [Notice::Rearmed(UNIT * 4096)]);
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.heartbeats_while_disarmed, stats.heartbeats, stats.rearmed), (3, 2, 1));
    assert_eq!((stats.armed, stats.unprotected, stats.found_unprotected), (true, false, 0));
}

#[test]
fn a_guest_that_does_not_get_its_watchdog_back_is_unprotected_until_it_arms_or_disarms_it() {
    // Without the option; and a guest that feeds no faster than the timeout that is known: it has set another one.
    for (rearms, interval) in [(false, SECOND), (true, UNIT * 4096), (true, UNIT * 4097)] {
        let mut bench = forgotten(rearms);
        assert_eq!(notices(&mut bench, 4, interval), [Notice::Unprotected], "{interval:?}");
        let stats = bench.core.stats(bench.now);
        assert_eq!((stats.heartbeats_while_disarmed, stats.found_unprotected, stats.rearmed), (4, 1, 0));
        assert!(stats.unprotected && !stats.armed);
        bench.lock_register(0);
        assert!(!bench.core.stats(bench.now).unprotected, "it knows that the watchdog is disarmed");
        assert_eq!(notices(&mut bench, 4, interval), []);
    }
}

#[test]
fn a_guest_that_feeds_just_faster_than_its_timeout_gets_its_watchdog_back() {
    let mut bench = forgotten(true);
    let interval = UNIT * 4096 - Duration::from_nanos(1);
    assert_eq!(notices(&mut bench, 3, interval), [Notice::Rearmed(UNIT * 4096)]);
}

#[test]
fn a_new_policy_counts_for_a_pretimeout_that_is_to_come() {
    for action in [Action::None, Action::Dump] {
        let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
        bench.start(512);
        // Stage 1 has ended. The action is due a quarter of the timeout before its end.
        bench.run(UNIT * 600);
        bench.core.set_policy(Policy::new(Action::Reset).with_pretimeout(action), bench.now);
        let wakes = bench.core.stats(bench.now).wakes;
        bench.run(UNIT * 400);
        let told = if action == Action::None { vec![] } else { vec![(Stage::Pretimeout, action, 1)] };
        assert_eq!(bench.core.stats(bench.now).wakes - wakes, told.len() as u64, "no wake for nothing");
        assert_eq!(bench.told(), told);
    }
}

#[test]
fn the_end_of_an_interrupt_has_the_line_raised_again_while_the_device_asserts_it() {
    let mut bench = Bench::new(Policy::default());
    bench.start(512);
    bench.run(UNIT * 600);
    assert_eq!(bench.levels, [true]);
    bench.core.resample_interrupt();
    bench.serve();
    assert_eq!(bench.levels, [true, true]);
    bench.bar(0x08, 1);
    bench.core.resample_interrupt();
    bench.serve();
    assert_eq!(bench.levels, [true, true, false]);
}

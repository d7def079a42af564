//! The end of a first stage: its action, its margin before the timeout, and whether it wakes the host.

use super::*;

#[test]
fn each_episode_has_its_own_pretimeout() {
    let mut bench = Bench::new(Policy::new(Action::None).with_pretimeout(Action::InjectNmi));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT * 3 / 4);
    assert_eq!(bench.told(), [(Stage::Pretimeout, Action::InjectNmi, 1)]);
    bench.ping();
    let fed = bench.now;
    bench.run(TIMEOUT * 3 / 4 - Duration::from_nanos(1));
    assert_eq!(bench.told(), [], "the failed one is not tried again on a guest that has fed since");
    bench.performs = true;
    bench.run(Duration::from_nanos(1));
    let (at, pretimeout) = bench.told[0];
    assert_eq!((at, pretimeout.deadline, pretimeout.attempt), (fed + TIMEOUT * 3 / 4, fed + TIMEOUT * 3 / 4, 1));
}

#[test]
fn a_guest_that_feeds_at_half_of_its_timeout_never_sees_the_pretimeout_action() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    bench.start(512);
    for _ in 0..100 {
        // systemd feeds at half of the timeout; the host is busy and lets it be 24 % late.
        bench.run(TIMEOUT * 74 / 100);
        bench.ping();
        bench.bar(0x08, 1);
    }
    assert_eq!(bench.told(), []);
    assert_eq!(bench.levels, [true, false].repeat(100), "the interrupt comes at the end of stage 1, as in hardware");
}

#[test]
fn the_margin_of_the_pretimeout_is_the_policys_and_ends_with_stage_1() {
    let at = |before: Option<Duration>, first: u32, second: u32| {
        let mut policy = Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi);
        policy.pretimeout_before = before;
        let mut bench = Bench::new(policy);
        bench.unlocked(0x00, first);
        bench.unlocked(0x04, second);
        bench.lock_register(2);
        bench.run(UNIT * (first + second));
        assert_eq!(
            bench.told.iter().map(|(_, told)| told.stage).collect::<Vec<_>>(),
            [Stage::Pretimeout, Stage::Timeout]
        );
        bench.told[0].1.deadline
    };
    let units = |units: u32| VmInstant::ZERO + UNIT * units;
    assert_eq!(at(None, 500, 500), units(750));
    assert_eq!(at(None, 100, 900), units(750));
    assert_eq!(at(None, 900, 100), units(900), "not before the end of stage 1");
    assert_eq!(at(Some(UNIT * 10), 500, 500), units(990));
    assert_eq!(at(Some(Duration::ZERO), 500, 500), units(1000));
    assert_eq!(at(Some(SECOND * 3600), 500, 500), units(500));
}

#[test]
fn a_guest_that_stops_its_watchdog_gets_no_pretimeout() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    bench.start(512);
    bench.run(UNIT * 600);
    bench.lock_register(0);
    bench.run(SECOND * 10);
    assert_eq!(bench.told(), []);
    assert_eq!(bench.core.next_wake(), None);
}

#[test]
fn an_action_that_is_none_needs_no_pretimeout() {
    let mut bench = Bench::new(Policy::new(Action::None));
    bench.start(512);
    bench.run(TIMEOUT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::None, 1)], "the runtime takes note and performs nothing");
    assert_eq!(bench.core.stats(bench.now).pretimeouts, 1);
}

/// Linux's driver: no interrupt at the end of stage 1.
fn started_without_interrupt(policy: Policy) -> Bench<I6300esb> {
    let mut bench = Bench::new(policy);
    bench.access(|device, now| device.write_config(0x60, &[0x03], now));
    bench.start(512);
    bench
}

#[test]
fn the_end_of_a_first_stage_wakes_the_host_only_if_something_happens_then() {
    let [stage_1, timeout] = [UNIT * 512, TIMEOUT].map(|length| Some(VmInstant::ZERO + length));
    let silent = Policy::new(Action::Reset);
    let with_action = Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi);
    assert_eq!(started_without_interrupt(silent).core.next_wake(), timeout);
    assert_eq!(started_without_interrupt(with_action).core.next_wake(), stage_1);

    let mut bench = started_without_interrupt(silent);
    bench.access(|device, now| device.write_config(0x60, &[0x00], now));
    assert_eq!(bench.core.next_wake(), stage_1, "the guest enables the interrupt");
    bench.access(|device, now| device.write_config(0x60, &[0x03], now));
    assert_eq!(bench.core.next_wake(), timeout);
    bench.core.set_policy(with_action, bench.now);
    assert_eq!(bench.core.next_wake(), stage_1, "the operator wants an action");
}

#[test]
fn a_first_stage_that_does_not_wake_the_host_counts_from_its_end() {
    let mut bench = started_without_interrupt(Policy::new(Action::Reset));
    let counted = |bench: &Bench<I6300esb>, now| bench.core.stats(now).pretimeouts;
    let [before, ended, timeout] =
        [UNIT * 512 - Duration::from_nanos(1), UNIT * 512, TIMEOUT].map(|it| VmInstant::ZERO + it);
    assert_eq!([before, ended].map(|now| counted(&bench, now)), [0, 1]);

    bench.now = ended;
    bench.access(|device, now| device.read_bar(0x00, &mut [0; 4], now));
    assert_eq!(counted(&bench, timeout), 1, "an access notes it");
    bench.now = timeout;
    bench.serve();
    let stats = bench.core.stats(timeout);
    assert_eq!((stats.pretimeouts, stats.expiries, stats.wakes), (1, 1, 1));
    assert_eq!(bench.told.len(), 1);
}

#[test]
fn a_first_stage_that_ended_without_an_action_has_none_after_a_change_of_the_policy() {
    let mut bench = started_without_interrupt(Policy::new(Action::None));
    bench.now = bench.now + UNIT * 600;
    bench.core.set_policy(Policy::new(Action::None).with_pretimeout(Action::InjectNmi), bench.now);
    bench.serve();
    assert_eq!(bench.told, []);
    assert_eq!(bench.core.stats(bench.now).pretimeouts, 1);
    assert_eq!(bench.core.next_wake(), Some(VmInstant::ZERO + TIMEOUT));
}

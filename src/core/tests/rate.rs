//! A rate of the actions: what it delays, what it suppresses, and what it does not touch.

use super::*;

const INTERVAL: Duration = Duration::from_secs(10);

/// At most three actions at once, and one in ten seconds.
fn limited(policy: Policy) -> Policy {
    policy.with_action_rate(INTERVAL, 3)
}

impl Bench<I6300esb> {
    /// The guest starts its watchdog with two stages of `units`, and lets it expire all the time.
    fn expire_for(&mut self, time: Duration, units: u32) {
        let end = self.now + time;
        self.start(units);
        while self.now < end {
            self.ping();
            self.run(UNIT * (units * 2 + 1));
        }
    }

    /// When the handler was called to perform an action, in seconds.
    fn seconds(&self) -> Vec<u64> {
        self.told.iter().map(|(at, _)| at.as_nanos() / 1_000_000_000).collect()
    }

    /// Spends the burst: three timeouts whose action is performed. The fourth is on its way.
    fn spend_burst(&mut self) {
        self.start(1);
        for _ in 0..3 {
            self.ping();
            self.run(UNIT * 3);
        }
        assert_eq!(self.told.len(), 3);
        self.told.clear();
        self.ping();
    }

    /// The fourth comes, and the handler is being told that its action is delayed.
    fn begin_to_tell(&mut self) {
        self.now = self.now + UNIT * 2;
        self.core.wake(self.now);
        while let Some(call) = self.core.next_call(self.now) {
            match call {
                Call::Withhold(..) => return,
                call => self.make(call),
            }
        }
        panic!("nothing is delayed");
    }
}

#[test]
fn a_guest_that_lets_its_watchdog_expire_all_the_time_drives_a_burst_and_one_action_in_each_interval() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.expire_for(SECOND * 45, 1);
    assert_eq!(bench.seconds(), [0, 0, 0, 10, 20, 30, 40]);
    let stats = bench.core.stats(bench.now);
    assert!(stats.expiries > 10_000, "{stats:?}");
    assert_eq!((stats.actions, stats.delayed_actions), (7, 5));
    assert_eq!(stats.actions + stats.suppressed_actions + 1, stats.expiries, "one is delayed still");
    assert_eq!(bench.withheld.len(), 5, "each delay is told once");
}

#[test]
fn a_timeout_beyond_the_rate_is_performed_as_soon_as_the_rate_permits_and_its_grace_begins_then() {
    let policy = Policy::new(Action::Dump).with_escalation(SECOND, Action::Reset);
    let mut bench = Bench::new(limited(policy));
    bench.spend_burst();
    let deadline = bench.now + UNIT * 2;
    bench.run(SECOND * 8);
    assert_eq!(bench.told(), [], "the escalation does not come before the action");
    let [(at, delayed, Some(until))] = bench.withheld[..] else { panic!("{:?}", bench.withheld) };
    assert!(at >= deadline && at <= deadline + MILLISECOND && delayed.deadline == deadline, "{delayed:?} at {at}");
    bench.run(SECOND * 10);
    let seen: Vec<_> = bench.told.iter().map(|(at, it)| (*at, it.stage, it.deadline, it.attempt)).collect();
    assert_eq!(
        seen,
        [(until, Stage::Timeout, deadline, 1), (until + SECOND, Stage::Escalation, until + SECOND, 1)],
        "with its own deadline, and as a first attempt"
    );
    assert!(bench.told[0].1.is_delayed);
}

#[test]
fn a_guest_that_recovers_from_a_delayed_timeout_is_not_escalated() {
    let policy = Policy::new(Action::Dump).with_escalation(SECOND, Action::Reset);
    let mut bench = Bench::new(limited(policy));
    bench.spend_burst();
    bench.run(SECOND);
    bench.start(60_000);
    bench.ping();
    bench.run(SECOND * 30);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Dump, 1)]);
}

#[test]
fn a_pretimeout_beyond_the_rate_is_suppressed_and_delays_no_timeout() {
    let mut bench = Bench::new(limited(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi)));
    bench.unlocked(0x00, 1);
    bench.unlocked(0x04, 3);
    bench.lock_register(2);
    for _ in 0..100 {
        // After the pretimeout action, which is due after three of the four units.
        bench.ping();
        bench.run(UNIT * 7 / 2);
    }
    assert_eq!(bench.told(), [(Stage::Pretimeout, Action::InjectNmi, 1); 2], "the third is kept for a timeout");
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.pretimeouts, stats.suppressed_actions, stats.delayed_actions), (100, 98, 0));
    assert!(
        bench.withheld.iter().all(|(_, pretimeout, until)| pretimeout.stage == Stage::Pretimeout && until.is_none())
    );
    bench.run(UNIT);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
}

#[test]
fn a_reset_and_an_acknowledgement_drop_what_is_delayed_and_refill_nothing() {
    let drops: [fn(&mut Core<I6300esb>); 2] = [Core::reset, Core::acknowledge];
    for drop in drops {
        let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
        for _ in 0..100 {
            bench.start(1);
            bench.ping();
            bench.run(UNIT * 3);
            drop(&mut bench.core);
        }
        assert_eq!(bench.told().len(), 3);
        let stats = bench.core.stats(bench.now);
        assert_eq!((stats.delayed_actions, stats.suppressed_actions), (97, 97));
        bench.run(SECOND * 60);
        assert_eq!(bench.told(), []);
    }
}

#[test]
fn a_reset_while_the_handler_is_told_of_a_delay_drops_the_action_too() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.spend_burst();
    bench.begin_to_tell();
    bench.core.reset();
    bench.core.told(bench.now);
    bench.run(SECOND * 60);
    assert_eq!(bench.told(), []);
    let stats = bench.core.stats(bench.now);
    assert_eq!((stats.delayed_actions, stats.suppressed_actions), (1, 1));
}

#[test]
fn a_vm_saved_while_the_handler_is_told_of_a_delay_has_the_delay_in_its_state() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.spend_burst();
    bench.begin_to_tell();
    let timeout = bench.core.save(bench.now).timeout.expect("the one that is delayed");
    assert!(timeout.is_delayed);
    let left = Duration::from_nanos(timeout.due_in_ns);
    assert!(left > INTERVAL - MILLISECOND * 20 && left < INTERVAL, "{left:?}");
}

#[test]
fn a_policy_that_changes_while_the_handler_is_told_of_a_delay_counts_for_it() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.spend_burst();
    bench.begin_to_tell();
    bench.core.set_policy(Policy::new(Action::InjectNmi), bench.now);
    bench.core.told(bench.now);
    bench.run(MILLISECOND * 2);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1)]);
}

#[test]
fn retries_are_not_counted_and_a_delay_is_no_failure() {
    let policy = Policy::new(Action::Dump).with_escalation(SECOND * 60, Action::Reset);
    let mut bench = Bench::new(policy.with_action_rate(INTERVAL, 1));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT + MILLISECOND * 700);
    assert_eq!(bench.told(), [1, 2, 3, 4].map(|attempt| (Stage::Timeout, Action::Dump, attempt)));
    // The next episode: its first attempt is delayed, and then has five attempts of its own.
    bench.ping();
    bench.run(SECOND * 8);
    assert_eq!(bench.told(), []);
    bench.run(SECOND * 4);
    assert_eq!(bench.told.iter().map(|(_, it)| it.is_delayed).collect::<Vec<_>>()[..3], [true, false, false]);
    let attempts = [1, 2, 3, 4, 5].map(|attempt| (Stage::Timeout, Action::Dump, attempt));
    assert_eq!(bench.told()[..6], [&attempts[..], &[(Stage::Escalation, Action::Reset, 1)]].concat());
}

#[test]
fn an_escalation_is_not_delayed_and_drops_no_delayed_timeout() {
    // The guest that is shutting down times out again and again while its escalation is to come.
    let policy = Policy::new(Action::Shutdown).with_escalation(SECOND * 3, Action::Dump);
    let mut bench = Bench::new(policy.with_action_rate(INTERVAL, 1));
    bench.start(512);
    bench.run(TIMEOUT);
    bench.ping();
    bench.run(SECOND * 7);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Shutdown, 1), (Stage::Escalation, Action::Dump, 1)]);
    bench.run(SECOND * 7);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Shutdown, 1), (Stage::Escalation, Action::Dump, 1)]);
}

#[test]
fn a_restored_watchdog_has_what_is_left_in_its_state_or_in_itself_whichever_is_less() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.start(1);
    bench.ping();
    let fresh = bench.core.save(bench.now);
    for _ in 0..100 {
        bench.core.restore(&fresh, bench.now).unwrap();
        bench.run(UNIT * 3);
    }
    assert_eq!(bench.told().len(), 3, "a state of before gives no new burst");

    let spent = bench.core.save(bench.now);
    assert_eq!((fresh.actions_spent, spent.actions_spent), (0, 3));
    let mut other = Bench::new(limited(Policy::new(Action::Dump)));
    other.core.restore(&spent, other.now).unwrap();
    other.run(SECOND * 5);
    assert_eq!(other.told(), [], "nor does another process");
    other.run(SECOND * 5);
    assert!(other.told.iter().all(|(at, told)| told.is_delayed && told.deadline < *at), "{:?}", other.told);
    assert_eq!(other.told(), [(Stage::Timeout, Action::Dump, 1)], "what is delayed is not lost");
}

#[test]
fn what_is_delayed_in_a_restored_state_waits_until_the_watchdog_itself_has_one_left() {
    let mut source = Bench::new(limited(Policy::new(Action::Dump)));
    source.spend_burst();
    source.run(SECOND * 5);
    let delayed = source.core.save(source.now);

    let mut target = Bench::new(limited(Policy::new(Action::Dump)));
    target.run(SECOND * 5);
    target.spend_burst();
    let spent = target.now;
    target.core.restore(&delayed, target.now).unwrap();
    let wakes = target.core.stats(target.now).wakes;
    target.run(SECOND * 9);
    assert_eq!(target.told(), []);
    assert!(target.core.stats(target.now).wakes - wakes <= 2, "the host is not woken again and again meanwhile");
    target.run(SECOND * 2);
    let [(at, _)] = target.told[..] else { panic!("{:?}", target.told) };
    assert!(at > spent + SECOND * 9);
}

#[test]
fn a_guest_that_recovers_from_a_delayed_timeout_and_times_out_again_is_escalated() {
    let policy = Policy::new(Action::Dump).with_escalation(SECOND, Action::Reset);
    let mut bench = Bench::new(limited(policy));
    bench.spend_burst();
    bench.run(SECOND);
    bench.ping();
    bench.run(SECOND * 30);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Dump, 1), (Stage::Escalation, Action::Reset, 1)]);
}

#[test]
fn a_new_policy_counts_for_what_is_delayed() {
    let without_rate = Policy::new(Action::Dump);
    let shorter = without_rate.with_action_rate(SECOND, 3);
    for (policy, pause) in [
        (without_rate, Duration::ZERO),
        (Policy::new(Action::None), Duration::ZERO),
        (limited(Policy::new(Action::None)), Duration::ZERO),
        (shorter, SECOND),
    ] {
        let mut bench = Bench::new(limited(without_rate));
        bench.spend_burst();
        bench.run(SECOND);
        assert_eq!(bench.told(), []);
        let changed = bench.now;
        bench.core.set_policy(policy, changed);
        bench.run(SECOND * 5);
        let calls: Vec<_> = bench.told.iter().map(|(at, it)| (*at, it.action)).collect();
        assert_eq!(calls, [(changed + pause, policy.timeout)]);
    }
}

#[test]
fn a_call_that_the_pause_overtook_spends_nothing_and_is_told_once() {
    let mut bench = Bench::new(limited(Policy::new(Action::Dump)));
    bench.start(1);
    for _ in 0..4 {
        bench.ping();
        bench.now = bench.now + UNIT * 3;
        for _ in 0..10 {
            bench.core.wake(bench.now);
            let call = loop {
                match bench.core.next_call(bench.now).expect("a call") {
                    call @ (Call::Perform(_) | Call::Withhold(..)) => break call,
                    call => bench.make(call),
                }
            };
            bench.core.put_back(call);
        }
        bench.serve();
    }
    assert_eq!((bench.told.len(), bench.withheld.len()), (3, 1));
}

#[test]
fn none_costs_nothing() {
    let mut bench = Bench::new(limited(Policy::new(Action::None)));
    bench.expire_for(SECOND, 1);
    assert!(bench.told().len() > 100);
    assert_eq!(bench.core.stats(bench.now).suppressed_actions, 0);
}

//! A host that is late: several things have happened before the core is asked for the next call.

use super::*;

fn units(units: u32) -> VmInstant {
    VmInstant::ZERO + UNIT * units
}

/// Stage and deadline of what the handler was told since the last question.
fn deadlines(bench: &mut Bench<I6300esb>) -> Vec<(Stage, VmInstant)> {
    std::mem::take(&mut bench.told).into_iter().map(|(_, told)| (told.stage, told.deadline)).collect()
}

/// A pretimeout action a quarter of the timeout before its end.
fn with_pretimeout() -> Policy {
    Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi)
}

#[test]
fn both_stages_are_told_with_their_own_deadlines_after_the_timeout() {
    let mut bench = Bench::new(with_pretimeout());
    bench.start(512);
    bench.now = units(5000);
    bench.serve();
    assert_eq!(deadlines(&mut bench), [(Stage::Pretimeout, units(768)), (Stage::Timeout, units(1024))]);
    bench.run(SECOND * 60);
    assert_eq!(deadlines(&mut bench), []);
}

#[test]
fn a_first_stage_after_a_timeout_belongs_to_the_next_cycle_of_a_free_running_watchdog() {
    let mut bench = Bench::new(with_pretimeout());
    bench.unlocked(0x00, 512);
    bench.unlocked(0x04, 512);
    bench.lock_register(6);
    bench.run(UNIT * 512);
    // The timeout at 1024 and the end of the next first stage at 1536 are found together.
    bench.now = units(1540);
    bench.serve();
    assert_eq!(deadlines(&mut bench), [(Stage::Pretimeout, units(768)), (Stage::Timeout, units(1024))]);
    bench.run(UNIT * 510);
    assert_eq!(deadlines(&mut bench), [(Stage::Pretimeout, units(1792)), (Stage::Timeout, units(2048))]);
}

#[test]
fn an_acknowledgement_drops_no_pretimeout_that_the_handler_was_not_told_yet() {
    let mut bench = Bench::new(with_pretimeout());
    bench.start(512);
    bench.now = units(800);
    bench.bar(0x08, 1);
    bench.core.acknowledge();
    bench.serve();
    assert_eq!(bench.told(), [(Stage::Pretimeout, Action::InjectNmi, 1)]);
}

#[test]
fn a_new_policy_counts_for_a_pretimeout_that_the_handler_was_not_told_yet() {
    for action in [Action::None, Action::Dump] {
        let mut bench = Bench::new(with_pretimeout());
        bench.start(512);
        bench.now = units(800);
        bench.bar(0x08, 1);
        bench.core.set_policy(Policy::new(Action::Reset).with_pretimeout(action), bench.now);
        bench.serve();
        let told = if action == Action::None { vec![] } else { vec![(Stage::Pretimeout, action, 1)] };
        assert_eq!(bench.told(), told);
    }
}

/// Two timeouts, with a heartbeat after the first.
fn twice(policy: Policy) -> Bench<I6300esb> {
    let mut bench = Bench::new(policy);
    bench.start(512);
    bench.now = bench.now + TIMEOUT;
    bench.ping();
    bench.now = bench.now + TIMEOUT;
    bench
}

#[test]
fn the_first_of_two_timeouts_covers_both() {
    for (action, suppressed) in [(Action::Reset, 1), (Action::None, 0)] {
        let mut bench = twice(Policy::new(action));
        bench.serve();
        assert_eq!(deadlines(&mut bench), [(Stage::Timeout, units(1024))]);
        let stats = bench.core.stats(bench.now);
        assert_eq!((stats.expiries, stats.suppressed_actions), (2, suppressed), "{action}");
    }
}

#[test]
fn a_heartbeat_between_two_timeouts_does_not_show_recovery_from_the_second() {
    let mut bench = twice(nmi_then_poweroff());
    bench.serve();
    bench.run(SECOND * 40);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1), (Stage::Escalation, Action::Poweroff, 1)]);
    // One after the second does.
    let mut bench = twice(nmi_then_poweroff());
    bench.ping();
    bench.lock_register(0);
    bench.serve();
    bench.run(SECOND * 40);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::InjectNmi, 1)]);
}

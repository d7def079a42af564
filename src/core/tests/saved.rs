//! Saved states: what goes on from where it was, and what is refused.

use vm_watchdog_devices::i6300esb::I6300esbStateV1;

use super::*;
use crate::state::{DeliveryStateV1, StageV1, WatchdogStateV1};

type State = WatchdogStateV1<I6300esbStateV1>;

/// Another process, whose clock shows another time.
fn restored(state: &State) -> Bench<I6300esb> {
    let mut bench = Bench::new(Policy::default());
    bench.now = VmInstant::ZERO + SECOND * 5000;
    bench.core.restore(state, bench.now).unwrap();
    bench
}

fn field(state: &State) -> &'static str {
    let mut bench = Bench::new(Policy::default());
    bench.core.restore(state, bench.now).expect_err("a state that is impossible").field
}

/// A timeout that the handler has failed to perform once, with a rate of which one is spent.
fn retried() -> State {
    let mut bench = Bench::new(nmi_then_poweroff().with_action_rate(SECOND * 10, 3));
    bench.performs = false;
    bench.start(512);
    bench.run(TIMEOUT);
    let state = bench.core.save(bench.now);
    assert_eq!(state.timeout.map(|timeout| (timeout.attempt, timeout.due_in_ns)), Some((2, 100_000_000)));
    assert_eq!((state.actions_spent, state.action_refill_in_ns), (1, 10_000_000_000));
    state
}

/// The same as a first attempt that is due now.
fn first(stage: StageV1) -> DeliveryStateV1 {
    DeliveryStateV1 { stage, attempt: 1, due_in_ns: 0, ..retried().timeout.expect("a timeout") }
}

#[test]
fn a_pretimeout_comes_when_it_would_have_come() {
    // Saved in stage 1, in stage 2, and after the pretimeout is due but before the handler is called.
    for saved_at in [100, 600, 800] {
        let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
        bench.start(512);
        if saved_at == 600 {
            bench.run(UNIT * 600);
        }
        bench.now = VmInstant::ZERO + UNIT * saved_at;
        let state = bench.core.save(bench.now);
        assert_eq!(state.pretimeout_in_ns.is_some(), saved_at == 600);
        let mut bench = restored(&state);
        let began = bench.now - UNIT * saved_at;
        bench.run(UNIT * 1024);
        let deadlines: Vec<_> = bench.told.iter().map(|(_, told)| (told.stage, told.deadline)).collect();
        let expected = [(Stage::Pretimeout, began + UNIT * 768), (Stage::Timeout, began + UNIT * 1024)];
        assert_eq!(deadlines, expected, "saved after {saved_at} units");
    }
}

#[test]
fn a_retry_goes_on_with_its_attempts_and_its_pause() {
    let mut bench = restored(&retried());
    bench.performs = false;
    let deadline = bench.now;
    bench.run(MILLISECOND * 100 - Duration::from_nanos(1));
    assert_eq!(bench.told(), []);
    bench.run(Duration::from_nanos(1));
    let [(_, told)] = bench.told[..] else { panic!("{:?}", bench.told) };
    assert_eq!((told.attempt, told.deadline), (2, deadline));
    // Five attempts in all, and then the escalation.
    bench.told.clear();
    bench.run(SECOND * 2);
    let attempts = [3, 4, 5].map(|attempt| (Stage::Timeout, Action::InjectNmi, attempt));
    assert_eq!(bench.told()[..4], [&attempts[..], &[(Stage::Escalation, Action::Poweroff, 1)]].concat());
}

#[test]
fn a_line_whose_level_is_not_known_is_set_after_the_restore() {
    let mut bench = Bench::new(Policy::default());
    bench.start(512);
    bench.now = bench.now + UNIT * 512;
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::SetLine(true)));
    bench.core.line_set(false);
    let mut bench = restored(&bench.core.save(bench.now));
    bench.serve();
    assert_eq!(bench.levels, [true]);
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    let possible = retried();
    let timeout = possible.timeout.expect("a timeout");
    let with = |timeout| State { timeout: Some(timeout), ..possible };
    let escalation = DeliveryStateV1 { due_in_ns: 30_000_000_000, ..first(StageV1::Escalation) };
    let delayed = DeliveryStateV1 { is_delayed: true, due_in_ns: 10_000_000_000, ..first(StageV1::Timeout) };
    let without_escalation = State { policy: Policy::new(Action::Reset).into(), ..possible };
    let without_rate =
        State { policy: nmi_then_poweroff().into(), actions_spent: 0, action_refill_in_ns: 0, ..possible };
    let late = |by| timeout.due_in_ns + by;
    for (state, name) in [
        (State { vm_time_ns: 1 << 63, ..possible }, "vm_time_ns"),
        (State { pretimeout: Some(first(StageV1::Timeout)), ..possible }, "pretimeout.stage"),
        (
            State { pretimeout: Some(DeliveryStateV1 { due_in_ns: 1, ..first(StageV1::Pretimeout) }), ..possible },
            "pretimeout.due_in_ns",
        ),
        (with(DeliveryStateV1 { stage: StageV1::Pretimeout, ..timeout }), "timeout.stage"),
        (with(DeliveryStateV1 { attempt: 0, ..timeout }), "timeout.attempt"),
        (with(DeliveryStateV1 { due_in_ns: late(1), ..timeout }), "timeout.due_in_ns"),
        (with(DeliveryStateV1 { due_in_ns: 1, ..first(StageV1::Timeout) }), "timeout.due_in_ns"),
        (with(DeliveryStateV1 { due_in_ns: delayed.due_in_ns + 1, ..delayed }), "timeout.due_in_ns"),
        (with(DeliveryStateV1 { stage: StageV1::Escalation, ..delayed }), "timeout.due_in_ns"),
        (State { timeout: Some(delayed), ..without_rate }, "timeout.due_in_ns"),
        (State { escalation: Some(first(StageV1::Timeout)), ..possible }, "escalation.stage"),
        (
            State {
                escalation: Some(DeliveryStateV1 { due_in_ns: escalation.due_in_ns + 1, ..escalation }),
                ..possible
            },
            "escalation.due_in_ns",
        ),
        (State { actions_spent: 4, ..possible }, "actions_spent"),
        (State { action_refill_in_ns: 10_000_000_001, ..possible }, "action_refill_in_ns"),
        (State { actions_spent: 1, ..without_rate }, "actions_spent"),
        (State { action_refill_in_ns: 1, ..without_rate }, "action_refill_in_ns"),
        (
            State { escalation: Some(escalation), actions_spent: 0, action_refill_in_ns: 0, ..without_escalation },
            "escalation.stage",
        ),
        (State { grace_remaining_ns: Some(30_000_000_001), ..possible }, "grace_remaining_ns"),
        (State { pretimeout_in_ns: Some(1), ..possible }, "pretimeout_in_ns"),
    ] {
        assert_eq!(field(&state), name);
    }
    for state in [
        possible,
        with(first(StageV1::Timeout)),
        with(delayed),
        State { vm_time_ns: (1 << 63) - 1, ..possible },
        State { escalation: Some(escalation), ..possible },
        State { actions_spent: 3, action_refill_in_ns: 10_000_000_000, ..possible },
        State { grace_remaining_ns: Some(30_000_000_000), ..possible },
        State { pretimeout: Some(first(StageV1::Pretimeout)), pretimeout_in_ns: Some(0), ..possible },
    ] {
        restored(&state);
    }
}

#[test]
fn a_pretimeout_is_to_come_before_the_timeout() {
    let mut bench = Bench::new(Policy::new(Action::Reset).with_pretimeout(Action::InjectNmi));
    bench.start(512);
    bench.run(UNIT * 600);
    let state = bench.core.save(bench.now);
    let left = (UNIT * 424).as_nanos() as u64;
    restored(&State { pretimeout_in_ns: Some(left), ..state });
    assert_eq!(field(&State { pretimeout_in_ns: Some(left + 1), ..state }), "pretimeout_in_ns");
}

#[test]
fn the_escalation_of_an_older_file_comes_at_its_time() {
    // As a number beside the timeout, which may be overdue, or in the place of the timeout.
    let possible = State { timeout: None, ..retried() };
    let due = |nanos| State { grace_remaining_ns: Some(nanos), ..possible };
    let in_its_place = State { timeout: Some(first(StageV1::Escalation)), ..possible };
    for (state, at, deadline) in
        [(due(7_000_000_000), 7, 7), (due(0), 0, 0), (due(-3_000_000_000), 0, -3), (in_its_place, 0, 0)]
    {
        let mut bench = restored(&state);
        let restored_at = bench.now;
        let seconds = |at: VmInstant| (at.as_nanos() as i64 - restored_at.as_nanos() as i64) / 1_000_000_000;
        bench.serve();
        bench.run(SECOND * 30);
        let [(called, escalation)] = bench.told[..] else { panic!("{:?}", bench.told) };
        assert_eq!(escalation.stage, Stage::Escalation);
        assert_eq!((seconds(called), seconds(escalation.deadline)), (at, deadline));
        assert!(escalation.ends_with_heartbeat, "an NMI leaves the guest running");
    }
}

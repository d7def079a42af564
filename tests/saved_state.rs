//! A watchdog is saved at any instant and restored in another process, and an impossible state is refused.
#![cfg(feature = "serde")]

mod common;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::{Driver, UNIT, arrived, device, recorder, sending};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use vm_watchdog::i6300esb::{I6300esb, I6300esbStateV1, InterruptPin};
use vm_watchdog::{
    Action, ActionHandler, Event, HandlerError, ManualClock, Policy, Stage, VmClock, VmInstant, Watchdog, WatchdogState,
};

type State = WatchdogState<I6300esbStateV1>;

/// Files of version 1: without the fields of episodes, without fields that are false or none, without those of the rate of
/// actions, and as it is written now.
const FIRST_GOLDEN: &str = include_str!("golden/i6300esb-v1.json");
const SECOND_GOLDEN: &str = include_str!("golden/i6300esb-v1-episodes.json");
const THIRD_GOLDEN: &str = include_str!("golden/i6300esb-v1-every-field.json");
const GOLDEN: &str = include_str!("golden/i6300esb-v1-action-rate.json");

fn policy() -> Policy {
    Policy::new(Action::Shutdown)
        .with_pretimeout(Action::InjectNmi)
        .with_escalation(Duration::from_secs(1), Action::Poweroff)
        .with_action_rate(Duration::from_secs(10), 3)
}

/// A watchdog whose handler fails as often as a script says, on a clock that shows `start`.
struct Vm {
    watchdog: Watchdog<I6300esb>,
    time: ManualClock,
    events: Receiver<Event>,
}

impl Vm {
    fn new(start: Duration, policy: Policy) -> Self {
        let (clock, time) = VmClock::manual();
        time.advance(start);
        let (sender, events) = channel();
        let record = Arc::new(sending(sender));
        // Depends on the event alone, so that the handler of a restored watchdog fails at the same events.
        let handler = move |event: &Event| -> Result<(), HandlerError> {
            record.perform(event)?;
            if (event.attempt + event.stage as u32) % 3 == 0 { Ok(()) } else { Err("not this time".into()) }
        };
        let builder = Watchdog::builder("wd", device(InterruptPin::IntA)).clock(clock).policy(policy);
        Self { watchdog: builder.build(handler).unwrap(), time, events }
    }

    fn step(&self, step: &Step) {
        let watchdog = &self.watchdog;
        match *step {
            Step::Advance(millis) => self.time.advance(Duration::from_micros(u64::from(millis) * 777)),
            Step::Serve => watchdog.on_readable(),
            Step::Ping => watchdog.ping(),
            Step::Enable(lock) => {
                watchdog.write_config(0x68, &[lock]);
            }
            Step::Configure(bits) => {
                watchdog.write_config(0x60, &[bits]);
            }
            Step::Preload(register, units) => watchdog.set_preload(register, units),
            Step::ClearInterrupt => {
                watchdog.write_bar(0x08, &[1]);
            }
            Step::ClearTimeout => watchdog.clear_timeout(),
            Step::Reset => watchdog.reset(),
            Step::Acknowledge => watchdog.acknowledge(),
        }
    }

    /// Everything that a guest and a VMM can observe: registers, events with their age, and the time left.
    fn observe(&self) -> (Vec<u8>, Vec<Seen>, Option<Duration>) {
        let mut registers = vec![0; 0x6C + 16];
        self.watchdog.read_config(0, &mut registers[..0x6C]);
        self.watchdog.read_bar(0, &mut registers[0x6C..]);
        let now = self.watchdog.clock().now();
        let seen = |event: Event| {
            let (deadline, observed) = (event.deadline, event.observed);
            let ago = now.saturating_duration_since(deadline);
            (event.stage, event.action, event.attempt, ago, now.saturating_duration_since(observed))
        };
        (registers, self.events.try_iter().map(seen).collect(), self.watchdog.stats().time_left)
    }
}

/// Stage, action, attempt, time since its deadline, and time since its report.
type Seen = (Stage, Action, u32, Duration, Duration);

#[derive(Clone, Debug)]
enum Step {
    Advance(u16),
    Serve,
    Ping,
    Enable(u8),
    Configure(u8),
    Preload(u64, u32),
    ClearInterrupt,
    ClearTimeout,
    Reset,
    Acknowledge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3000_u16).prop_map(Step::Advance),
        4 => Just(Step::Serve),
        2 => Just(Step::Ping),
        3 => prop_oneof![Just(2_u8), Just(2), Just(0), Just(6)].prop_map(Step::Enable),
        1 => prop_oneof![Just(0_u8), Just(0x03), Just(0x04), Just(0x20)].prop_map(Step::Configure),
        2 => (prop_oneof![Just(0x00_u64), Just(0x04)], 0..600_u32).prop_map(|(register, units)| Step::Preload(register, units)),
        1 => Just(Step::ClearInterrupt),
        1 => Just(Step::ClearTimeout),
        1 => Just(Step::Reset),
        1 => Just(Step::Acknowledge),
    ];
    proptest::collection::vec(step, 4..20)
}

/// Counterexamples are kept beside this file and tried first. `PROPTEST_CASES` sets fewer cases, as for an emulated
/// processor.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100_000);
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as _);
    ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// One VM continues. The other is saved at any step, written as JSON, and restored as in another process.
    #[test]
    fn a_restored_watchdog_behaves_as_one_that_was_not_saved(steps in steps(), at in any::<prop::sample::Index>()) {
        let start = Duration::from_secs(1000);
        let stays = Vm::new(start, policy());
        let (before, after) = steps.split_at(at.index(steps.len()));
        before.iter().for_each(|step| stays.step(step));
        stays.observe();

        let state = serde_json::to_string(&stays.watchdog.save()).unwrap();
        let state: State = serde_json::from_str(&state).unwrap();
        let moved = Vm::new(start + Duration::from_secs(123_456), Policy::default());
        moved.time.advance(stays.watchdog.clock().now().saturating_duration_since(VmInstant::ZERO));
        moved.watchdog.restore_with_policy(&state).unwrap();
        for step in after {
            stays.step(step);
            moved.step(step);
            prop_assert_eq!(stays.observe(), moved.observe());
        }
    }
}

/// A watchdog with a running stage, a retry and a first unlock key.
fn busy() -> Watchdog<I6300esb> {
    let vm = Vm::new(Duration::ZERO, policy());
    vm.watchdog.start(512);
    // Free running: the next cycle begins while the action of the last one is still being retried.
    vm.watchdog.write_config(0x68, &[0x06]);
    vm.time.advance(UNIT * 1024);
    vm.watchdog.on_readable();
    vm.time.advance(UNIT * 100);
    vm.watchdog.write_bar(0x0C, &[0x80]);
    vm.watchdog
}

#[test]
fn every_state_of_version_1_can_be_read() {
    for golden in [FIRST_GOLDEN, SECOND_GOLDEN, THIRD_GOLDEN, GOLDEN] {
        let state: State = serde_json::from_str(golden).expect("a golden file of version 1");
        let (handler, events) = recorder();
        let (clock, time) = VmClock::manual();
        time.advance(state.vm_time().saturating_duration_since(VmInstant::ZERO));
        let watchdog = Watchdog::builder("wd", device(InterruptPin::IntA)).clock(clock).build(handler).unwrap();
        watchdog.restore_with_policy(&state).unwrap();
        let saved = serde_json::to_string(&watchdog.save()).unwrap();
        watchdog.restore_with_policy(&serde_json::from_str(&saved).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&watchdog.save()).unwrap(), saved);
        time.advance(Duration::from_nanos(1_696_000));
        watchdog.on_readable();
        assert!(arrived(&events).contains(&(Stage::Timeout, Action::Shutdown)), "the retry comes at its time");
    }
}

#[test]
fn a_busy_watchdog_is_saved_as_in_the_golden_file() {
    assert_eq!(serde_json::to_string_pretty(&busy().save()).unwrap() + "\n", GOLDEN);
}

/// Firecracker's snapshots are in this format.
#[test]
fn a_state_can_be_written_in_a_format_without_field_names() {
    let state = busy().save();
    let written = bitcode::serialize(&state).unwrap();
    assert_eq!(bitcode::deserialize::<State>(&written).unwrap(), state);
}

#[test]
fn a_guest_restored_in_another_process_reads_the_cause_of_the_last_reset() {
    let old = busy();
    old.reset();
    let state = old.save();
    let (handler, _events) = recorder();
    let new = Watchdog::builder("wd", device(InterruptPin::None)).build(handler).unwrap();
    new.restore(&state).unwrap();
    let mut reload = [0; 2];
    new.read_bar(0x0C, &mut reload);
    assert_eq!(u16::from_le_bytes(reload), 0x1200);
}

#[test]
fn the_policy_is_the_operators_unless_that_of_the_saved_vm_is_asked_for() {
    let saved = Vm::new(Duration::ZERO, Policy::new(Action::Poweroff));
    saved.watchdog.start(512);
    let state = saved.watchdog.save();
    for (with_policy, action) in [(false, Action::Pause), (true, Action::Poweroff)] {
        let vm = Vm::new(Duration::ZERO, Policy::new(Action::Pause));
        let restored = if with_policy { vm.watchdog.restore_with_policy(&state) } else { vm.watchdog.restore(&state) };
        restored.unwrap();
        assert_eq!(vm.watchdog.policy(), Policy::new(action));
        vm.time.advance(UNIT * 1024);
        vm.watchdog.on_readable();
        assert_eq!(arrived(&vm.events), [(Stage::Timeout, action)]);
    }
}

#[test]
fn what_was_pending_follows_the_operators_policy() {
    // A timeout whose action failed in the saved VM, and an escalation that the operator's policy no longer has.
    let escalating = Policy::new(Action::Pause).with_escalation(UNIT * 100, Action::Poweroff);
    let saved = Vm::new(Duration::ZERO, escalating);
    saved.watchdog.start(512);
    saved.time.advance(UNIT * 1024);
    saved.watchdog.on_readable();
    let state = saved.watchdog.save();
    assert!(state.is_pending(), "the escalation");

    for (with_policy, is_escalated) in [(false, false), (true, true)] {
        let vm = Vm::new(Duration::ZERO, Policy::new(Action::Pause));
        let restored = if with_policy { vm.watchdog.restore_with_policy(&state) } else { vm.watchdog.restore(&state) };
        restored.unwrap();
        for _ in 0..100 {
            vm.time.advance(UNIT * 100);
            vm.watchdog.on_readable();
        }
        assert_eq!(arrived(&vm.events).contains(&(Stage::Escalation, Action::Poweroff)), is_escalated);
    }
}

#[test]
fn a_restored_line_level_makes_no_edge() {
    let vm = Vm::new(Duration::ZERO, Policy::default());
    vm.watchdog.start(512);
    vm.time.advance(UNIT * 512);
    vm.watchdog.on_readable();
    let (levels, changes) = channel();
    let levels = std::sync::Mutex::new(levels);
    let (handler, _events) = recorder();
    let new = Watchdog::builder("wd", device(InterruptPin::IntA))
        .interrupt_line(move |high: bool| levels.lock().unwrap().send(high).map_err(std::io::Error::other))
        .build(handler)
        .unwrap();
    new.restore(&vm.watchdog.save()).unwrap();
    new.read_bar(0x08, &mut [0]);
    assert_eq!(changes.try_iter().count(), 0, "the interrupt controller has the level in its own state");
    new.write_bar(0x08, &[1]);
    assert_eq!(changes.try_iter().collect::<Vec<_>>(), [false]);
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field_and_changes_nothing() {
    let watchdog = busy();
    let before = watchdog.save();
    let json = serde_json::to_value(before).unwrap();
    let timeout = &json["timeout"].to_string();
    for (pointer, value, message) in [
        ("/version", "2", "version is 0x2 in the saved state: accepted is 1"),
        ("/policy/timeout", "\"explode\"", "unknown variant `explode`, expected one of `reset`"),
        ("/policy/timeout", "7", "invalid type: integer `7`"),
        ("/device/preload1", "1048576", "preload1 is 0x100000 in the saved state"),
        ("/device/preload2", "-1", "invalid value: integer `-1`, expected u32"),
        ("/device/command", "65535", "command is 0xffff in the saved state"),
        ("/device/bar0", "8", "bar0 is 0x8 in the saved state"),
        ("/device/wdt_configuration", "8", "wdt_configuration is 0x8 in the saved state"),
        ("/device/wdt_lock", "8", "wdt_lock is 0x8 in the saved state"),
        ("/device/wdt_lock", "0", "counter.remaining_ns is"),
        ("/device/unlock_keys", "3", "unlock_keys is 0x3 in the saved state"),
        ("/device/counter/stage", "0", "counter.stage is 0x0 in the saved state"),
        ("/device/counter/remaining_ns", "0", "counter.remaining_ns is 0x0 in the saved state"),
        ("/device/counter/remaining_ns", "18446744073709551615", "counter.remaining_ns is 0xffffffffffffffff"),
        ("/device/counter/megahertz", "null", "invalid type: null, expected a boolean"),
        ("/timeout/stage", "\"pretimeout\"", "timeout.stage is 0x0 in the saved state"),
        ("/timeout/attempt", "0", "timeout.attempt is 0x0 in the saved state"),
        ("/timeout/attempt", "1", "timeout.due_in_ns is 0x19e100 in the saved state: accepted is at most the grace"),
        ("/timeout/due_in_ns", "100000001", "timeout.due_in_ns is 0x5f5e101 in the saved state"),
        ("/vm_time_ns", "9223372036854775808", "vm_time_ns is 0x8000000000000000 in the saved state"),
        ("/grace_remaining_ns", "1000000001", "grace_remaining_ns is 0x3b9aca01 in the saved state"),
        ("/pretimeout_in_ns", "1000000001", "pretimeout_in_ns is 0x3b9aca01 in the saved state"),
        ("/actions_spent", "4", "actions_spent is 0x4 in the saved state: accepted is at most the burst"),
        ("/policy/action_rate", "null", "actions_spent is 0x2 in the saved state"),
        ("/action_refill_in_ns", "10000000001", "action_refill_in_ns is 0x2540be401 in the saved state"),
        ("/escalation", timeout, "escalation.stage is 0x1 in the saved state"),
    ] {
        let mut json = json.clone();
        json.as_object_mut().unwrap().entry("grace_remaining_ns").or_insert_with(Default::default);
        *json.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = serde_json::from_str(value).unwrap();
        let restored = serde_json::from_value::<State>(json).map_err(|error| error.to_string());
        let restored = restored.and_then(|state| watchdog.restore(&state).map_err(|error| error.to_string()));
        let error = restored.expect_err(pointer);
        assert!(error.contains(message), "{pointer} = {value}: {error}");
        assert_eq!(watchdog.save(), before, "{pointer} = {value} changed something");
    }
}

#[test]
fn a_file_cut_off_anywhere_or_with_one_field_more_or_less_is_refused() {
    let golden = GOLDEN.trim_end();
    for end in 0..golden.len() {
        assert!(serde_json::from_str::<State>(&golden[..end]).is_err(), "cut off at {end}");
    }
    let surplus = golden.replacen("\"device\"", "\"devise\": 1, \"device\"", 1);
    let error = serde_json::from_str::<State>(&surplus).unwrap_err().to_string();
    assert!(error.contains("unknown field `devise`"), "{error}");
    let missing = golden.replacen("\"preload1\"", "\"preload2\"", 1);
    assert!(serde_json::from_str::<State>(&missing).is_err());
}

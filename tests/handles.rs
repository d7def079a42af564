//! Handles: weak ones, type-erased ones, and a policy that changes while the VM runs.

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::{Driver, UNIT, arrived, device, recorder, sending};
use vm_watchdog::diag288::{Diag288, Intercept};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{
    Access, Action, AnyWatchdog, Event, Expired, ManualClock, Model, Policy, Stage, StateError, VmClock, VmInstant,
    Watchdog,
};

/// The limit of a wait for another thread or process, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// A model outside this library: it times out once, one second after it was started.
#[derive(Clone, Debug, Default)]
struct OneShot(Option<VmInstant>);

impl OneShot {
    fn start(&mut self, now: VmInstant) -> Access {
        self.0 = Some(now + SECOND);
        Access::Accepted
    }
}

impl Model for OneShot {
    type State = Option<u64>;

    fn poll_at(&self) -> Option<VmInstant> {
        self.0
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        Expired::new(None, self.0.take_if(|deadline| *deadline <= now))
    }

    fn is_armed(&self) -> bool {
        self.0.is_some()
    }

    fn reset(&mut self) {
        self.0 = None;
    }

    fn save(&mut self, now: VmInstant) -> Option<u64> {
        self.0.map(|deadline| deadline.saturating_duration_since(now).as_nanos() as u64)
    }

    fn restored(&self, state: &Option<u64>, now: VmInstant) -> Result<Self, StateError> {
        Ok(Self(state.map(|left| now + Duration::from_nanos(left))))
    }
}

/// The guest's calls of a diag288 that start it with 15 s.
fn start_diag288(watchdog: &Watchdog<Diag288>) {
    let mut gprs = [0; 16];
    gprs[3] = 15;
    assert_eq!(watchdog.intercept(4, 0x8324, 0x0288_0000, &gprs), Intercept::Done);
}

/// Running watchdogs of three models, and the events of their handler.
struct Vm {
    watchdogs: Vec<AnyWatchdog>,
    time: ManualClock,
    events: Receiver<Event>,
}

fn vm() -> Vm {
    let (clock, time) = VmClock::manual();
    let (sender, events) = channel();
    let pci = Watchdog::builder("i6300esb", device(InterruptPin::None)).clock(clock.clone());
    let pci = pci.build(sending(sender.clone())).unwrap();
    let call = Watchdog::builder("diag288", Diag288::new()).clock(clock.clone());
    let call = call.build(sending(sender.clone())).unwrap();
    let own = Watchdog::builder("one-shot", OneShot::default()).clock(clock).build(sending(sender)).unwrap();
    pci.start(512);
    start_diag288(&call);
    own.access(|device, now| (device.start(now), ()));
    Vm { watchdogs: vec![pci.into(), call.into(), own.into()], time, events }
}

impl Vm {
    fn ids(&self) -> Vec<String> {
        self.events.try_iter().map(|event| event.id.to_string()).collect()
    }

    fn serve_after(&self, duration: Duration) -> Vec<String> {
        self.time.advance(duration);
        self.watchdogs.iter().for_each(AnyWatchdog::on_readable);
        self.ids()
    }

    fn armed(&self) -> Vec<bool> {
        self.watchdogs.iter().map(|watchdog| watchdog.stats().armed).collect()
    }
}

#[test]
fn a_weak_handle_does_not_upgrade_after_the_last_handle_is_dropped() {
    let watchdog = Watchdog::builder("wd", device(InterruptPin::None)).build(recorder().0).unwrap();
    let weak = watchdog.downgrade();
    let another = weak.clone().upgrade().expect("a handle is left");
    drop(watchdog);
    assert_eq!(weak.upgrade().expect("a handle is left").id(), another.id());
    let any = AnyWatchdog::from(another);
    assert!(weak.upgrade().is_some());
    let thread = any.spawn().unwrap();
    drop(any);
    assert!(weak.upgrade().is_some(), "the thread serves it");
    drop(thread);
    assert!(weak.upgrade().is_none());
}

#[test]
fn a_weak_handle_of_build_cyclic_does_not_upgrade_before_the_watchdog_is_built() {
    let builder = Watchdog::builder("wd", device(InterruptPin::None));
    let mut before = None;
    let watchdog = builder.build_cyclic(|itself| {
        before = Some((itself.clone(), itself.upgrade().is_none()));
        recorder().0
    });
    let (itself, had_nothing) = before.expect("the handler is made");
    assert!(had_nothing);
    assert_eq!(itself.upgrade().expect("built").id(), watchdog.unwrap().id());
}

#[test]
fn each_watchdog_of_a_list_times_out_by_itself() {
    let vm = vm();
    assert_eq!(vm.watchdogs.iter().map(AnyWatchdog::id).collect::<Vec<_>>(), ["i6300esb", "diag288", "one-shot"]);
    assert_eq!(vm.serve_after(SECOND - Duration::from_nanos(1)), [] as [&str; 0]);
    assert_eq!(vm.serve_after(Duration::from_nanos(1)), ["one-shot"]);
    assert_eq!(vm.serve_after(SECOND), ["i6300esb"]);
    assert_eq!(vm.serve_after(SECOND * 13), ["diag288"]);
    let actions: Vec<_> = vm.watchdogs.iter().map(|watchdog| watchdog.stats().actions).collect();
    assert_eq!(actions, [1, 1, 1]);
}

#[test]
fn a_reset_of_the_platform_stops_the_whole_list() {
    let vm = vm();
    assert_eq!(vm.armed(), [true; 3]);
    vm.watchdogs.iter().for_each(AnyWatchdog::reset);
    assert_eq!(vm.armed(), [false; 3]);
    assert_eq!(vm.serve_after(SECOND * 60), [] as [&str; 0]);
}

#[test]
fn an_acknowledged_timeout_of_a_list_is_not_escalated() {
    for acknowledges in [true, false] {
        let vm = vm();
        let policy = Policy::new(Action::Shutdown).with_escalation(SECOND * 3, Action::Poweroff);
        vm.watchdogs.iter().for_each(|watchdog| watchdog.set_policy(policy));
        assert!(vm.watchdogs.iter().all(|watchdog| watchdog.policy() == policy));
        assert_eq!(vm.serve_after(SECOND * 15).len(), 3);
        if acknowledges {
            vm.watchdogs.iter().for_each(AnyWatchdog::acknowledge);
        }
        assert_eq!(vm.serve_after(SECOND * 3).len(), if acknowledges { 0 } else { 3 });
    }
}

#[test]
fn a_list_is_saved_and_restored() {
    let old = vm();
    old.serve_after(SECOND / 2);
    let saved: Vec<_> = old.watchdogs.iter().map(AnyWatchdog::save).collect();
    let new = vm();
    new.watchdogs.iter().for_each(AnyWatchdog::reset);
    for (watchdog, state) in new.watchdogs.iter().zip(&saved) {
        watchdog.restore(state).unwrap();
    }
    for vm in [&old, &new] {
        assert_eq!(vm.serve_after(SECOND / 2), ["one-shot"]);
        assert_eq!(vm.serve_after(SECOND), ["i6300esb"]);
    }
}

#[test]
fn the_state_of_another_model_is_refused_and_changes_nothing() {
    let vm = vm();
    let saved: Vec<_> = vm.watchdogs.iter().map(AnyWatchdog::save).collect();
    let before: Vec<_> = vm.watchdogs.iter().map(AnyWatchdog::stats).collect();
    for (i, watchdog) in vm.watchdogs.iter().enumerate() {
        for (j, state) in saved.iter().enumerate() {
            let outcome = watchdog.restore(state).map_err(|error| error.field);
            assert_eq!(outcome, if i == j { Ok(()) } else { Err("model") }, "{} with the state of {j}", watchdog.id());
        }
    }
    assert_eq!(vm.watchdogs.iter().map(AnyWatchdog::stats).collect::<Vec<_>>(), before);
}

#[test]
fn a_list_gives_a_typed_handle_for_its_own_model_only() {
    let vm = vm();
    let [pci, call, own] = &vm.watchdogs[..] else { panic!("three models") };
    pci.downcast::<I6300esb>().expect("its own model").disable();
    assert!(!pci.stats().armed, "the same watchdog");
    assert!(call.downcast::<Diag288>().is_some() && own.downcast::<OneShot>().is_some());
    assert!(pci.downcast::<Diag288>().is_none() && own.downcast::<I6300esb>().is_none());
}

#[test]
fn both_handles_have_the_same_descriptor() {
    let typed = Watchdog::builder("wd", Diag288::new()).build(recorder().0).unwrap();
    let any = AnyWatchdog::from(typed.clone());
    let descriptors = [
        typed.as_raw_fd(),
        typed.as_fd().as_raw_fd(),
        any.as_raw_fd(),
        any.as_fd().as_raw_fd(),
        any.clone().as_raw_fd(),
    ];
    assert!(descriptors.iter().all(|descriptor| *descriptor == descriptors[0]), "{descriptors:?}");
}

#[test]
fn a_watchdog_of_a_list_has_a_thread_of_its_own() {
    let (sender, events) = channel();
    let own = Watchdog::builder("one-shot", OneShot::default()).build(sending(sender)).unwrap();
    let any = AnyWatchdog::from(own.clone());
    let _thread = any.spawn().unwrap();
    own.access(|device, now| (device.start(now), ()));
    assert_eq!(events.recv_timeout(LIMIT).expect("an event").stage, Stage::Timeout);
}

#[test]
fn a_replaced_policy_applies_to_the_next_expiry() {
    let (clock, time) = VmClock::manual();
    let (handler, events) = recorder();
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock);
    let watchdog = builder.policy(Policy::new(Action::Reset)).build(handler).unwrap();
    watchdog.start(512);
    let warning = Policy::new(Action::Dump).with_pretimeout(Action::InjectNmi);
    watchdog.set_policy(warning);
    assert_eq!(watchdog.policy(), warning);
    time.advance(UNIT * 1024);
    watchdog.on_readable();
    assert_eq!(arrived(&events), [(Stage::Pretimeout, Action::InjectNmi), (Stage::Timeout, Action::Dump)]);
}

#[test]
fn a_policy_without_an_escalation_ends_the_grace_period_and_a_shorter_one_shortens_it() {
    let with_grace = |grace| Policy::new(Action::Shutdown).with_escalation(grace, Action::Poweroff);
    let poweroff = [(Stage::Escalation, Action::Poweroff)];
    let reset = [(Stage::Escalation, Action::Reset)];
    for (policy, after, expected) in [
        (with_grace(SECOND * 30), SECOND * 30, poweroff.as_slice()),
        (with_grace(SECOND * 2), SECOND * 2, &poweroff),
        (with_grace(SECOND * 60), SECOND * 30, &poweroff),
        (Policy::new(Action::Shutdown).with_escalation(SECOND * 30, Action::Reset), SECOND * 30, &reset),
        (Policy::new(Action::Shutdown), SECOND * 60, &[]),
    ] {
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock);
        let watchdog = builder.policy(with_grace(SECOND * 30)).build(handler).unwrap();
        watchdog.start(0);
        watchdog.on_readable();
        assert_eq!(arrived(&events), [(Stage::Timeout, Action::Shutdown)]);
        AnyWatchdog::from(watchdog.clone()).set_policy(policy);
        time.advance(after - Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(arrived(&events), [], "{policy:?}");
        time.advance(Duration::from_nanos(1));
        watchdog.on_readable();
        assert_eq!(arrived(&events), expected, "{policy:?}");
    }
}

#[test]
fn a_grace_period_that_is_shortened_in_real_time_ends_then() {
    let (sender, events) = channel();
    let with_grace = |grace| Policy::new(Action::Shutdown).with_escalation(grace, Action::Poweroff);
    let builder = Watchdog::builder("wd", device(InterruptPin::None)).policy(with_grace(SECOND * 3600));
    let watchdog = builder.build(sending(sender)).unwrap();
    let _thread = watchdog.spawn().unwrap();
    watchdog.start(0);
    assert_eq!(events.recv_timeout(LIMIT).expect("an event").stage, Stage::Timeout);
    // Counted on the other thread, after the handler has returned.
    while watchdog.stats().actions == 0 {
        std::thread::yield_now();
    }
    watchdog.set_policy(with_grace(Duration::from_millis(10)));
    assert_eq!(events.recv_timeout(LIMIT).expect("an event").stage, Stage::Escalation);
}

#[cfg(feature = "serde")]
mod serialized {
    use vm_watchdog::AnyWatchdogState;
    use vm_watchdog::diag288::UnknownCommands;

    use super::*;

    #[test]
    fn a_state_names_its_model_and_is_otherwise_that_of_the_typed_handle() {
        let vm = vm();
        vm.serve_after(SECOND / 2);
        let [pci, call, _] = &vm.watchdogs[..] else { panic!("three models") };
        let of_pci = serde_json::to_string(&pci.downcast::<I6300esb>().unwrap().save()).unwrap();
        let of_call = serde_json::to_string(&call.downcast::<Diag288>().unwrap().save()).unwrap();
        for (any, model, typed) in [(pci, "i6300esb", of_pci), (call, "diag288", of_call)] {
            let text = serde_json::to_string(&any.save()).unwrap();
            assert_eq!(text, typed.replacen('{', &format!(r#"{{"model":"{model}","#), 1));
            let state: AnyWatchdogState = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&state).unwrap(), text);
            any.reset();
            any.restore(&state).unwrap();
            assert_eq!(serde_json::to_string(&any.save()).unwrap(), text);
        }
    }

    /// The golden files of typed watchdogs, with the field that names the model.
    #[test]
    fn golden_states_are_read_with_the_name_of_their_model() {
        let call = Watchdog::builder("diag288", Diag288::zvm(UnknownCommands::Refused)).build(recorder().0).unwrap();
        let pci = Watchdog::builder("i6300esb", device(InterruptPin::None)).build(recorder().0).unwrap();
        let watchdogs = [AnyWatchdog::from(pci), call.into()];
        for (index, model, golden) in [
            (0, "i6300esb", include_str!("golden/i6300esb-v1.json")),
            (0, "i6300esb", include_str!("golden/i6300esb-v1-episodes.json")),
            (0, "i6300esb", include_str!("golden/i6300esb-v1-every-field.json")),
            (0, "i6300esb", include_str!("golden/i6300esb-v1-action-rate.json")),
            (1, "diag288", include_str!("golden/diag288-v1.json")),
            (1, "diag288", include_str!("golden/diag288-v1-episodes.json")),
            (1, "diag288", include_str!("golden/diag288-v1-every-field.json")),
            (1, "diag288", include_str!("golden/diag288-v1-action-rate.json")),
        ] {
            let text = golden.replacen('{', &format!(r#"{{"model":"{model}","#), 1);
            let state: AnyWatchdogState = serde_json::from_str(&text).unwrap();
            watchdogs[index].restore(&state).unwrap();
            assert_eq!(watchdogs[1 - index].restore(&state).unwrap_err().field, "model");
        }
    }

    #[test]
    fn an_unknown_model_or_version_is_refused_by_its_name() {
        let refused = |text: &str| serde_json::from_str::<AnyWatchdogState>(text).unwrap_err().to_string();
        let error = refused(r#"{"model":"ib700","version":1}"#);
        for name in ["ib700", "`i6300esb`", "`diag288`"] {
            assert!(error.contains(name), "{error}");
        }
        let error = refused(r#"{"model":"i6300esb","version":2,"something":"new"}"#);
        assert!(error.contains("version is 0x2"), "{error}");
        let error = refused(r#"{"version":1}"#);
        assert!(error.contains("model"), "{error}");
    }

    #[test]
    fn the_state_of_a_model_outside_this_library_is_not_written() {
        let vm = vm();
        assert!(serde_json::to_string(&vm.watchdogs[2].save()).is_err());
    }
}

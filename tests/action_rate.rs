//! A rate of the actions, as the handler sees it.

mod common;

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use common::{Driver, UNIT, device};
use vm_watchdog::i6300esb::{I6300esb, InterruptPin};
use vm_watchdog::{
    Action, ActionHandler, Event, HandlerError, ManualClock, Policy, Stage, VmClock, VmInstant, Watchdog, WeakWatchdog,
};

const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Perform(Event),
    Delayed(Event, VmInstant),
    Suppressed(Event),
}

type Inside = fn(&Watchdog<I6300esb>, &Call);

/// Sends every call, and does something inside of it.
struct Recorder(Mutex<Sender<Call>>, WeakWatchdog<I6300esb>, Inside);

impl Recorder {
    fn record(&self, call: Call) {
        if let Some(watchdog) = self.1.upgrade() {
            (self.2)(&watchdog, &call);
        }
        self.0.lock().unwrap().send(call).unwrap();
    }
}

impl ActionHandler for Recorder {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        self.record(Call::Perform(event.clone()));
        Ok(())
    }

    fn delayed(&self, event: &Event, until: VmInstant) {
        self.record(Call::Delayed(event.clone(), until));
    }

    fn suppressed(&self, event: &Event) {
        self.record(Call::Suppressed(event.clone()));
    }
}

struct Vm {
    watchdog: Watchdog<I6300esb>,
    time: ManualClock,
    calls: Receiver<Call>,
}

impl Vm {
    fn new(inside: Inside) -> Self {
        let (clock, time) = VmClock::manual();
        let (sender, calls) = channel();
        let policy = Policy::new(Action::Dump).with_pretimeout(Action::InjectNmi).with_action_rate(INTERVAL, 2);
        let builder = Watchdog::builder("wd", device(InterruptPin::None)).clock(clock).policy(policy);
        let watchdog = builder.build_cyclic(|itself| Recorder(Mutex::new(sender), itself.clone(), inside)).unwrap();
        watchdog.start(512);
        Self { watchdog, time, calls }
    }

    /// A heartbeat, and both stages after it.
    fn expire(&self) {
        self.watchdog.ping();
        for _ in 0..2 {
            self.time.advance(UNIT * 512);
            self.watchdog.on_readable();
        }
    }

    /// Time passes, and the timer is served.
    fn pass(&self, time: Duration) {
        self.time.advance(time);
        self.watchdog.on_readable();
    }

    /// What the handler was called for since the last question: the call, the stage, and whether the action is delayed.
    fn calls(&self) -> Vec<(&'static str, Stage, bool)> {
        let name = |call| match call {
            Call::Perform(event) => ("perform", event),
            Call::Delayed(event, _) => ("delayed", event),
            Call::Suppressed(event) => ("suppressed", event),
        };
        let calls = self.calls.try_iter().map(name);
        calls.map(|(name, event)| (name, event.stage, event.delayed)).collect()
    }
}

const BURST: [(&str, Stage, bool); 2] = [("perform", Stage::Pretimeout, false), ("perform", Stage::Timeout, false)];
const WITHHELD: [(&str, Stage, bool); 2] =
    [("suppressed", Stage::Pretimeout, false), ("delayed", Stage::Timeout, true)];

#[test]
fn the_handler_is_told_what_is_delayed_and_what_is_suppressed_and_performs_the_delayed_action_later() {
    let vm = Vm::new(|_, _| ());
    vm.expire();
    assert_eq!(vm.calls(), BURST);
    vm.expire();
    assert_eq!(vm.calls(), WITHHELD);
    // Another timeout before the action is covered by it.
    vm.expire();
    assert_eq!(vm.calls(), [("suppressed", Stage::Pretimeout, false)]);
    vm.pass(INTERVAL);
    assert_eq!(vm.calls(), [("perform", Stage::Timeout, true)]);
    let stats = vm.watchdog.stats();
    assert_eq!((stats.expiries, stats.actions, stats.delayed_actions, stats.suppressed_actions), (3, 3, 1, 3));
}

#[test]
fn a_paused_vm_gets_no_delayed_action_and_the_pause_does_not_shorten_the_delay() {
    let vm = Vm::new(|_, _| ());
    vm.expire();
    vm.expire();
    vm.calls();
    vm.watchdog.clock().pause();
    vm.pass(INTERVAL * 2);
    assert_eq!(vm.calls(), []);
    vm.watchdog.clock().resume();
    vm.pass(INTERVAL / 2);
    assert_eq!(vm.calls(), []);
    vm.pass(INTERVAL / 2);
    assert_eq!(vm.calls(), [("perform", Stage::Timeout, true)]);
}

#[test]
fn a_handler_that_acknowledges_or_resets_when_it_is_told_has_no_action_left_to_perform() {
    let acknowledge: Inside = |watchdog, call| {
        if matches!(call, Call::Delayed(..)) {
            watchdog.acknowledge();
        }
    };
    let reset: Inside = |watchdog, call| {
        if matches!(call, Call::Delayed(..)) {
            watchdog.reset();
        }
    };
    for inside in [acknowledge, reset] {
        let vm = Vm::new(inside);
        vm.expire();
        vm.expire();
        assert_eq!(vm.calls(), [BURST, WITHHELD].concat());
        vm.pass(INTERVAL * 2);
        assert_eq!(vm.calls(), []);
        assert_eq!(vm.watchdog.stats().suppressed_actions, 2);
    }
}

#[test]
fn a_handler_that_panics_when_it_is_told_loses_no_action() {
    let vm = Vm::new(|_, call| {
        if !matches!(call, Call::Perform(_)) {
            panic!("not told");
        }
    });
    vm.expire();
    vm.expire();
    assert_eq!(vm.calls(), BURST);
    vm.pass(INTERVAL);
    assert_eq!(vm.calls(), [("perform", Stage::Timeout, true)]);
}

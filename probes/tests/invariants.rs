//! What holds of a worker whatever happens to the VM, in random sequences.

use std::time::Duration;

use proptest::prelude::*;
use vm_watchdog_devices::VmInstant;
use vm_watchdog_probes::{
    Attempt, Cause, Change, Handler, Outcome, Phase, Probe, ProbeKind, ProbeResult, RestartBackOff, Worker,
};

#[derive(Clone, Debug)]
enum Step {
    /// Time passes, in milliseconds. While the VM is paused it does not.
    Pass(u64),
    /// Polls the worker, whether it asks for it or not.
    Poll,
    /// Lets time pass until an attempt is due, and starts it.
    PollWhenDue,
    Complete(Outcome),
    Start,
    Reset,
    Pause,
    Resume,
    ShutDown,
    Stop,
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Success),
        4 => Just(Outcome::Failure("refused".to_owned())),
        1 => Just(Outcome::Warning("redirect".to_owned())),
        1 => Just(Outcome::Error("no descriptors".to_owned())),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4000u64).prop_map(Step::Pass),
        2 => Just(Step::Poll),
        12 => Just(Step::PollWhenDue),
        14 => outcomes().prop_map(Step::Complete),
        1 => Just(Step::Start),
        1 => Just(Step::Reset),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::ShutDown),
        1 => Just(Step::Stop),
    ];
    proptest::collection::vec(step, 0..80)
}

prop_compose! {
    fn probes()(
        kind in prop_oneof![Just(ProbeKind::Liveness), Just(ProbeKind::Readiness)],
        initial_delay_s in 0..5u32,
        period_s in 0..4u32,
        failure_threshold in 1..4u32,
        success_threshold in 1..4u32,
    ) -> (ProbeKind, Probe) {
        let success_threshold = if kind == ProbeKind::Liveness { 1 } else { success_threshold };
        let probe = Probe::new(Handler::GuestAgentPing);
        (kind, Probe { initial_delay_s, period_s, failure_threshold, success_threshold, ..probe })
    }
}

/// What an observer knows who sees the VM and the attempts, and not the worker's fields.
struct Observer {
    kind: ProbeKind,
    probe: Probe,
    worker: Worker,
    now: VmInstant,
    /// When the VM started or was reset for the last time.
    started: Option<VmInstant>,
    paused: bool,
    /// Whether the liveness probe has failed, or the VM shuts down.
    held: bool,
    result: ProbeResult,
    under_way: Option<(Attempt, bool)>,
    /// The outcomes since the VM started that count, without errors.
    history: Vec<bool>,
    /// When an attempt began that did not repeat one after an error or a pause.
    periods: Vec<VmInstant>,
    repeats: bool,
    errors: u32,
}

impl Observer {
    fn new(kind: ProbeKind, probe: &Probe) -> Self {
        Self {
            kind,
            probe: probe.clone().checked(kind).expect("a valid probe"),
            worker: Worker::new(kind, probe).expect("a valid probe"),
            now: VmInstant::ZERO,
            started: None,
            paused: false,
            held: false,
            result: initial(kind),
            under_way: None,
            history: Vec::new(),
            periods: Vec::new(),
            repeats: false,
            errors: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(_) if self.paused => {}
            Step::Pass(millis) => self.now = self.now + Duration::from_millis(millis),
            Step::Poll => self.poll(),
            Step::PollWhenDue => {
                if let Some(due) = self.worker.poll_at() {
                    self.now = self.now.max(due);
                    self.poll();
                    assert!(self.under_way.is_some(), "an attempt is due at {due}");
                }
            }
            Step::Complete(outcome) => self.complete(outcome),
            Step::Start => {
                let change = self.worker.vm_started(self.now);
                self.paused = false;
                self.start_over(change, Cause::VmStarted);
            }
            Step::Reset => {
                let change = self.worker.vm_reset(self.now);
                match self.started {
                    Some(_) => self.start_over(change, Cause::VmReset),
                    None => assert_eq!(change, None),
                }
            }
            Step::Pause => {
                self.worker.vm_paused(self.now);
                self.paused = true;
                self.repeats |= self.under_way.as_ref().is_some_and(|(_, counts)| *counts);
                self.interrupt();
            }
            Step::Resume => {
                self.worker.vm_resumed();
                self.paused = false;
            }
            Step::ShutDown => {
                self.worker.vm_shutting_down();
                if self.kind == ProbeKind::Liveness && self.started.is_some() {
                    self.held = true;
                    self.interrupt();
                }
            }
            Step::Stop => {
                let change = self.worker.vm_stopped();
                let fails = self.kind == ProbeKind::Readiness && self.result == ProbeResult::Success;
                assert_eq!(change.map(|change| change.cause), fails.then_some(Cause::VmStopped));
                if self.kind == ProbeKind::Readiness {
                    self.result = ProbeResult::Failure;
                }
                self.started = None;
                self.paused = false;
                self.interrupt();
            }
        }
        assert_eq!(self.worker.result(), self.result);
        assert_eq!(self.worker.is_paused(), self.paused);
        assert_eq!(self.worker.phase() == Phase::Probing, self.started.is_some() && !self.held);
    }

    /// An attempt that is under way does not count any more.
    fn interrupt(&mut self) {
        if let Some((_, counts)) = &mut self.under_way {
            *counts = false;
        }
    }

    fn start_over(&mut self, change: Option<Change>, cause: Cause) {
        let changes = self.result != initial(self.kind);
        assert_eq!(change.map(|change| change.cause), changes.then_some(cause));
        self.result = initial(self.kind);
        self.started = Some(self.now);
        self.held = false;
        self.history.clear();
        self.periods.clear();
        self.repeats = false;
        self.errors = 0;
        self.interrupt();
    }

    fn poll(&mut self) {
        let due = self.worker.poll_at().is_some_and(|due| due <= self.now);
        let attempt = self.worker.poll(self.now);
        assert_eq!(attempt.is_some(), due, "poll starts an attempt exactly when poll_at says so");
        let Some(attempt) = attempt else { return };
        assert!(self.under_way.is_none(), "attempts do not overlap");
        assert!(!self.paused && !self.held, "no attempt while the VM is paused, or the worker on hold");
        let started = self.started.expect("no attempt before the VM has started, or after it has stopped");
        let delay = Duration::from_secs(self.probe.initial_delay_s.into());
        assert!(self.now >= started + delay, "no attempt before the initial delay");
        if !std::mem::take(&mut self.repeats) {
            self.periods.push(self.now);
            // One attempt may follow a slow one at once, but two periods cannot have three.
            let period = Duration::from_secs(self.probe.period_s.into());
            if let [.., two_before, _, last] = self.periods[..] {
                assert!(last.saturating_duration_since(two_before) >= period, "attempts come too fast");
            }
        }
        self.under_way = Some((attempt, true));
    }

    fn complete(&mut self, outcome: Outcome) {
        let Some((attempt, counts)) = self.under_way.take() else { return };
        let passes = outcome.passes();
        let is_error = matches!(outcome, Outcome::Error(_));
        let completed = self.worker.complete(self.now, attempt, outcome);
        assert_eq!(completed.counted, counts);
        if !counts {
            assert_eq!(completed.change, None, "an interrupted attempt changes nothing");
            // Its period starts over, with as many tries as any other.
            self.errors = 0;
            return;
        }
        if is_error {
            assert_eq!(completed.change, None, "an error changes nothing");
            self.errors = (self.errors + 1) % 3;
            self.repeats = self.errors > 0;
            return;
        }
        self.errors = 0;
        self.history.push(passes);
        let (result, threshold) = match passes {
            true => (ProbeResult::Success, self.probe.success_threshold),
            false => (ProbeResult::Failure, self.probe.failure_threshold),
        };
        let in_a_row = self.history.iter().rev().take_while(|&&past| past == passes).count();
        let changes = in_a_row >= threshold as usize && result != self.result;
        assert_eq!(completed.change.map(|change| change.result), changes.then_some(result));
        if changes {
            self.result = result;
            self.held |= (self.kind, result) == (ProbeKind::Liveness, ProbeResult::Failure);
        }
    }
}

fn initial(kind: ProbeKind) -> ProbeResult {
    match kind {
        ProbeKind::Liveness => ProbeResult::Success,
        ProbeKind::Readiness => ProbeResult::Failure,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100_000)
    ))]

    #[test]
    fn a_worker_follows_its_rules_whatever_happens((kind, probe) in probes(), steps in steps()) {
        let mut observer = Observer::new(kind, &probe);
        for step in steps {
            observer.step(step);
        }
    }

    #[test]
    fn extreme_times_do_not_overflow(
        initial_delay_s: u32, period_s: u32, instants in proptest::collection::vec(any::<u64>(), 1..20)
    ) {
        let probe = Probe { initial_delay_s, period_s, ..Probe::new(Handler::GuestAgentPing) };
        let mut worker = Worker::new(ProbeKind::Readiness, &probe).expect("every delay and period is valid");
        worker.vm_started(VmInstant::from_nanos(instants[0]));
        for instant in instants {
            let now = VmInstant::from_nanos(instant);
            if let Some(attempt) = worker.poll(now) {
                let _ = worker.complete(now, attempt, Outcome::Success);
            }
        }
    }

    #[test]
    fn a_restart_is_never_delayed_by_more_than_five_minutes(ran in proptest::collection::vec(0..1200u64, 1..40)) {
        let mut back_off = RestartBackOff::new();
        let mut before = Duration::ZERO;
        for ran in ran {
            let delay = back_off.next_delay(Duration::from_secs(ran));
            let doubled = (before * 2).clamp(Duration::from_secs(10), Duration::from_secs(300));
            prop_assert!(delay == Duration::ZERO || delay == doubled);
            prop_assert_eq!(delay == Duration::ZERO && before != Duration::ZERO, ran >= 600 && before != Duration::ZERO);
            before = delay;
        }
    }
}

//! When a probe is attempted, and what its result is: kubelet's worker without a clock.

use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::change::{Cause, Change, Completed, ProbeResult};
use crate::outcome::Outcome;
use crate::probe::{Probe, ProbeKind};
use crate::validation::InvalidProbe;

/// How often a handler that cannot be run is tried in one period.
const MOST_TRIES: u32 = 3;

/// The state of one probe of one VM.
///
/// A worker is told what happens to the VM, and what each attempt found. It says when the next attempt is due and
/// what the result is. It has no clock: `now` is the time of the VM, which stands still while the VM is paused.
///
/// - Before the VM starts and while it is stopped, paused or shutting down, no attempt is due.
/// - The first attempt is due when the VM has run for the initial delay, and then one in every period. An attempt
///   that takes longer than a period is followed by the next one at once; after it the attempts are due at the
///   multiples of the period again, and what was missed is not made up for.
/// - A handler that could not be run ([`Outcome::Error`]) is due again at once, three times in all; then the period has
///   no result.
/// - The result changes after as many successes or failures in a row as the probe has for its threshold.
/// - After a liveness failure the worker is on hold until the VM is started or reset.
/// - [`vm_started`](Self::vm_started) and [`vm_reset`](Self::vm_reset) start over: the first result, no counts, the
///   initial delay.
/// - An attempt that is under way when the VM is paused, stopped, started or reset does not count. The next attempt is
///   due after it, because attempts never overlap.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog_devices::VmInstant;
/// use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind, ProbeResult, Worker};
///
/// let probe = Probe { period_s: 1, failure_threshold: 2, ..Probe::new(Handler::GuestAgentPing) };
/// let mut worker = Worker::new(ProbeKind::Liveness, &probe)?;
/// let start = VmInstant::from_nanos(5);
/// worker.vm_started(start);
/// assert_eq!(worker.poll_at(), Some(start));
///
/// let attempt = worker.poll(start).expect("an attempt is due");
/// let no_answer = || Outcome::Failure("no answer from the guest agent".to_owned());
/// assert_eq!(worker.complete(start, attempt, no_answer()).change, None);
///
/// let later = start + Duration::from_secs(1);
/// assert_eq!(worker.poll_at(), Some(later));
/// let attempt = worker.poll(later).expect("the next attempt is due");
/// let change = worker.complete(later, attempt, no_answer()).change.expect("the second failure in a row");
/// assert_eq!(change.result, ProbeResult::Failure);
/// assert_eq!(change.to_string(), "failure: 2 failures in a row, the last one: no answer from the guest agent");
/// assert_eq!(worker.poll_at(), None);
/// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
/// ```
#[derive(Clone, Debug)]
pub struct Worker {
    kind: ProbeKind,
    initial_delay: Duration,
    period_s: u32,
    failure_threshold: u32,
    success_threshold: u32,
    phase: Phase,
    paused: bool,
    result: ProbeResult,
    streak: Streak,
    /// The instant of the first attempt: those of the others are whole periods later.
    first: VmInstant,
    /// When the next attempt is due. It does not start before the one that is under way has ended.
    due: VmInstant,
    /// When the next period begins.
    next_period: VmInstant,
    /// How often the handler could not be run in this period.
    errors: u32,
    under_way: Option<UnderWay>,
    attempts: u64,
}

/// The attempt that is under way.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    number: u64,
    /// Whether the VM ran without interruption since the attempt began.
    counts: bool,
}

/// The same results in a row.
///
/// ```
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind, Streak, Worker};
///
/// let worker = Worker::new(ProbeKind::Readiness, &Probe::new(Handler::GuestAgentPing))?;
/// assert_eq!(worker.streak(), Streak::default());
/// assert_eq!((worker.streak().successes, worker.streak().failures), (0, 0));
/// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Streak {
    /// How many attempts in a row have succeeded; 0 after a failure.
    pub successes: u32,
    /// How many attempts in a row have failed; 0 after a success.
    pub failures: u32,
}

/// What a worker does.
///
/// ```
/// use vm_watchdog_devices::VmInstant;
/// use vm_watchdog_probes::{Handler, Phase, Probe, ProbeKind, Worker};
///
/// let mut worker = Worker::new(ProbeKind::Readiness, &Probe::new(Handler::GuestAgentPing))?;
/// assert_eq!(worker.phase(), Phase::Waiting);
/// worker.vm_started(VmInstant::ZERO);
/// assert_eq!(worker.phase(), Phase::Probing);
/// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The VM has not started yet.
    Waiting,
    /// The VM runs, and attempts are due. The initial delay is a part of this phase.
    Probing,
    /// The liveness probe has failed: no attempt is due before the VM is started or reset.
    OnHold,
    /// The VM shuts down: no attempt of the liveness probe is due.
    ShuttingDown,
    /// The VM has stopped.
    Stopped,
}

/// An attempt that [`Worker::poll`] has started, and that [`Worker::complete`] takes back with its outcome.
///
/// The worker starts no other attempt meanwhile, so that an attempt that is dropped ends the probe: where the thread of
/// a handler can panic, its caller completes the attempt with [`Outcome::Error`].
///
/// ```
/// use vm_watchdog_devices::VmInstant;
/// use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind, Worker};
///
/// let mut worker = Worker::new(ProbeKind::Readiness, &Probe::new(Handler::GuestAgentPing))?;
/// worker.vm_started(VmInstant::ZERO);
/// let attempt = worker.poll(VmInstant::ZERO).expect("due at once");
/// assert!(worker.poll(VmInstant::ZERO).is_none());
/// assert!(worker.complete(VmInstant::ZERO, attempt, Outcome::Success).counted);
/// # Ok::<(), vm_watchdog_probes::InvalidProbe>(())
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a worker waits for the outcome of its attempt"]
pub struct Attempt {
    number: u64,
}

impl Worker {
    /// A worker for a VM that has not started yet.
    ///
    /// # Errors
    ///
    /// The fields that [`Probe::checked`] does not accept.
    pub fn new(kind: ProbeKind, probe: &Probe) -> Result<Self, InvalidProbe> {
        let probe = probe.clone().checked(kind)?;
        Ok(Self {
            kind,
            initial_delay: Duration::from_secs(probe.initial_delay_s.into()),
            period_s: probe.period_s,
            failure_threshold: probe.failure_threshold,
            success_threshold: probe.success_threshold,
            phase: Phase::Waiting,
            paused: false,
            result: ProbeResult::initial(kind),
            streak: Streak::default(),
            first: VmInstant::MAX,
            due: VmInstant::MAX,
            next_period: VmInstant::MAX,
            errors: 0,
            under_way: None,
            attempts: 0,
        })
    }

    /// Liveness or readiness.
    pub fn kind(&self) -> ProbeKind {
        self.kind
    }

    /// The result as of now.
    pub fn result(&self) -> ProbeResult {
        self.result
    }

    /// What the worker does.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The same results in a row up to now.
    pub fn streak(&self) -> Streak {
        self.streak
    }

    /// When [`poll`](Self::poll) has an attempt to start. `None` while an attempt is under way, and while the VM or its
    /// state allows none.
    pub fn poll_at(&self) -> Option<VmInstant> {
        let runs = self.phase == Phase::Probing && !self.paused;
        let is_due = runs && self.under_way.is_none() && self.due != VmInstant::MAX;
        is_due.then_some(self.due)
    }

    /// Starts the attempt that is due, if there is one.
    pub fn poll(&mut self, now: VmInstant) -> Option<Attempt> {
        if self.poll_at()? > now {
            return None;
        }
        if self.errors == 0 {
            self.next_period = self.period_after(now);
        }
        self.attempts += 1;
        self.under_way = Some(UnderWay { number: self.attempts, counts: true });
        Some(Attempt { number: self.attempts })
    }

    /// Ends an attempt.
    pub fn complete(&mut self, now: VmInstant, attempt: Attempt, outcome: Outcome) -> Completed {
        let under_way = self.under_way.take_if(|under_way| under_way.number == attempt.number);
        if !under_way.is_some_and(|under_way| under_way.counts) {
            return Completed { counted: false, change: None };
        }
        let is_error = matches!(outcome, Outcome::Error(_));
        self.errors = if is_error { (self.errors + 1) % MOST_TRIES } else { 0 };
        self.due = if self.errors > 0 { now } else { self.next_period };
        let change = match outcome {
            Outcome::Error(_) => None,
            Outcome::Success | Outcome::Warning(_) => self.succeed(),
            Outcome::Failure(message) => self.fail(message),
        };
        Completed { counted: true, change }
    }

    /// The VM has started: for the first time, after it had stopped, or as a new process. A VM that starts is not paused.
    pub fn vm_started(&mut self, now: VmInstant) -> Option<Change> {
        self.paused = false;
        self.start_over(now, Cause::VmStarted)
    }

    /// The VM was reset, by whomever. A paused VM stays paused. Without effect before the VM has started and after it
    /// has stopped.
    pub fn vm_reset(&mut self, now: VmInstant) -> Option<Change> {
        match self.phase {
            Phase::Waiting | Phase::Stopped => None,
            Phase::Probing | Phase::OnHold | Phase::ShuttingDown => self.start_over(now, Cause::VmReset),
        }
    }

    /// The VM is paused, and so is its time. An attempt that is under way is repeated when the VM runs again.
    pub fn vm_paused(&mut self, now: VmInstant) {
        self.paused = true;
        if let Some(under_way) = self.under_way.as_mut().filter(|under_way| under_way.counts) {
            under_way.counts = false;
            self.due = now;
            self.errors = 0;
        }
    }

    /// The VM runs again after a pause.
    pub fn vm_resumed(&mut self) {
        self.paused = false;
    }

    /// The VM was asked to shut down: what its services do from now on is no liveness failure. A readiness probe
    /// continues. If the guest does not shut down, [`vm_started`](Self::vm_started) starts over.
    pub fn vm_shutting_down(&mut self) {
        if (self.kind, self.phase) == (ProbeKind::Liveness, Phase::Probing) {
            self.phase = Phase::ShuttingDown;
            self.void_attempt();
        }
    }

    /// The VM has stopped. A readiness probe fails at once; for a liveness probe this is no failure.
    pub fn vm_stopped(&mut self) -> Option<Change> {
        self.phase = Phase::Stopped;
        self.paused = false;
        self.streak = Streak::default();
        self.void_attempt();
        match self.kind {
            ProbeKind::Liveness => None,
            ProbeKind::Readiness => self.change(ProbeResult::Failure, Cause::VmStopped),
        }
    }

    fn start_over(&mut self, now: VmInstant, cause: Cause) -> Option<Change> {
        self.phase = Phase::Probing;
        self.streak = Streak::default();
        self.errors = 0;
        self.first = now + self.initial_delay;
        self.due = self.first;
        self.void_attempt();
        self.change(ProbeResult::initial(self.kind), cause)
    }

    fn void_attempt(&mut self) {
        if let Some(under_way) = &mut self.under_way {
            under_way.counts = false;
        }
    }

    fn succeed(&mut self) -> Option<Change> {
        self.streak = Streak { successes: self.streak.successes.saturating_add(1), failures: 0 };
        let count = self.streak.successes;
        if count < self.success_threshold {
            return None;
        }
        self.change(ProbeResult::Success, Cause::Successes { count })
    }

    fn fail(&mut self, message: String) -> Option<Change> {
        self.streak = Streak { failures: self.streak.failures.saturating_add(1), successes: 0 };
        let count = self.streak.failures;
        if count < self.failure_threshold {
            return None;
        }
        if self.kind == ProbeKind::Liveness {
            self.phase = Phase::OnHold;
        }
        self.change(ProbeResult::Failure, Cause::Failures { count, message })
    }

    fn change(&mut self, result: ProbeResult, cause: Cause) -> Option<Change> {
        let changed = std::mem::replace(&mut self.result, result) != result;
        changed.then_some(Change { result, cause })
    }

    /// The first multiple of the period, from the first attempt, that is later than `now`.
    fn period_after(&self, now: VmInstant) -> VmInstant {
        let period = u64::from(self.period_s) * 1_000_000_000;
        let since = now.as_nanos().saturating_sub(self.first.as_nanos());
        let next = (since / period + 1).checked_mul(period);
        let next = next.and_then(|next| next.checked_add(self.first.as_nanos()));
        next.map_or(VmInstant::MAX, VmInstant::from_nanos)
    }
}

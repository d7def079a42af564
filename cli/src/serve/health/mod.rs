//! The liveness and readiness probes of the VM, beside its watchdogs: what a manifest of KubeVirt asks for.
//!
//! Each probe has a thread ([`runner`]). A liveness failure is a timeout of a model of the watchdog library ([`failure`]),
//! so that the same rules hold for its action as for that of a watchdog. The probes follow the VM by the events of QMP,
//! without it by the connection of its watchdog, and without either they take it as running.

mod failure;
pub mod names;
pub mod options;
pub mod report;
pub mod runner;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_watchdog::{Access, Action, ActionHandler, Event, HandlerError, Stats, VmInstant, Watchdog, WatchdogThread};
use vm_watchdog_probes::handlers::{Prober, ProberError, Resolve};
use vm_watchdog_probes::{Change, InvalidProbe, Outcome, Phase, Probe, ProbeKind, ProbeResult, RestartBackOff, Worker};
use vm_watchdog_timeline::GuestExpiry;

use crate::serve::control::messages::VmEvent;
use crate::serve::control::qmp::VmListener;
use crate::serve::endpoint::Endpoint;
use crate::serve::events::{Entry, ServerEvent, Timeline};
use crate::serve::health::failure::LivenessFailure;
use crate::serve::health::options::HealthOptions;
use crate::serve::health::runner::{Observer, Runner, Snapshot};
use crate::serve::last_action::LastAction;
use crate::serve::late::LateHandler;
use crate::serve::peer::Owner;
use crate::serve::progress::Progress;
use crate::serve::service;
use crate::serve::vm::{Vm, VmWatchdog};

/// The name of what times out when the liveness probe has failed.
pub const LIVENESS: &str = "liveness";

/// Why the probes cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HealthError {
    /// A probe breaks a rule of Kubernetes.
    #[error(transparent)]
    Probe(#[from] InvalidProbe),
    /// A probe does not reach the guest.
    #[error(transparent)]
    Prober(#[from] ProberError),
    /// The library cannot build what acts on a liveness failure.
    #[error(transparent)]
    Watchdog(#[from] vm_watchdog::Error),
    /// The host cannot start a thread.
    #[error("start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// The probes of a VM.
pub struct Health {
    vm: Arc<Vm>,
    timeline: Timeline,
    liveness: Option<Liveness>,
    readiness: Option<Arc<Runner>>,
    /// The thread that acts on liveness failures.
    progress: Progress,
    /// What followed from the last liveness failure.
    pub last_action: LastAction,
    /// What the service manager shows.
    status: Mutex<Status>,
    /// A watchdog of the VM, if it has any: they record the events of the VM, and when its VMM is connected.
    watchdog: Option<Arc<Endpoint>>,
    /// Whether the VM is there, as far as this server can tell.
    is_present: Mutex<bool>,
}

struct Liveness {
    runner: Arc<Runner>,
    /// Times out when the probe has failed.
    failure: Watchdog<LivenessFailure>,
    restarts: Mutex<Restarts>,
}

/// The results in words; empty for a probe that the VM does not have.
#[derive(Default)]
struct Status {
    liveness: String,
    readiness: String,
}

/// When the VM started, and how often the probe has had it restarted.
struct Restarts {
    started: VmInstant,
    back_off: RestartBackOff,
}

impl Health {
    /// Builds the probes. Their attempts begin with [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// The error of the library, or the rule of Kubernetes that a probe breaks.
    pub fn build(
        options: &HealthOptions,
        vm: Arc<Vm>,
        watchdog: Option<Arc<Endpoint>>,
        timeline: Timeline,
    ) -> Result<Arc<Self>, HealthError> {
        let worker = |kind, probe: &Option<Probe>| probe.as_ref().map(|probe| Worker::new(kind, probe)).transpose();
        let runner = |worker| Runner::new(worker, vm.clock.clone(), options.shutdown_limit);
        let readiness = worker(ProbeKind::Readiness, &options.readiness)?.map(runner);
        let handler = LateHandler::new();
        let liveness = match worker(ProbeKind::Liveness, &options.liveness)?.map(runner) {
            Some(runner) => {
                let failure = Watchdog::builder(LIVENESS, LivenessFailure::default());
                let failure = failure.clock(vm.clock.clone()).policy(options.policy).build(handler.clone())?;
                let restarts = Restarts { started: vm.clock.now(), back_off: RestartBackOff::new() };
                Some(Liveness { runner, failure, restarts: Mutex::new(restarts) })
            }
            None => None,
        };
        let health = Arc::new(Self {
            vm,
            timeline,
            liveness,
            readiness,
            progress: Progress::default(),
            last_action: LastAction::default(),
            status: Mutex::default(),
            watchdog,
            is_present: Mutex::new(false),
        });
        handler.set_owner(&health);
        let listener: Arc<dyn VmWatchdog> = health.clone();
        health.vm.add(Arc::downgrade(&listener));
        Ok(health)
    }

    /// Runs the probes on threads of their own; `resolver` looks up the names of their hosts. Returns the thread that acts
    /// on liveness failures, if there is a liveness probe.
    ///
    /// # Errors
    ///
    /// [`HealthError`] if a thread cannot be started.
    pub fn start(
        self: &Arc<Self>,
        options: &HealthOptions,
        resolver: &Arc<dyn Resolve>,
    ) -> Result<Option<WatchdogThread>, HealthError> {
        let liveness = self.liveness.as_ref().map(|liveness| liveness.failure.spawn()).transpose()?;
        let probes = [(ProbeKind::Liveness, &options.liveness), (ProbeKind::Readiness, &options.readiness)];
        for (kind, probe) in probes {
            if let (Some(runner), Some(probe)) = (self.runner(kind), probe) {
                let mut prober = Prober::new(kind, probe, &options.guest)?.with_resolver(resolver.clone());
                runner.spawn(move || prober.attempt(), self.clone())?;
            }
        }
        if self.vm.control.qmp().is_none() && self.watchdog.is_none() {
            self.set_present(true);
        }
        Ok(liveness)
    }

    /// The result of the liveness or readiness probe; `None` if the VM has no such probe.
    pub fn probe(&self, kind: ProbeKind) -> Option<Snapshot> {
        self.runner(kind).map(|runner| runner.snapshot())
    }

    /// The counters of the actions that follow from liveness failures; `None` without a liveness probe.
    pub fn liveness_stats(&self) -> Option<Stats> {
        self.liveness.as_ref().map(|liveness| liveness.failure.stats())
    }

    /// Whether the thread that acts on liveness failures makes progress. Reports when it no longer does.
    pub fn makes_progress(&self) -> bool {
        let is_paused = self.vm.clock.is_paused();
        self.liveness_stats()
            .is_none_or(|stats| self.progress.is_made(LIVENESS, self.vm.action_limit(), is_paused, &stats))
    }

    fn runner(&self, kind: ProbeKind) -> Option<&Arc<Runner>> {
        match kind {
            ProbeKind::Liveness => self.liveness.as_ref().map(|liveness| &liveness.runner),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }

    /// The VM is a new one: every probe starts over, and what is pending is dropped.
    fn start_over(&self, event: fn(&mut Worker, VmInstant) -> Option<Change>) {
        if let Some(liveness) = &self.liveness {
            liveness.runner.tell(self, |worker, now| {
                liveness.failure.reset();
                liveness.restarts().started = now;
                event(worker, now)
            });
        }
        if let Some(readiness) = &self.readiness {
            readiness.tell(self, event);
        }
    }

    fn tell(&self, event: fn(&mut Worker, VmInstant) -> Option<Change>) {
        for runner in [self.runner(ProbeKind::Liveness), self.runner(ProbeKind::Readiness)].into_iter().flatten() {
            runner.tell(self, event);
        }
    }

    /// The VM, or its connection, is there or no longer.
    fn set_present(&self, present: bool) {
        *self.is_present() = present;
        self.start_over(if present { Worker::vm_started } else { stopped });
    }

    fn is_present(&self) -> MutexGuard<'_, bool> {
        self.is_present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the result in the status of the service.
    fn show(&self, kind: ProbeKind, change: &Change) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let Change { cause, .. } = change;
        let (place, words) = match (kind, change.result) {
            (ProbeKind::Liveness, ProbeResult::Success) => (&mut status.liveness, "alive".to_owned()),
            (ProbeKind::Liveness, ProbeResult::Failure) => (&mut status.liveness, format!("not alive: {cause}")),
            (ProbeKind::Readiness, ProbeResult::Success) => (&mut status.readiness, "ready".to_owned()),
            (ProbeKind::Readiness, ProbeResult::Failure) => (&mut status.readiness, format!("not ready: {cause}")),
        };
        *place = words;
        let results = [status.liveness.as_str(), status.readiness.as_str()];
        service::status(&results.into_iter().filter(|result| !result.is_empty()).collect::<Vec<_>>().join("; "));
    }

    fn record(&self, id: &str, event: ServerEvent) {
        self.timeline.record(Entry { id: id.to_owned(), event });
    }
}

fn stopped(worker: &mut Worker, _now: VmInstant) -> Option<Change> {
    worker.vm_stopped()
}

/// A VM that has shut down, and whose VMM has stayed, starts by a reset.
fn reset(worker: &mut Worker, now: VmInstant) -> Option<Change> {
    if worker.phase() == Phase::Stopped { worker.vm_started(now) } else { worker.vm_reset(now) }
}

fn resumed(worker: &mut Worker, now: VmInstant) -> Option<Change> {
    if worker.phase() == Phase::Stopped {
        return worker.vm_started(now);
    }
    worker.vm_resumed();
    None
}

fn paused(worker: &mut Worker, now: VmInstant) -> Option<Change> {
    worker.vm_paused(now);
    None
}

fn shutting_down(worker: &mut Worker, _now: VmInstant) -> Option<Change> {
    worker.vm_shutting_down();
    None
}

impl Liveness {
    fn restarts(&self) -> MutexGuard<'_, Restarts> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The probe has failed: the action is due now, or later if restarts have not helped.
    fn failed(&self) -> Duration {
        self.failure.access(|failure, now| {
            let Restarts { started, back_off } = &mut *self.restarts();
            let delay = back_off.next_delay(now.saturating_duration_since(*started));
            failure.time_out_at(now + delay);
            (Access::Accepted, delay)
        })
    }
}

impl VmListener for Health {
    fn vm_event(&self, event: VmEvent) {
        if let Some(event) = ServerEvent::of_vm(event.clone()).filter(|_| self.watchdog.is_none()) {
            self.record("vm", event);
        }
        match event {
            VmEvent::Control { connected, .. } => self.set_present(connected),
            VmEvent::Client { connected } if self.vm.control.qmp().is_none() => self.set_present(connected),
            _ if !*self.is_present() => {}
            VmEvent::Runs(true) => self.tell(resumed),
            VmEvent::Runs(false) => self.tell(paused),
            VmEvent::Reset { .. } => self.start_over(reset),
            VmEvent::Shutdown { .. } => self.start_over(stopped),
            VmEvent::Powerdown => self.tell(shutting_down),
            VmEvent::Client { .. } | VmEvent::DumpEnded { .. } => {}
        }
    }
}

/// Without a watchdog there is no VMM to compare the control socket with.
impl VmWatchdog for Health {
    fn owner(&self) -> Owner {
        let owner = self.vm.connected_owner();
        owner.unwrap_or_else(|| self.watchdog.as_ref().map_or(Owner::Any, |watchdog| watchdog.owner()))
    }

    /// Probes do not tell whether the VM is there.
    fn is_connected(&self) -> bool {
        false
    }
}

impl Observer for Health {
    fn remarked(&self, kind: ProbeKind, outcome: &Outcome) {
        let message = outcome.message().unwrap_or_default().to_owned();
        self.record(kind.as_str(), ServerEvent::Attempt { outcome: outcome.name(), message });
    }

    fn changed(&self, kind: ProbeKind, change: &Change) {
        let event = ServerEvent::Probe { result: change.result.as_str(), reason: change.cause.to_string() };
        self.record(kind.as_str(), event);
        self.show(kind, change);
        let Some(liveness) = self.liveness.as_ref().filter(|_| kind == ProbeKind::Liveness) else {
            return;
        };
        if change.result == ProbeResult::Failure {
            let delay = liveness.failed();
            if !delay.is_zero() {
                self.record(kind.as_str(), ServerEvent::BackOff { seconds: delay.as_secs() });
            }
        }
    }
}

/// Performs what follows from a liveness failure.
impl ActionHandler for Health {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        let _busy = self.progress.acting.begin(Instant::now());
        let Event { action, .. } = *event;
        self.record(LIVENESS, ServerEvent::Expiry(GuestExpiry::new(event, 0)));
        if let Some(metrics) = &self.vm.metrics {
            metrics.write_soon();
        }
        self.last_action.started(event);
        if matches!(action, Action::None | Action::Debug) {
            self.last_action.ended(event, &Ok(()));
            return Ok(());
        }
        let socket = self.watchdog.as_ref().map_or(Path::new(""), |watchdog| &watchdog.socket);
        let outcome = self.vm.control.perform(event, socket, &self.owner());
        self.last_action.ended(event, &outcome);
        self.record(LIVENESS, ServerEvent::of_outcome(action, &outcome));
        if outcome.is_ok() && action == Action::Reset && self.vm.control.qmp().is_none() {
            // No event reports it.
            self.start_over(reset);
        }
        outcome
    }

    fn note(&self, event: &Event) {
        // An event without an action cannot fail.
        let _ = self.perform(event);
    }
}

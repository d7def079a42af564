//! The thread of one probe: waits until an attempt is due, runs the handler, and tells the worker what it found.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vm_watchdog::{VmClock, VmInstant};
use vm_watchdog_probes::{Attempt, Change, Completed, Outcome, Phase, ProbeKind, ProbeResult, Streak, Worker};

/// The stack of the thread, which runs TLS.
const STACK: usize = 512 << 10;

/// A probe of the VM.
pub struct Runner {
    clock: VmClock,
    /// How long a guest that was asked to shut down may take. After that it runs on.
    shutdown_limit: Duration,
    state: Mutex<State>,
    /// Signalled when the VM, and so the time of the next attempt, has changed.
    changed: Condvar,
}

struct State {
    worker: Worker,
    attempts: Attempts,
    /// Until when the guest may shut down, if it was asked to.
    shutting_down_until: Option<VmInstant>,
    /// Why the result is what it is.
    reason: Option<String>,
}

/// How many attempts ended in which way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempts {
    pub successes: u64,
    pub warnings: u64,
    pub failures: u64,
    pub errors: u64,
}

/// A probe as of now.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub kind: ProbeKind,
    pub result: ProbeResult,
    pub reason: Option<String>,
    pub phase: Phase,
    pub is_paused: bool,
    pub streak: Streak,
    pub attempts: Attempts,
}

/// Is told what a probe finds, in the order in which it happens: under the lock of the [`Runner`], which it must not call.
pub trait Observer: Send + Sync {
    /// An attempt that counts did not succeed without a remark.
    fn remarked(&self, kind: ProbeKind, outcome: &Outcome);
    /// The result has changed, or the state of the VM has changed it.
    fn changed(&self, kind: ProbeKind, change: &Change);
}

impl Runner {
    pub fn new(worker: Worker, clock: VmClock, shutdown_limit: Duration) -> Arc<Self> {
        let state = State { worker, attempts: Attempts::default(), shutting_down_until: None, reason: None };
        Arc::new(Self { clock, shutdown_limit, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Runs `attempt` whenever it is due, for ever, on a thread of its own.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start a thread.
    pub fn spawn(
        self: &Arc<Self>,
        mut attempt: impl FnMut() -> Outcome + Send + 'static,
        observer: Arc<dyn Observer>,
    ) -> io::Result<()> {
        let runner = self.clone();
        let name = runner.state().worker.kind().to_string();
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            loop {
                let due = runner.wait(&*observer);
                // An attempt that is never completed would be the last one.
                let outcome = panic::catch_unwind(AssertUnwindSafe(&mut attempt));
                let outcome = outcome.unwrap_or_else(|_| Outcome::Error("the handler has panicked".to_owned()));
                runner.complete(due, &outcome, &*observer);
            }
        })?;
        Ok(())
    }

    /// Tells the worker of a change of the VM, and the observer of the result that follows from it. `event` is called under
    /// the lock, as the observer is.
    pub fn tell(&self, observer: &dyn Observer, event: impl FnOnce(&mut Worker, VmInstant) -> Option<Change>) {
        let mut state = self.state();
        let now = self.clock.now();
        let change = event(&mut state.worker, now);
        let is_shutting_down = state.worker.phase() == Phase::ShuttingDown;
        state.shutting_down_until =
            is_shutting_down.then(|| state.shutting_down_until.unwrap_or(now + self.shutdown_limit));
        state.publish(change, observer);
        drop(state);
        self.changed.notify_all();
    }

    pub fn snapshot(&self) -> Snapshot {
        let State { worker, attempts, reason, shutting_down_until: _ } = &*self.state();
        Snapshot {
            kind: worker.kind(),
            result: worker.result(),
            reason: reason.clone(),
            phase: worker.phase(),
            is_paused: worker.is_paused(),
            streak: worker.streak(),
            attempts: *attempts,
        }
    }

    /// Waits until an attempt is due.
    fn wait(&self, observer: &dyn Observer) -> Attempt {
        let mut state = self.state();
        loop {
            let now = self.clock.now();
            if state.shutting_down_until.take_if(|until| *until <= now).is_some() {
                let change = state.worker.vm_started(now);
                state.publish(change, observer);
            }
            if let Some(attempt) = state.worker.poll(now) {
                return attempt;
            }
            state = match state.worker.poll_at().or(state.shutting_down_until) {
                Some(due) => {
                    // In the time of the VM, which may have been paused since. Then the wait is too short, and repeated.
                    let left = due.saturating_duration_since(now).max(Duration::from_millis(1));
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn complete(&self, attempt: Attempt, outcome: &Outcome, observer: &dyn Observer) {
        let mut state = self.state();
        let Completed { counted, change, .. } = state.worker.complete(self.clock.now(), attempt, outcome.clone());
        let kind = state.worker.kind();
        if counted {
            state.attempts.count(outcome);
            if *outcome != Outcome::Success {
                observer.remarked(kind, outcome);
            }
        }
        state.publish(change, observer);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn publish(&mut self, change: Option<Change>, observer: &dyn Observer) {
        if let Some(change) = change {
            self.reason = Some(change.cause.to_string());
            observer.changed(self.worker.kind(), &change);
        }
    }
}

impl Attempts {
    fn count(&mut self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Success => &mut self.successes,
            Outcome::Warning(_) => &mut self.warnings,
            Outcome::Failure(_) => &mut self.failures,
            _ => &mut self.errors,
        };
        *counter += 1;
    }
}

//! The VM that this process serves, which runs in another process: its clock, its control channel, its state and its
//! watchdogs.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vm_watchdog::VmClock;

use crate::serve::control::Control;
use crate::serve::control::messages::VmEvent;
use crate::serve::control::qmp::VmListener;
use crate::serve::device::Pauses;
use crate::serve::metrics::file::MetricsFile;
use crate::serve::peer::Owner;
use crate::serve::state::StateWriter;

/// A VM.
pub struct Vm {
    pub clock: VmClock,
    /// Pauses and resumes the clock.
    pub pauses: Arc<Pauses>,
    pub control: Control,
    /// Whether the control socket may belong to another process than the VMM.
    pub accepts_any_process: bool,
    /// The file that keeps the state of its watchdogs, if there is one.
    pub state: Option<StateWriter>,
    /// The file that has the metrics, if there is one.
    pub metrics: Option<MetricsFile>,
    /// Whether QMP reports that the VM is paused.
    is_reported_paused: Mutex<bool>,
    /// Whether a VMM is connected to any of the watchdogs, as they were told last.
    has_client: Mutex<bool>,
    watchdogs: Mutex<Vec<Weak<dyn VmWatchdog>>>,
}

/// A watchdog of a VM.
pub trait VmWatchdog: VmListener {
    /// The process that the control socket has to belong to.
    fn owner(&self) -> Owner;

    /// Whether a VMM is connected to it.
    fn is_connected(&self) -> bool;
}

impl Vm {
    pub fn new(
        control: Control,
        accepts_any_process: bool,
        state: Option<StateWriter>,
        metrics: Option<MetricsFile>,
    ) -> Arc<Self> {
        let clock = VmClock::monotonic();
        Arc::new(Self {
            pauses: Arc::new(Pauses::of(clock.clone())),
            clock,
            control,
            accepts_any_process,
            state,
            metrics,
            is_reported_paused: Mutex::default(),
            has_client: Mutex::default(),
            watchdogs: Mutex::default(),
        })
    }

    /// How long an action may take. It may have to wait for those of the other watchdogs.
    pub fn action_limit(&self) -> Duration {
        let watchdogs = self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.control.action_limit().saturating_mul(u32::try_from(watchdogs).unwrap_or(u32::MAX))
    }

    /// Adds a watchdog, which is notified of the events of the VM from now on.
    pub fn add(&self, watchdog: Weak<dyn VmWatchdog>) {
        self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).push(watchdog);
    }

    /// Pauses or resumes the clock as QMP has reported last. To be called when a VMM has connected or disconnected: a
    /// report counts only if it is the VMM's.
    pub fn follow_pause(&self) {
        self.change_pause(|_| {});
    }

    /// The process that the control socket has to belong to, by one of the watchdogs that are connected.
    pub fn connected_owner(&self) -> Option<Owner> {
        self.watchdogs().iter().find(|watchdog| watchdog.is_connected()).map(|watchdog| watchdog.owner())
    }

    /// Notifies the watchdogs if a VMM is connected to the first of them, or no longer to any. To be called when a VMM has
    /// connected or disconnected.
    pub fn follow_clients(&self) {
        let mut has_client = self.has_client.lock().unwrap_or_else(PoisonError::into_inner);
        let watchdogs = self.watchdogs();
        let connected = watchdogs.iter().any(|watchdog| watchdog.is_connected());
        if std::mem::replace(&mut *has_client, connected) == connected {
            return;
        }
        // Under the lock, as the reports of a pause.
        watchdogs.iter().for_each(|watchdog| watchdog.vm_event(VmEvent::Client { connected }));
    }

    fn change_pause(&self, change: impl FnOnce(&mut bool)) {
        let mut is_reported = self.is_reported_paused.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut is_reported);
        let watchdogs = self.watchdogs();
        let pauses = *is_reported && watchdogs.iter().all(|watchdog| self.believes_qmp(&**watchdog));
        if !self.pauses.set_vm_paused(pauses) {
            return;
        }
        // Under the lock, so that the reports of two threads are in the order of their changes.
        watchdogs.iter().for_each(|watchdog| watchdog.vm_event(VmEvent::Runs(!pauses)));
    }

    /// Whether events of QMP count for this watchdog.
    fn believes_qmp(&self, watchdog: &dyn VmWatchdog) -> bool {
        let process = self.control.qmp().and_then(|qmp| qmp.process());
        process.is_some_and(|(_, process)| watchdog.owner().believes(&process))
    }

    fn watchdogs(&self) -> Vec<Arc<dyn VmWatchdog>> {
        self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Pauses and resumes the clock, and forwards to the watchdogs what has changed.
impl VmListener for Vm {
    fn vm_event(&self, event: VmEvent) {
        let watchdogs = self.watchdogs();
        match event {
            VmEvent::Runs(runs) => return self.change_pause(|is_reported| *is_reported = !runs),
            VmEvent::DumpEnded { outcome } => {
                if let Some(qmp) = self.control.qmp() {
                    if watchdogs.iter().all(|watchdog| self.believes_qmp(&**watchdog)) {
                        qmp.dump_ended(outcome);
                    }
                }
                return;
            }
            VmEvent::Reset { .. }
            | VmEvent::Powerdown
            | VmEvent::Shutdown { .. }
            | VmEvent::Client { .. }
            | VmEvent::Control { .. } => {}
        }
        let is_certain = matches!(event, VmEvent::Control { .. });
        for watchdog in watchdogs {
            if is_certain || self.believes_qmp(&*watchdog) {
                watchdog.vm_event(event.clone());
            }
        }
    }
}

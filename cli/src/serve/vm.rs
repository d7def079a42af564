//! The VM that this process serves, which runs in another process: its clock, its control channel, its state and its
//! watchdogs.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vm_watchdog::VmClock;

use crate::serve::control::Control;
use crate::serve::control::qmp::{VmEvent, VmListener};
use crate::serve::metrics::file::MetricsFile;
use crate::serve::state::StateWriter;

/// A VM.
pub struct Vm {
    pub clock: VmClock,
    pub control: Control,
    /// The file that keeps the state of its watchdogs, if there is one.
    pub state: Option<StateWriter>,
    /// The file that has the metrics, if there is one.
    pub metrics: Option<MetricsFile>,
    watchdogs: Mutex<Vec<Weak<dyn VmListener>>>,
}

impl Vm {
    pub fn new(control: Control, state: Option<StateWriter>, metrics: Option<MetricsFile>) -> Arc<Self> {
        Arc::new(Self { clock: VmClock::monotonic(), control, state, metrics, watchdogs: Mutex::default() })
    }

    /// How long an action may take. It may have to wait for those of the other watchdogs.
    pub fn action_limit(&self) -> Duration {
        let watchdogs = self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.control.action_limit().saturating_mul(u32::try_from(watchdogs).unwrap_or(u32::MAX))
    }

    /// Adds a watchdog, which is notified of the events of the VM from now on.
    pub fn add(&self, watchdog: Weak<dyn VmListener>) {
        self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).push(watchdog);
    }
}

/// Pauses and resumes the clock, and forwards to the watchdogs what has changed.
impl VmListener for Vm {
    fn vm_event(&self, event: VmEvent) {
        match event {
            VmEvent::Runs(runs) if runs != self.clock.is_paused() => return,
            VmEvent::Runs(true) => self.clock.resume(),
            VmEvent::Runs(false) => self.clock.pause(),
            VmEvent::Reset { .. } | VmEvent::Shutdown { .. } | VmEvent::Control { .. } => {}
        }
        let watchdogs = self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for watchdog in watchdogs.iter().filter_map(Weak::upgrade) {
            watchdog.vm_event(event.clone());
        }
    }
}

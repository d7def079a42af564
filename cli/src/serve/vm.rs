//! A VM that runs in another process: its clock, its QMP connection and its watchdogs.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_watchdog::VmClock;

use crate::serve::control::qmp::{Qmp, VmEvent, VmListener};

/// A VM.
pub struct Vm {
    pub clock: VmClock,
    /// Its QMP connection, if there is one.
    pub qmp: Option<Arc<Qmp>>,
    watchdogs: Mutex<Vec<Weak<dyn VmListener>>>,
}

impl Vm {
    pub fn new(qmp: Option<Arc<Qmp>>) -> Arc<Self> {
        Arc::new(Self { clock: VmClock::monotonic(), qmp, watchdogs: Mutex::default() })
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

//! A VM that runs in another process: its clock, its watchdogs, and what is known of it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_watchdog::VmClock;

use super::control::qmp::{Follower, Qmp, VmEvent};
use super::endpoint::Endpoint;
use super::events::What;

/// A VM.
pub struct Vm {
    pub clock: VmClock,
    /// Its QMP connection, if there is one.
    pub qmp: Option<Arc<Qmp>>,
    watchdogs: Mutex<Vec<Weak<Endpoint>>>,
}

impl Vm {
    pub fn new(qmp: Option<Arc<Qmp>>) -> Arc<Self> {
        Arc::new(Self { clock: VmClock::monotonic(), qmp, watchdogs: Mutex::default() })
    }

    /// A watchdog of this VM.
    pub fn add(&self, endpoint: &Arc<Endpoint>) {
        self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(endpoint));
    }

    fn for_each(&self, mut tell: impl FnMut(&Endpoint)) {
        let watchdogs = self.watchdogs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for endpoint in watchdogs.iter().filter_map(Weak::upgrade) {
            tell(&endpoint);
        }
    }
}

/// What QMP tells of the VM.
impl Follower for Vm {
    fn vm_event(&self, event: VmEvent) {
        match event {
            VmEvent::Runs(false) if !self.clock.is_paused() => {
                self.clock.pause();
                self.for_each(|endpoint| endpoint.record(What::Paused));
            }
            VmEvent::Runs(true) if self.clock.is_paused() => {
                self.clock.resume();
                self.for_each(|endpoint| endpoint.record(What::Resumed));
            }
            VmEvent::Runs(_) => {}
            // The device is reset through its own socket; here it is only learnt that the VM has been dealt with.
            VmEvent::Reset { reason } => self.for_each(|endpoint| {
                endpoint.acknowledge();
                endpoint.record(What::Vm { name: "reset", reason: reason.clone() });
            }),
            VmEvent::Shutdown { reason } => self.for_each(|endpoint| {
                endpoint.acknowledge();
                endpoint.record(What::Vm { name: "shutdown", reason: reason.clone() });
            }),
            VmEvent::Control { socket, connected, reason } => self.for_each(|endpoint| {
                endpoint.record(What::Control { socket: socket.clone(), connected, reason: reason.clone() });
            }),
        }
    }
}

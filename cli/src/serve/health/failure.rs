//! A liveness failure as a model of the watchdog library, which expires when the probe has failed. The library does what
//! it does for a device that times out: the action of the policy, its retries, the escalation, and nothing while the VM
//! is paused.

use vm_watchdog::{Expired, Model, StateError, VmInstant};

/// Times out when it is told to.
#[derive(Debug, Default)]
pub struct LivenessFailure {
    deadline: Option<VmInstant>,
}

impl LivenessFailure {
    /// Times out at `deadline`, unless the VM is reset before.
    pub fn time_out_at(&mut self, deadline: VmInstant) {
        self.deadline = Some(deadline);
    }
}

impl Model for LivenessFailure {
    /// Nothing is saved: probes start over with the server.
    type State = ();

    fn poll_at(&self) -> Option<VmInstant> {
        self.deadline
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        Expired::new(None, self.deadline.take_if(|deadline| *deadline <= now))
    }

    fn is_armed(&self) -> bool {
        self.deadline.is_some()
    }

    fn reset(&mut self) {
        self.deadline = None;
    }

    fn save(&mut self, _now: VmInstant) {}

    fn restored(&self, (): &(), _now: VmInstant) -> Result<Self, StateError> {
        Ok(Self::default())
    }
}

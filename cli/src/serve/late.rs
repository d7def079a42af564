//! A handler whose actions are performed by the owner of the watchdog, which is built after the watchdog.

use std::sync::{Arc, OnceLock, Weak};

use vm_watchdog::{ActionHandler, Event, HandlerError, VmInstant};

/// Passes every call on to its owner, as long as that exists.
pub struct LateHandler<T>(Arc<OnceLock<Weak<T>>>);

impl<T> LateHandler<T> {
    /// A handler without an owner: its actions fail.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Sets the owner, once.
    pub fn set_owner(&self, owner: &Arc<T>) {
        let is_first = self.0.set(Arc::downgrade(owner)).is_ok();
        debug_assert!(is_first, "the handler has an owner");
    }

    fn owner(&self) -> Option<Arc<T>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl<T> Clone for LateHandler<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ActionHandler> ActionHandler for LateHandler<T> {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        self.owner().ok_or("the server is about to end")?.perform(event)
    }

    fn note(&self, event: &Event) {
        if let Some(owner) = self.owner() {
            owner.note(event);
        }
    }

    fn delayed(&self, event: &Event, until: VmInstant) {
        if let Some(owner) = self.owner() {
            owner.delayed(event, until);
        }
    }

    fn suppressed(&self, event: &Event) {
        if let Some(owner) = self.owner() {
            owner.suppressed(event);
        }
    }
}

//! A lock that the thread which serves the timer gets before the others.

use std::sync::PoisonError;

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// Which thread takes the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that serves the timer.
    Serving,
    /// That of a vCPU, or of the VMM.
    Other,
}

/// A mutex goes to whichever thread is there when it is released. The vCPUs of a guest that makes accesses without a pause
/// would keep the serving thread out for as long as they like, and its watchdog from timing out. Here they wait while the
/// serving thread waits.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    value: Mutex<T>,
    /// The serving thread waits for the value, and holds `turn`.
    is_wanted: AtomicBool,
    turn: Mutex<()>,
}

impl<T> Lock<T> {
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), is_wanted: AtomicBool::new(false), turn: Mutex::new(()) }
    }

    #[inline]
    pub fn lock(&self, side: Side) -> MutexGuard<'_, T> {
        match side {
            Side::Serving => self.lock_first(),
            Side::Other => {
                // A thread that has seen it too late is one more that the serving thread waits for.
                if self.is_wanted.load(Ordering::SeqCst) {
                    drop(self.turn.lock());
                }
                self.lock_value()
            }
        }
    }

    fn lock_first(&self) -> MutexGuard<'_, T> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_wanted.store(true, Ordering::SeqCst);
        let guard = self.lock_value();
        self.is_wanted.store(false, Ordering::SeqCst);
        guard
    }

    fn lock_value(&self) -> MutexGuard<'_, T> {
        // No foreign code runs under the lock, so a poisoned one guards a sound state.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

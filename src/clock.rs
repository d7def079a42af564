//! The VM's clock: time that passes only while the VM runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::VmInstant;

/// The clock of one VM, shared by its watchdogs; a cheap handle.
///
/// Tell it when the VM stops and goes on. While it is paused no time passes and no [`ActionHandler`] is called: an
/// expiry that races with a pause is reported before [`pause`](Self::pause) returns or after [`resume`](Self::resume).
/// The source is CLOCK_MONOTONIC, so time that the host spends suspended does not count either.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::{VmClock, VmInstant};
///
/// let (clock, time) = VmClock::manual();
/// time.advance(Duration::from_nanos(3));
/// clock.pause();
/// time.advance(Duration::from_secs(60));
/// clock.resume();
/// assert_eq!(clock.now(), VmInstant::from_nanos(3));
/// ```
///
/// [`ActionHandler`]: crate::ActionHandler
#[derive(Clone)]
pub struct VmClock {
    inner: Arc<Inner>,
}

/// The hand that moves a [manual clock](VmClock::manual).
#[derive(Clone)]
pub struct ManualClock {
    clock: VmClock,
    nanos: Arc<AtomicU64>,
}

struct Inner {
    source: Source,
    state: Mutex<State>,
    /// Signalled when the last handler call in progress ends.
    quiet: Condvar,
    listeners: Mutex<Vec<Weak<dyn ClockListener>>>,
}

enum Source {
    Monotonic(Instant),
    Manual(Arc<AtomicU64>),
}

struct State {
    /// The VM's time when the source showed zero.
    elapsed_before: Duration,
    /// How long the VM has been paused.
    paused_for: Duration,
    /// The instant at which the VM was paused.
    paused_at: Option<VmInstant>,
    /// The threads that are in a handler call.
    performing: Vec<ThreadId>,
}

/// Whoever has a timer to arm anew when the clock does more than tick.
pub(crate) trait ClockListener: Send + Sync {
    fn clock_changed(&self);
}

/// A handler may be called: the clock does not pause before this is dropped.
pub(crate) struct Permit<'a> {
    clock: &'a VmClock,
}

impl VmClock {
    /// A clock that runs from now on with the host's CLOCK_MONOTONIC.
    pub fn monotonic() -> Self {
        Self::new(Source::Monotonic(Instant::now()))
    }

    /// A [monotonic](Self::monotonic) clock that shows `start` now: the clock of a VM that lived before.
    pub fn monotonic_from(start: VmInstant) -> Self {
        let clock = Self::monotonic();
        clock.state().elapsed_before = Duration::from_nanos(start.as_nanos());
        clock
    }

    /// A clock that stands at zero until it is advanced by hand, for tests and simulations.
    pub fn manual() -> (Self, ManualClock) {
        let nanos = Arc::new(AtomicU64::new(0));
        let clock = Self::new(Source::Manual(nanos.clone()));
        (clock.clone(), ManualClock { clock, nanos })
    }

    fn new(source: Source) -> Self {
        let state = State {
            elapsed_before: Duration::ZERO,
            paused_for: Duration::ZERO,
            paused_at: None,
            performing: Vec::new(),
        };
        let inner =
            Inner { source, state: Mutex::new(state), quiet: Condvar::new(), listeners: Mutex::new(Vec::new()) };
        Self { inner: Arc::new(inner) }
    }

    /// The VM's time.
    pub fn now(&self) -> VmInstant {
        self.now_in(&self.state())
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.state().paused_at.is_some()
    }

    /// The VM stops: time stands still, and no handler is called until [`resume`](Self::resume).
    ///
    /// Returns once no handler of this VM's watchdogs is running, so do not hold a lock that a handler takes. Called
    /// from a handler it does not wait. Pausing a paused clock changes nothing.
    pub fn pause(&self) {
        let mut state = self.stand_still();
        while !state.performing.is_empty() && !state.performing.contains(&thread::current().id()) {
            state = self.inner.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The VM has stopped already, as somebody else reports: [`pause`](Self::pause) for a VM in another process.
    ///
    /// Does not wait for a handler that is running, so the thread that brings such reports may be one that a handler
    /// waits for.
    pub fn pause_without_waiting(&self) {
        drop(self.stand_still());
    }

    /// The VM goes on: time passes from where it stood. Resuming a running clock changes nothing.
    pub fn resume(&self) {
        let mut state = self.state();
        if let Some(paused_at) = state.paused_at.take() {
            let late = self.now_in(&state).saturating_duration_since(paused_at);
            state.paused_for = state.paused_for.saturating_add(late);
            drop(state);
            self.notify();
        }
    }

    fn stand_still(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let now = self.now_in(&state);
        state.paused_at.get_or_insert(now);
        state
    }

    pub(crate) fn subscribe(&self, listener: Weak<dyn ClockListener>) {
        let mut listeners = self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    /// Leave to call a handler from this thread, None while the VM is paused.
    pub(crate) fn permit(&self) -> Option<Permit<'_>> {
        let mut state = self.state();
        if state.paused_at.is_some() {
            return None;
        }
        state.performing.push(thread::current().id());
        Some(Permit { clock: self })
    }

    /// Tells the listeners, with no lock of the clock held.
    fn notify(&self) {
        let listeners = self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            listener.clock_changed();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_in(&self, state: &State) -> VmInstant {
        let running = || state.elapsed_before.saturating_add(self.source_time()).saturating_sub(state.paused_for);
        state.paused_at.unwrap_or_else(|| VmInstant::ZERO + running())
    }

    fn source_time(&self) -> Duration {
        match &self.inner.source {
            Source::Monotonic(start) => start.elapsed(),
            Source::Manual(nanos) => Duration::from_nanos(nanos.load(Ordering::SeqCst)),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let me = thread::current().id();
        let mut state = self.clock.state();
        if let Some(index) = state.performing.iter().position(|&thread| thread == me) {
            state.performing.swap_remove(index);
        }
        if state.performing.is_empty() {
            self.clock.inner.quiet.notify_all();
        }
    }
}

impl ManualClock {
    /// Moves the clock on by `duration`, which a paused VM does not notice.
    pub fn advance(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let add = |old: u64| Some(old.saturating_add(nanos));
        // The closure always gives a value, so the update cannot fail.
        let _ = self.nanos.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        self.clock.notify();
    }
}

impl Default for VmClock {
    /// A [monotonic](Self::monotonic) clock.
    fn default() -> Self {
        Self::monotonic()
    }
}

impl std::fmt::Debug for VmClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmClock").field("now", &self.now()).field("is_paused", &self.is_paused()).finish()
    }
}

impl std::fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManualClock").field("clock", &self.clock).finish()
    }
}

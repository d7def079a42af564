//! The VM's clock: time that passes only while the VM runs.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use vm_watchdog_devices::VmInstant;

use crate::sync::thread::ThreadId;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering, Timer, thread};

/// The clock of one VM, shared by its watchdogs; a cheap handle.
///
/// Tell it when the VM stops and goes on: [`pause`](Self::pause), [`quiesce`](Self::quiesce), [`resume`](Self::resume).
/// While it is paused no time passes, and no call of the VMM's code begins: no [`ActionHandler`], no [`InterruptLine`],
/// no [`RunDelay`]. An expiry that races with a pause is reported before it or after [`resume`](Self::resume). Pauses do
/// not nest: one `resume` ends any number of them. The source is CLOCK_MONOTONIC, so time that the host spends
/// suspended does not count either.
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
/// [`InterruptLine`]: crate::InterruptLine
/// [`RunDelay`]: crate::RunDelay
#[derive(Clone)]
pub struct VmClock {
    inner: Arc<Inner>,
}

/// Handle that advances a [manual clock](VmClock::manual).
#[derive(Clone)]
pub struct ManualClock {
    clock: VmClock,
    nanos: Arc<AtomicU64>,
}

struct Inner {
    source: Source,
    /// The VM's time in nanoseconds when the source showed zero.
    elapsed_before: u64,
    /// How long the VM has been paused, in nanoseconds. Changes only while `pauses` is odd.
    paused_for: AtomicU64,
    /// How often the VM was paused or resumed: odd while it is paused. A reader of the time that finds the same even
    /// number before and after it has looked at the source has a time at which the VM ran, without a lock.
    pauses: AtomicU64,
    state: Mutex<State>,
    /// Signalled when a call ends, and when the VM is resumed.
    changed: Condvar,
    listeners: Mutex<Vec<Weak<dyn ClockListener>>>,
}

enum Source {
    /// What CLOCK_MONOTONIC showed when the clock was made, in nanoseconds.
    Monotonic(u64),
    Manual(Arc<AtomicU64>),
}

struct State {
    /// The instant at which the VM was paused.
    paused_at: Option<VmInstant>,
    /// The threads that are in a call of the VMM's code, once for each call.
    calling: Vec<ThreadId>,
}

/// A watchdog, which arms its timer anew when the clock does more than tick.
pub(crate) trait ClockListener: Send + Sync {
    fn clock_changed(&self);
}

/// Permission to call the VMM's code on this thread. The VM is not quiet before it is dropped.
pub(crate) struct Permit<'a> {
    clock: &'a VmClock,
}

impl VmClock {
    /// A clock that runs from now on with the host's CLOCK_MONOTONIC.
    pub fn monotonic() -> Self {
        Self::monotonic_from(VmInstant::ZERO)
    }

    /// A [monotonic](Self::monotonic) clock that shows `start` now: the clock of a VM that lived before.
    pub fn monotonic_from(start: VmInstant) -> Self {
        Self::new(Source::Monotonic(Timer::now()), start)
    }

    /// A clock that is paused at `start`: that of a VM that was saved, or that has not started. [`resume`](Self::resume)
    /// starts it.
    ///
    /// ```
    /// use vm_watchdog::{VmClock, VmInstant};
    ///
    /// let clock = VmClock::monotonic_paused_at(VmInstant::ZERO);
    /// assert!(clock.is_paused());
    /// assert_eq!(clock.now(), VmInstant::ZERO);
    /// clock.resume();
    /// ```
    pub fn monotonic_paused_at(start: VmInstant) -> Self {
        let clock = Self::monotonic_from(start);
        let mut state = clock.state();
        state.paused_at = Some(start);
        clock.inner.pauses.store(1, Ordering::SeqCst);
        drop(state);
        clock
    }

    /// A clock that stands at zero until it is advanced by hand, for tests and simulations.
    pub fn manual() -> (Self, ManualClock) {
        let nanos = Arc::new(AtomicU64::new(0));
        let clock = Self::new(Source::Manual(nanos.clone()), VmInstant::ZERO);
        (clock.clone(), ManualClock { clock, nanos })
    }

    fn new(source: Source, start: VmInstant) -> Self {
        let inner = Inner {
            source,
            elapsed_before: start.as_nanos(),
            paused_for: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
            state: Mutex::new(State { paused_at: None, calling: Vec::new() }),
            changed: Condvar::new(),
            // Most clocks have one.
            listeners: Mutex::new(Vec::with_capacity(1)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The VM's time.
    pub fn now(&self) -> VmInstant {
        let pauses = self.inner.pauses.load(Ordering::SeqCst);
        if pauses % 2 == 0 {
            let now = self.running_time();
            if self.inner.pauses.load(Ordering::SeqCst) == pauses {
                return now;
            }
        }
        let state = self.state();
        state.paused_at.unwrap_or_else(|| self.running_time())
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.inner.pauses.load(Ordering::SeqCst) % 2 == 1
    }

    /// The VM stops: time stands still, and no call of the VMM's code begins until [`resume`](Self::resume).
    ///
    /// Returns at once. Calls that have begun go on: [`quiesce`](Self::quiesce) waits for them. Pausing a paused clock
    /// changes nothing.
    pub fn pause(&self) {
        let mut state = self.state();
        if state.paused_at.is_none() {
            // No time that is read without the lock from here on is returned, so none is later than the pause.
            self.inner.pauses.fetch_add(1, Ordering::SeqCst);
            state.paused_at = Some(self.running_time());
        }
    }

    /// Waits at most `limit` until a paused VM is quiet: no handler, interrupt line or run-delay reader of its watchdogs
    /// is being called. From then on nothing of this library touches the VM until it is resumed, which is what a
    /// snapshot needs.
    ///
    /// False if the limit has passed, or if the VM runs or was resumed meanwhile. A call on this very thread is not
    /// waited for, so that a handler may quiesce its own VM. Do not hold a lock that a handler takes.
    ///
    /// ```
    /// use std::time::Duration;
    /// use vm_watchdog::VmClock;
    ///
    /// let clock = VmClock::monotonic();
    /// clock.pause();
    /// assert!(clock.quiesce(Duration::from_secs(5)));
    /// // ... save the VM ...
    /// clock.resume();
    /// assert!(!clock.quiesce(Duration::from_secs(5)), "a VM that runs is not quiet");
    /// ```
    pub fn quiesce(&self, limit: Duration) -> bool {
        let me = thread::current().id();
        let is_busy = |state: &mut State| state.paused_at.is_some() && state.calling.iter().any(|thread| *thread != me);
        let waited = self.inner.changed.wait_timeout_while(self.state(), limit, is_busy);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.paused_at.is_some() && !is_busy(&mut state)
    }

    /// The VM goes on: time passes from where it stood. Resuming a running clock changes nothing.
    pub fn resume(&self) {
        let mut state = self.state();
        if let Some(paused_at) = state.paused_at.take() {
            let late = self.running_time().as_nanos().saturating_sub(paused_at.as_nanos());
            let paused_for = self.inner.paused_for.load(Ordering::SeqCst).saturating_add(late);
            self.inner.paused_for.store(paused_for, Ordering::SeqCst);
            self.inner.pauses.fetch_add(1, Ordering::SeqCst);
            drop(state);
            self.inner.changed.notify_all();
            self.notify();
        }
    }

    /// What the host's CLOCK_MONOTONIC shows when it is `instant` in the VM, if the VM is not paused before.
    pub(crate) fn host_time_of(&self, instant: VmInstant) -> Duration {
        let Inner { source, elapsed_before, paused_for, .. } = &*self.inner;
        match source {
            Source::Monotonic(start) => {
                let paused_for = Duration::from_nanos(paused_for.load(Ordering::SeqCst));
                let running = Duration::from_nanos(instant.as_nanos()) + paused_for;
                (Duration::from_nanos(*start) + running).saturating_sub(Duration::from_nanos(*elapsed_before))
            }
            // Advancing such a clock has the timer armed anew.
            Source::Manual(_) => Duration::from_nanos(Timer::now()) + instant.saturating_duration_since(self.now()),
        }
    }

    pub(crate) fn subscribe(&self, listener: Weak<dyn ClockListener>) {
        let mut listeners = self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    /// Permission to call the VMM's code on this thread; None while the VM is paused.
    pub(crate) fn permit(&self) -> Option<Permit<'_>> {
        let mut state = self.state();
        if state.paused_at.is_some() {
            return None;
        }
        state.calling.push(thread::current().id());
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

    /// The VM's time if it is not paused.
    fn running_time(&self) -> VmInstant {
        let Inner { source, elapsed_before, paused_for, .. } = &*self.inner;
        let source = match source {
            Source::Monotonic(start) => Timer::now().saturating_sub(*start),
            Source::Manual(nanos) => nanos.load(Ordering::SeqCst),
        };
        let nanos = elapsed_before.saturating_add(source).saturating_sub(paused_for.load(Ordering::SeqCst));
        VmInstant::from_nanos(nanos)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let me = thread::current().id();
        let mut state = self.clock.state();
        if let Some(index) = state.calling.iter().position(|&thread| thread == me) {
            state.calling.swap_remove(index);
        }
        drop(state);
        self.clock.inner.changed.notify_all();
    }
}

impl ManualClock {
    /// Advances the clock by `duration`, which has no effect on the time of a paused VM.
    pub fn advance(&self, duration: Duration) {
        let add = |old: u64| Some(old.saturating_add(nanos(duration)));
        // The closure always gives a value, so the update cannot fail.
        let _ = self.nanos.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        self.clock.notify();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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

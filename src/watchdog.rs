//! The handle that a VMM holds: a model, a clock, a timer and a handler, put together behind one lock.

use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vm_watchdog_devices::{Access, Model};

use crate::clock::{ClockListener, VmClock};
use crate::delivery::{Deliveries, Delivery};
use crate::log_limit::LogLimit;
use crate::stats::{Stats, count};
use crate::timer::Timer;
use crate::{ActionHandler, Error, Event, HandlerError, InterruptLine, Policy, VmInstant};

/// The least time between two wakes of the host for one watchdog, whatever its guest programs: 1 ms, so that there are
/// at most 1,000 wakes a second. Expiries that come faster are reported together.
pub const MIN_WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// A watchdog of a VM: a shared handle, cheap to clone, to be called from any thread.
///
/// A heartbeat makes no system call and allocates nothing: it moves the deadline in memory, and the timer that was armed
/// for the old one is armed anew when it goes off. A deadline that comes nearer re-arms the timer at once.
///
/// Something has to run the timer. Choose one:
///
/// - [`spawn`](Self::spawn) gives the watchdog a thread of its own;
/// - `WatchdogSubscriber` puts it into an `event-manager` loop (feature `event-manager`);
/// - any other loop polls the [descriptor](AsRawFd) and calls [`on_readable`](Self::on_readable).
///
/// ```
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
/// use vm_watchdog::{Action, Event, Policy, VmClock, Watchdog};
///
/// let (clock, time) = VmClock::manual();
/// let watchdog = Watchdog::builder("watchdog0", I6300esb::new(I6300esbConfig::default()))
///     .clock(clock)
///     .policy(Policy::new(Action::Reset))
///     .build(|event: &Event| {
///         println!("{} fires: {}", event.id, event.action);
///         Ok(())
///     })?;
///
/// watchdog.write_config(0x68, &[0x02]); // what a vCPU thread does when the guest enables the watchdog
/// time.advance(std::time::Duration::from_secs(2100)); // two stages of 1030.8 s
/// watchdog.on_readable(); // what an event loop does when the timer goes off
/// assert_eq!(watchdog.stats().expiries, 1);
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
pub struct Watchdog<M> {
    shared: Arc<Shared<M>>,
}

/// Puts a [`Watchdog`] together.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
/// use vm_watchdog::{Action, Event, Policy, VmClock, Watchdog};
///
/// let device = I6300esb::new(I6300esbConfig { interrupt_pin: InterruptPin::IntA, ..Default::default() });
/// let watchdog = Watchdog::builder("watchdog0", device)
///     .clock(VmClock::monotonic())
///     .policy(Policy::new(Action::Shutdown).with_escalation(Duration::from_secs(30), Action::Poweroff))
///     .interrupt_line(|high: bool| Ok(println!("INTA# {high}")))
///     .build(|event: &Event| Ok(println!("{}", event.action)))?;
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct WatchdogBuilder<M> {
    id: Arc<str>,
    model: M,
    clock: Option<VmClock>,
    policy: Policy,
    interrupt_line: Option<Box<dyn InterruptLine>>,
}

struct Shared<M> {
    id: Arc<str>,
    clock: VmClock,
    handler: Box<dyn ActionHandler>,
    interrupt_line: Option<Box<dyn InterruptLine>>,
    timer_fd: RawFd,
    core: Mutex<Core<M>>,
}

/// What the lock guards. The lock is never held while the handler or the interrupt line is called.
pub(crate) struct Core<M> {
    pub model: M,
    pub deliveries: Deliveries,
    timer: Timer,
    /// When the timer goes off; never later than there is something to do.
    armed_at: Option<VmInstant>,
    /// The next wake is not before this.
    next_wake: VmInstant,
    /// A thread is delivering events: it sees to what comes up meanwhile, and arms the timer when it is done.
    delivering: bool,
    /// The level last set, None if that is not known.
    pub line_level: Option<bool>,
    /// A thread is setting the level: it sees to further changes.
    setting_line: bool,
    stats: Stats,
    log_limit: LogLimit,
}

impl<M: Model + Send + 'static> WatchdogBuilder<M> {
    /// The clock of the VM, shared by its watchdogs. Default: a monotonic clock of its own.
    pub fn clock(self, clock: VmClock) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// Which action follows which expiry. Default: reset on timeout.
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Where the device's interrupt goes. Default: nowhere.
    pub fn interrupt_line(self, line: impl InterruptLine + 'static) -> Self {
        Self { interrupt_line: Some(Box::new(line)), ..self }
    }

    /// The watchdog, with `handler` to perform its actions.
    ///
    /// # Errors
    ///
    /// [`Error::Timer`] if the host gives no timer, as when the process has no descriptor left.
    pub fn build(self, handler: impl ActionHandler + 'static) -> Result<Watchdog<M>, Error> {
        let timer = Timer::new().map_err(|source| Error::Timer { id: self.id.to_string(), source })?;
        let shared = Arc::new(Shared {
            id: self.id,
            clock: self.clock.unwrap_or_default(),
            handler: Box::new(handler),
            interrupt_line: self.interrupt_line,
            timer_fd: timer.as_raw_fd(),
            core: Mutex::new(Core {
                line_level: Some(self.model.interrupt_level()),
                model: self.model,
                deliveries: Deliveries::new(self.policy),
                timer,
                armed_at: None,
                next_wake: VmInstant::ZERO,
                delivering: false,
                setting_line: false,
                stats: Stats::default(),
                log_limit: LogLimit::default(),
            }),
        });
        let listener: Weak<Shared<M>> = Arc::downgrade(&shared);
        shared.clock.subscribe(listener);
        shared.clock_changed();
        Ok(Watchdog { shared })
    }
}

impl<M: Model + Send + 'static> Watchdog<M> {
    /// Starts to build a watchdog called `id`, which every event carries.
    pub fn builder(id: impl Into<Arc<str>>, model: M) -> WatchdogBuilder<M> {
        WatchdogBuilder { id: id.into(), model, clock: None, policy: Policy::default(), interrupt_line: None }
    }

    /// The name that the VMM gave it.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The clock of its VM.
    pub fn clock(&self) -> &VmClock {
        &self.shared.clock
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        let core = self.shared.lock();
        Stats { now: self.shared.clock.now(), armed: core.model.is_armed(), ..core.stats }
    }

    /// The platform resets: what hardware forgets is forgotten, and everything pending is cancelled.
    ///
    /// A call of the handler that is in progress is not interrupted, but neither retried nor escalated.
    pub fn reset(&self) {
        let mut core = self.shared.lock();
        core.model.reset();
        core.deliveries.cancel();
        drop(core);
        self.shared.settle_interrupt_line();
    }

    /// The VMM has dealt with the last timeout in its own way: no retry and no escalation will follow.
    pub fn acknowledge(&self) {
        self.shared.lock().deliveries.acknowledge();
    }

    /// To be called when the [descriptor](AsRawFd) is readable: reports what has expired, and arms the timer anew.
    ///
    /// This is where the handler is called. Calling it at any other time does no harm.
    pub fn on_readable(&self) {
        self.shared.on_readable();
    }

    /// Sets the interrupt line again if the device asserts it, as after the end of interrupt of a resampling irqfd.
    pub fn resample_interrupt(&self) {
        let mut core = self.shared.lock();
        if core.model.interrupt_level() {
            core.line_level = None;
        }
        drop(core);
        self.shared.settle_interrupt_line();
    }

    /// Gives a guest's access to the model, and sees to what follows from it.
    pub(crate) fn access<R: Copy + Into<Access>>(&self, access: impl FnOnce(&mut M, VmInstant) -> R) -> R {
        let shared = &*self.shared;
        let mut core = shared.lock();
        let now = shared.clock.now();
        let outcome = access(&mut core.model, now);
        core.note_access(outcome.into(), now);
        core.arm_if_sooner(now);
        let line_moved = core.line_level != Some(core.model.interrupt_level());
        drop(core);
        if line_moved {
            shared.settle_interrupt_line();
        }
        outcome
    }

    /// Asks the model what depends on no time.
    pub(crate) fn inspect<R>(&self, question: impl FnOnce(&M) -> R) -> R {
        question(&self.shared.lock().model)
    }

    /// Saves or replaces what the lock guards.
    pub(crate) fn with_core<R>(&self, work: impl FnOnce(&mut Core<M>, VmInstant) -> R) -> R {
        let mut core = self.shared.lock();
        let now = self.shared.clock.now();
        work(&mut core, now)
    }

    /// Arms the timer for a state that was replaced.
    pub(crate) fn rearm(&self) {
        self.shared.clock_changed();
    }
}

impl<M: Model + Send + 'static> Shared<M> {
    fn on_readable(&self) {
        let mut core = self.lock();
        core.woken(self.clock.now());
        while !self.clock.is_paused() {
            let now = self.clock.now();
            core.note_expired(now);
            if core.delivering {
                // The delivering thread goes on with this, and arms the timer when it is done.
                break;
            }
            let Some(delivery) = core.deliveries.take_due(now) else {
                core.arm_if_sooner(now);
                break;
            };
            core = self.deliver(core, delivery, now);
        }
        drop(core);
        self.settle_interrupt_line();
    }

    /// Calls the handler without the lock, unless the VM is paused.
    fn deliver<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core<M>>,
        delivery: Delivery,
        observed: VmInstant,
    ) -> MutexGuard<'a, Core<M>> {
        let Some(permit) = self.clock.permit() else {
            core.deliveries.put_back(delivery);
            return core;
        };
        core.delivering = true;
        core.log_limit.event(observed, &self.id, &delivery);
        drop(core);
        self.settle_interrupt_line();
        let Delivery { stage, action, deadline, attempt, .. } = delivery;
        let event = Event { id: self.id.clone(), stage, action, deadline, observed, attempt };
        let outcome = contain_panic(|| self.handler.perform(&event));

        let mut core = self.lock();
        drop(permit);
        core.delivering = false;
        match &outcome {
            Ok(()) => count(&mut core.stats.actions),
            Err(error) => {
                count(&mut core.stats.action_failures);
                core.log_limit.failure(&event, error);
            }
        }
        core.deliveries.finished(delivery, outcome.is_ok(), self.clock.now());
        core
    }

    /// Brings the interrupt line to the level of the model, unless another thread is about it.
    fn settle_interrupt_line(&self) {
        let Some(line) = &self.interrupt_line else {
            return;
        };
        let mut core = self.lock();
        loop {
            let level = core.model.interrupt_level();
            if core.setting_line || core.line_level == Some(level) {
                return;
            }
            core.setting_line = true;
            drop(core);
            let outcome = contain_panic(|| Ok(line.set_level(level)?));
            core = self.lock();
            core.setting_line = false;
            core.line_level = outcome.is_ok().then_some(level);
            if let Err(error) = outcome {
                count(&mut core.stats.interrupt_failures);
                let now = self.clock.now();
                core.log_limit.line_failure(now, &self.id, level, &error);
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core<M>> {
        // No foreign code runs under the lock, so a poisoned one guards a sound state.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Model> Core<M> {
    /// The timer went off (or somebody says so): it is quiet from now on.
    fn woken(&mut self, now: VmInstant) {
        count(&mut self.stats.wakes);
        self.timer.disarm();
        self.armed_at = None;
        self.next_wake = now + MIN_WAKE_INTERVAL;
    }

    fn note_access(&mut self, access: Access, now: VmInstant) {
        match access {
            Access::Ignored => count(&mut self.stats.ignored_accesses),
            Access::Accepted => {}
            Access::Heartbeat => {
                count(&mut self.stats.heartbeats);
                self.stats.last_heartbeat = Some(now);
                self.deliveries.heartbeat();
            }
        }
    }

    fn note_expired(&mut self, now: VmInstant) {
        let expired = self.model.poll(now);
        if expired.pretimeout.is_some() {
            count(&mut self.stats.pretimeouts);
        }
        if expired.timeout.is_some() {
            count(&mut self.stats.expiries);
        }
        self.deliveries.expired(expired);
    }

    /// Arms the timer for the next thing to do, if it is not armed for that or earlier.
    fn arm_if_sooner(&mut self, now: VmInstant) {
        if self.delivering {
            return;
        }
        let todo = [self.model.poll_at(), self.deliveries.next_due()];
        let Some(wanted) = todo.into_iter().flatten().min().map(|due| due.max(self.next_wake)) else {
            return;
        };
        if self.armed_at.is_none_or(|armed_at| wanted < armed_at) {
            self.timer.arm(wanted.saturating_duration_since(now));
            self.armed_at = Some(wanted);
        }
    }
}

impl<M: Model + Send + 'static> ClockListener for Shared<M> {
    fn clock_changed(&self) {
        let mut core = self.lock();
        core.timer.disarm();
        core.armed_at = None;
        core.arm_if_sooner(self.clock.now());
    }
}

/// Calls foreign code; a panic of it is a failure like any other, and does not end the thread that serves the timer.
fn contain_panic(foreign: impl FnOnce() -> Result<(), HandlerError>) -> Result<(), HandlerError> {
    catch_unwind(AssertUnwindSafe(foreign)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panic: {}", text.as_deref().unwrap_or("no message")).into())
    })
}

impl<M> Clone for Watchdog<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// The timer's descriptor, readable when [`Watchdog::on_readable`] has something to do. Poll it, do not read it.
impl<M> AsRawFd for Watchdog<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.timer_fd
    }
}

impl<M: Model + Send + 'static> std::fmt::Debug for Watchdog<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("id", &self.id()).field("stats", &self.stats()).finish()
    }
}

//! The handle that a VMM holds: a model, a clock, a timer and a handler, put together behind one lock.

use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vm_watchdog_devices::{Access, Expired, Model};

use crate::clock::{ClockListener, VmClock};
use crate::delivery::{Deliveries, Delivery};
use crate::log_limit::LogLimit;
use crate::starvation::{Allowance, RunDelay};
use crate::stats::{Stats, count};
use crate::timer::Timer;
use crate::{Action, ActionHandler, Error, Event, HandlerError, InterruptLine, Policy, VmInstant};

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
    starvation: Option<Starvation>,
}

struct Starvation {
    run_delay: Box<dyn RunDelay>,
    patience: u32,
}

struct Shared<M> {
    id: Arc<str>,
    clock: VmClock,
    handler: Box<dyn ActionHandler>,
    interrupt_line: Option<Box<dyn InterruptLine>>,
    starvation: Option<Starvation>,
    timer_fd: RawFd,
    core: Mutex<Core<M>>,
    log_limit: LogLimit,
}

/// One instant on two clocks.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    /// The VM's time: of everything but the model.
    pub vm: VmInstant,
    /// The watchdog's: the VM's, less what the guest was starved.
    pub watchdog: VmInstant,
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
    /// A thread is delivering events, and arms the timer when it is done.
    delivering: bool,
    /// The level last set, None if that is not known.
    pub line_level: Option<bool>,
    /// A thread is setting the level: it sees to further changes.
    setting_line: bool,
    pub allowance: Allowance,
    stats: Stats,
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

    /// Does not charge the guest for time in which its vCPUs wanted to run and could not. Default: it is charged.
    ///
    /// `patience` is how many times the timeout the guest may take in all, [`DEFAULT_PATIENCE`](crate::DEFAULT_PATIENCE)
    /// if you have no opinion. The price: on a busy host a guest that is really dead may be detected that much later,
    /// for as long as its vCPUs wait for the processor. The delay is [read](RunDelay) seldom: a deadline may be acted on
    /// up to 100 ms late, and what the guest was starved of before its last heartbeat may count after it.
    pub fn starvation(self, run_delay: impl RunDelay + 'static, patience: u32) -> Self {
        Self { starvation: Some(Starvation { run_delay: Box::new(run_delay), patience }), ..self }
    }

    /// The watchdog, with `handler` to perform its actions.
    ///
    /// # Errors
    ///
    /// [`Error::Timer`] if the host gives no timer, as when the process has no descriptor left.
    pub fn build(mut self, handler: impl ActionHandler + 'static) -> Result<Watchdog<M>, Error> {
        self.model.set_after_timeout(self.policy.timeout.after_timeout());
        let timer = Timer::new().map_err(|source| Error::Timer { id: self.id.to_string(), source })?;
        let shared = Arc::new(Shared {
            id: self.id,
            clock: self.clock.unwrap_or_default(),
            handler: Box::new(handler),
            interrupt_line: self.interrupt_line,
            starvation: self.starvation,
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
                allowance: Allowance::default(),
                stats: Stats::default(),
            }),
            log_limit: LogLimit::default(),
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
        WatchdogBuilder {
            id: id.into(),
            model,
            clock: None,
            policy: Policy::default(),
            interrupt_line: None,
            starvation: None,
        }
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
        let now = self.shared.clock.now();
        let left = |timeout_at: VmInstant| timeout_at.saturating_duration_since(core.allowance.time(now));
        let time_left = core.model.timeout_at().map(left);
        Stats { now, armed: core.model.is_armed(), time_left, starved: core.allowance.total, ..core.stats }
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
        if shared.starvation.is_some() && core.has_deadline_passed(&shared.clock) {
            core = shared.allow_for_starvation(core);
        }
        let now = core.settle_time(&shared.clock);
        let was_running = core.model.poll_at().is_some();
        let outcome = access(&mut core.model, now.watchdog);
        let starts = !was_running && core.model.poll_at().is_some();
        core.note_access(outcome.into(), starts, now);
        if starts {
            // What the guest is starved of from here on is told by what comes after this reading.
            core = shared.allow_for_starvation(core);
        }
        core.arm_if_sooner(&shared.clock);
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
    pub(crate) fn with_core<R>(&self, work: impl FnOnce(&mut Core<M>, Now) -> R) -> R {
        let mut core = self.shared.allow_for_starvation(self.shared.lock());
        let now = core.settle_time(&self.shared.clock);
        work(&mut core, now)
    }

    /// Arms the timer for a state that was replaced.
    pub(crate) fn rearm(&self) {
        drop(self.shared.allow_for_starvation(self.shared.lock()));
        self.shared.clock_changed();
    }
}

impl<M: Model + Send + 'static> Shared<M> {
    /// Reports what has expired up to now. What expires meanwhile waits for the next wake, so this always ends.
    fn on_readable(&self) {
        let mut core = self.allow_for_starvation(self.lock());
        let now = self.clock.now();
        core.silence_timer();
        // A thread that is delivering arms the timer when it is done, and resuming a paused clock arms it too.
        if !core.delivering && !self.clock.is_paused() {
            count(&mut core.stats.wakes);
            core.next_wake = now + MIN_WAKE_INTERVAL;
            core.note_expired(now);
            while !self.clock.is_paused() {
                let Some(delivery) = core.deliveries.take_due(now) else {
                    core.arm_if_sooner(&self.clock);
                    break;
                };
                core = self.deliver(core, delivery);
            }
        }
        drop(core);
        self.settle_interrupt_line();
    }

    /// Calls the handler without the lock, unless the VM is paused.
    fn deliver<'a>(&'a self, mut core: MutexGuard<'a, Core<M>>, delivery: Delivery) -> MutexGuard<'a, Core<M>> {
        let observed = self.clock.now();
        let Some(permit) = self.clock.permit() else {
            core.deliveries.put_back(delivery);
            return core;
        };
        core.delivering = true;
        let last_heartbeat = core.stats.last_heartbeat;
        drop(core);
        self.log_limit.event(observed, &self.id, &delivery);
        self.settle_interrupt_line();
        let Delivery { stage, action, deadline, attempt, .. } = delivery;
        let event = Event { id: self.id.clone(), stage, action, deadline, observed, last_heartbeat, attempt };
        let outcome = contain_panic(|| self.handler.perform(&event));
        if let Err(error) = &outcome {
            self.log_limit.failure(&event, error);
        }

        let mut core = self.lock();
        drop(permit);
        core.delivering = false;
        let Stats { actions, action_failures, .. } = &mut core.stats;
        count(if outcome.is_ok() { actions } else { action_failures });
        core.deliveries.finished(delivery, outcome.is_ok(), self.clock.now());
        core
    }

    /// Sets the watchdog's time back by what the guest was starved, if that is the policy. Asks without the lock.
    fn allow_for_starvation<'a>(&'a self, mut core: MutexGuard<'a, Core<M>>) -> MutexGuard<'a, Core<M>> {
        let Some(Starvation { run_delay, patience }) = &self.starvation else {
            return core;
        };
        // What happens while the host is asked is left to the next reading.
        let begun = self.clock.now();
        if core.model.timeout_at().is_none() || !core.allowance.begin_reading(begun) {
            return core;
        }
        drop(core);
        let reading = contain_panic(|| Ok(run_delay.run_delays()?));
        let mut core = self.lock();
        match reading {
            Ok(delays) => {
                let timeout_at = core.model.timeout_at();
                core.allowance.grant(delays, begun, timeout_at, *patience);
            }
            Err(error) => {
                count(&mut core.stats.run_delay_failures);
                core.allowance.grant_nothing(begun);
                drop(core);
                self.log_limit.run_delay_failure(begun, &self.id, &error);
                core = self.lock();
            }
        }
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
            core.line_level = Some(level);
            drop(core);
            let outcome = contain_panic(|| Ok(line.set_level(level)?));
            core = self.lock();
            core.setting_line = false;
            if let Err(error) = outcome {
                core.line_level = None;
                count(&mut core.stats.interrupt_failures);
                drop(core);
                self.log_limit.line_failure(self.clock.now(), &self.id, level, &error);
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
    /// The time to tell the model, which is the watchdog's from then on.
    fn settle_time(&mut self, clock: &VmClock) -> Now {
        let vm = clock.now();
        let watchdog = self.model_time(vm);
        self.allowance.settle(vm, watchdog);
        Now { vm, watchdog }
    }

    fn model_time(&self, vm_now: VmInstant) -> VmInstant {
        self.allowance.model_time(vm_now, self.model.poll_at(), self.model.timeout_at())
    }

    fn has_deadline_passed(&self, clock: &VmClock) -> bool {
        self.model.poll_at().is_some_and(|deadline| deadline <= self.allowance.time(clock.now()))
    }

    fn silence_timer(&mut self) {
        self.timer.disarm();
        self.armed_at = None;
    }

    fn note_access(&mut self, access: Access, starts: bool, now: Now) {
        if access == Access::Heartbeat || starts {
            self.allowance.restart(now.watchdog);
        }
        match access {
            Access::Ignored => count(&mut self.stats.ignored_accesses),
            Access::Accepted => {}
            Access::Heartbeat => {
                count(&mut self.stats.heartbeats);
                self.stats.last_heartbeat = Some(now.vm);
                self.deliveries.heartbeat(self.model.timeout_request().map(Action::from));
            }
        }
    }

    fn note_expired(&mut self, vm_now: VmInstant) {
        let now = self.model_time(vm_now);
        if self.model.poll_at().is_none_or(|deadline| deadline > now) {
            return;
        }
        self.allowance.see(now);
        let expired = self.model.poll(now);
        if expired.pretimeout.is_some() {
            count(&mut self.stats.pretimeouts);
        }
        if expired.timeout.is_some() {
            count(&mut self.stats.expiries);
            self.allowance.restart(now);
        }
        let vm_time = |deadline: Option<VmInstant>| deadline.map(|deadline| self.allowance.vm_time(deadline));
        let expired = Expired { pretimeout: vm_time(expired.pretimeout), timeout: vm_time(expired.timeout) };
        self.deliveries.expired(expired, self.model.timeout_request().map(Action::from));
    }

    /// Arms the timer for the next thing to do, if it is not armed for that or earlier.
    fn arm_if_sooner(&mut self, clock: &VmClock) {
        if self.delivering {
            return;
        }
        let deadline = self.model.poll_at().map(|deadline| self.allowance.wake_for(deadline));
        let todo = [deadline, self.deliveries.next_due()];
        let Some(wanted) = todo.into_iter().flatten().min().map(|due| due.max(self.next_wake)) else {
            return;
        };
        if self.armed_at.is_none_or(|armed_at| wanted < armed_at) {
            self.timer.arm(wanted.saturating_duration_since(clock.now()));
            self.armed_at = Some(wanted);
        }
    }
}

impl<M: Model + Send + 'static> ClockListener for Shared<M> {
    fn clock_changed(&self) {
        let mut core = self.lock();
        core.silence_timer();
        core.arm_if_sooner(&self.clock);
    }
}

/// Calls foreign code; a panic of it is a failure like any other, and does not end the thread that serves the timer.
fn contain_panic<R>(foreign: impl FnOnce() -> Result<R, HandlerError>) -> Result<R, HandlerError> {
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

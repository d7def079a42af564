//! The handle that a VMM holds, and its builder.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Weak};

use vm_watchdog_devices::{Access, LastReset, Model, StateError, VmInstant};

use crate::clock::{ClockListener, VmClock};
use crate::core::{Connections, Core};
use crate::error::Error;
use crate::event::ActionHandler;
use crate::interrupt::{InterruptLine, MsiSender};
use crate::log_limit::LogLimit;
use crate::policy::Policy;
use crate::run_delay::RunDelay;
use crate::runtime::{Guarded, Runtime};
use crate::state::WatchdogState;
use crate::stats::Stats;
use crate::sync::Timer;
use crate::thread::{self, WatchdogThread};
use crate::turn::Lock;

/// A watchdog of a VM: a shared handle, cheap to clone, to be called from any thread.
///
/// A heartbeat makes no system call and allocates nothing: it moves the deadline in memory, and the timer that was armed
/// for the old one is armed anew when it goes off. A deadline that comes nearer wakes the thread that serves the watchdog,
/// by a `write` to an eventfd, and that thread arms the timer.
///
/// Something has to run the timer. Choose one:
///
/// - [`spawn`](Self::spawn) gives the watchdog a thread of its own;
/// - `WatchdogSubscriber` puts it into an `event-manager` loop (feature `event-manager`);
/// - any other loop polls the [descriptor](AsFd) and calls [`on_readable`](Self::on_readable). The descriptor is never
///   read. An edge-triggered loop (`EPOLLET`, tokio's `AsyncFd`) sees an edge each time it becomes readable, and one if
///   the descriptor is readable when it is added. It makes one call for each edge, and clears a readiness that it
///   keeps itself before the call (`examples/tokio.rs`).
///
/// Other handles: [`downgrade`](Self::downgrade) for a handler that calls back into its watchdog, and [`AnyWatchdog`](crate::AnyWatchdog) for
/// a list of watchdogs of several models.
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
    runtime: Arc<Runtime<M>>,
}

/// A handle that does not keep its [`Watchdog`] alive, for a handler that calls back into it.
///
/// ```
/// use vm_watchdog::i6300esb::I6300esb;
/// use vm_watchdog::{Event, Watchdog, WeakWatchdog};
///
/// let builder = Watchdog::builder("watchdog0", I6300esb::new(Default::default()));
/// let watchdog = builder.build_cyclic(|itself: &WeakWatchdog<I6300esb>| {
///     let itself = itself.clone();
///     move |_: &Event| {
///         if let Some(watchdog) = itself.upgrade() {
///             watchdog.reset(); // as the VMM does with all devices when it resets the platform
///         }
///         Ok(())
///     }
/// })?;
/// # drop(watchdog);
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
pub struct WeakWatchdog<M> {
    runtime: Weak<Runtime<M>>,
}

/// Puts a [`Watchdog`] together.
///
/// ```
/// use std::time::Duration;
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
/// use vm_watchdog::{Action, Event, Policy, VmClock, Watchdog};
///
/// let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
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
    clock: VmClock,
    policy: Policy,
    line: Option<Box<dyn InterruptLine>>,
    msi: Option<Box<dyn MsiSender>>,
    run_delay: Option<Box<dyn RunDelay>>,
    steal_limit: Option<u32>,
    last_reset: LastReset,
    rearms: bool,
}

impl<M: Model + Send + 'static> WatchdogBuilder<M> {
    /// The clock of the VM, shared by its watchdogs. Default: a monotonic clock of its own.
    pub fn clock(self, clock: VmClock) -> Self {
        Self { clock, ..self }
    }

    /// Which action follows which expiry. Default: reset on timeout.
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Where the device's interrupt goes. Default: nowhere.
    pub fn interrupt_line(self, line: impl InterruptLine + 'static) -> Self {
        Self { line: Some(Box::new(line)), ..self }
    }

    /// Where the device's interrupt goes if the guest has enabled MSI. Default: nowhere.
    ///
    /// The device needs the capability ([`with_msi`](crate::i6300esb::I6300esbConfig::with_msi)). A guest that enables it gets
    /// messages, and the interrupt line stays low.
    pub fn msi(self, sender: impl MsiSender + 'static) -> Self {
        Self { msi: Some(Box::new(sender)), ..self }
    }

    /// Steal-time compensation: time in which a vCPU was runnable and did not run does not count towards the timeout.
    /// Default: it counts.
    ///
    /// `limit` is how many times the timeout a period may last in all,
    /// [`DEFAULT_STEAL_LIMIT`](crate::DEFAULT_STEAL_LIMIT) if you have no opinion. The price: on a busy host the failure of a
    /// guest may be detected that much later, for as long as its vCPUs wait for a processor. Of several vCPUs the most
    /// delayed one counts, since the process that feeds the watchdog may have been on it. The delay is [read](RunDelay)
    /// seldom: a deadline may be acted on up to 100 ms late, or when a wait is over that goes on at the deadline, and
    /// steal time before the last heartbeat may count after it.
    pub fn compensate_steal_time(self, run_delay: impl RunDelay + 'static, limit: u32) -> Self {
        Self { run_delay: Some(Box::new(run_delay)), steal_limit: Some(limit), ..self }
    }

    /// What the device before this one knew of the last reset, for a VMM that makes its devices anew when the platform
    /// resets. Default: a platform that has not been reset. A VMM that keeps its devices calls [`Watchdog::reset`] instead.
    ///
    /// ```
    /// # use vm_watchdog::{Event, Watchdog, i6300esb::I6300esb};
    /// # let old = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
    /// let last = old.last_reset();
    /// drop(old);
    /// let device = I6300esb::new(Default::default());
    /// let new = Watchdog::builder("wd", device).last_reset(last).build(|_: &Event| Ok(()))?;
    /// assert_eq!(new.last_reset(), last);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn last_reset(self, last: LastReset) -> Self {
        Self { last_reset: last, ..self }
    }

    /// Arms the watchdog again for a guest that does not know of a reset. Default: such a guest is only
    /// [counted](Stats::unprotected) and logged.
    ///
    /// For a server whose VMM resets the device although its guest runs on, as QEMU 11.1 does with devices of other processes
    /// after it has loaded a snapshot. A VMM that [saves](Watchdog::save) and [restores](Watchdog::restore) the watchdog with
    /// the VM does not need it.
    ///
    /// The device keeps its registers of before the reset, with what the guest writes to them since, until the guest arms or
    /// disarms it; they are part of its saved state. At the heartbeat that shows that the guest believes in its
    /// protection they are put back, a lock included, and a full period begins. They are not put back if the
    /// guest's heartbeats were ever as far apart as the timeout: it has set another one. A driver of a guest that boots
    /// arms or disarms the watchdog before it feeds it, so it gets what it sets. Only models with such guests support this;
    /// the diag288 does not, because its guests notice.
    ///
    /// ```
    /// use std::time::Duration;
    /// use vm_watchdog::i6300esb::I6300esb;
    /// use vm_watchdog::{Event, VmClock, Watchdog};
    ///
    /// let (clock, time) = VmClock::manual();
    /// let builder = Watchdog::builder("wd", I6300esb::new(Default::default())).clock(clock).rearm_after_reset();
    /// let watchdog = builder.build(|_: &Event| Ok(()))?;
    /// watchdog.write_config(0x68, &[0x02]); // the guest arms it
    /// watchdog.reset(); // the VMM has loaded a snapshot of the guest, and the guest feeds the watchdog as before
    /// for _ in 0..3 {
    ///     assert!(!watchdog.stats().armed);
    ///     time.advance(Duration::from_secs(1));
    ///     for write in [0x0080_u16, 0x0086, 0x0100] {
    ///         watchdog.write_bar(0x0C, &write.to_le_bytes());
    ///     }
    /// }
    /// assert!(watchdog.stats().armed);
    /// assert_eq!(watchdog.stats().rearmed, 1);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn rearm_after_reset(self) -> Self {
        Self { rearms: true, ..self }
    }

    /// The watchdog, with `handler` to perform its actions.
    ///
    /// # Errors
    ///
    /// [`Error::Timer`] if the host gives no timer, as when the process has no descriptor left.
    pub fn build(self, handler: impl ActionHandler + 'static) -> Result<Watchdog<M>, Error> {
        self.build_cyclic(|_| handler)
    }

    /// The watchdog, with a handler that is made of a [handle](WeakWatchdog) to it.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_cyclic<H: ActionHandler + 'static>(
        self,
        handler: impl FnOnce(&WeakWatchdog<M>) -> H,
    ) -> Result<Watchdog<M>, Error> {
        let Self { id, mut model, clock, policy, line, msi, run_delay, steal_limit, last_reset, rearms } = self;
        if last_reset != LastReset::default() {
            model.set_last_reset(last_reset);
        }
        let resample = line.as_ref().and_then(|line| line.resample()).map(|fd| fd.try_clone_to_owned()).transpose();
        let timer = resample.and_then(Timer::new).map_err(|source| Error::Timer { id: id.to_string(), source })?;
        let connections = Connections { has_line: line.is_some(), sends_messages: msi.is_some(), steal_limit, rearms };
        let core = Core::new(model, policy, connections);
        let runtime = Arc::new_cyclic(|itself| Runtime {
            id,
            clock,
            timer,
            handler: Box::new(handler(&WeakWatchdog { runtime: itself.clone() })),
            line,
            msi,
            run_delay,
            guarded: Lock::new(Guarded::new(core)),
            log: LogLimit::default(),
        });
        let listener: Weak<Runtime<M>> = Arc::downgrade(&runtime);
        runtime.clock.subscribe(listener);
        runtime.clock_changed();
        Ok(Watchdog { runtime })
    }
}

impl<M: Model + Send + 'static> Watchdog<M> {
    /// Starts to build a watchdog called `id`, which every event carries.
    pub fn builder(id: impl Into<Arc<str>>, model: M) -> WatchdogBuilder<M> {
        WatchdogBuilder {
            id: id.into(),
            model,
            clock: VmClock::default(),
            policy: Policy::default(),
            line: None,
            msi: None,
            run_delay: None,
            steal_limit: None,
            last_reset: LastReset::default(),
            rearms: false,
        }
    }

    /// The name that the VMM gave it.
    pub fn id(&self) -> &str {
        &self.runtime.id
    }

    /// The clock of its VM.
    pub fn clock(&self) -> &VmClock {
        &self.runtime.clock
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.runtime.inspect(|core, now| core.stats(now))
    }

    /// Which action follows which expiry.
    pub fn policy(&self) -> Policy {
        self.runtime.inspect(|core, _| core.policy())
    }

    /// Replaces the policy while the VM runs, as QEMU's `watchdog-set-action` does.
    ///
    /// It counts for what is pending too: a retry is made with the new action, a grace period lasts no longer than the
    /// new one and ends if there is no escalation any more.
    pub fn set_policy(&self, policy: Policy) {
        self.runtime.with_core(|core, now| core.set_policy(policy, now));
    }

    /// Resets the device: volatile registers and pending events are cleared. To be called when the platform resets.
    ///
    /// A call of the handler that is in progress is not interrupted, but neither retried nor escalated.
    pub fn reset(&self) {
        self.runtime.reset();
    }

    /// What a new device in the place of this one has to know, for [`WatchdogBuilder::last_reset`]. To be asked when the
    /// platform resets, before this device goes.
    pub fn last_reset(&self) -> LastReset {
        self.inspect(M::last_reset)
    }

    /// The VMM has dealt with the last timeout in its own way: no retry and no escalation will follow.
    pub fn acknowledge(&self) {
        self.runtime.with_core(|core, _| core.acknowledge());
    }

    /// To be called when the [descriptor](AsFd) is readable: reports what has expired, and arms the timer anew.
    ///
    /// This is where the handler is called. Calling it at any other time does no harm.
    pub fn on_readable(&self) {
        self.runtime.on_readable();
    }

    /// Sets the interrupt line again if the device asserts it: for a VMM that learns of the end of an interrupt in its own
    /// way. With [`EventFdLine::with_resample`](crate::EventFdLine::with_resample) the watchdog does this itself.
    pub fn resample_interrupt(&self) {
        self.runtime.resample_interrupt();
    }

    /// The whole state. [Pause](VmClock::pause) the VM first and [wait](VmClock::quiesce) until it is
    /// quiet, or the state is out of date when you get it.
    ///
    /// An action whose handler is being called counts as performed.
    pub fn save(&self) -> WatchdogState<M::State> {
        WatchdogState::V1(self.runtime.with_core(|core, now| core.save(now)))
    }

    /// Puts the watchdog into a saved state; its id, clock, handler and line stay, and so does its policy, which is the
    /// operator's. What is pending in the state follows that policy, as after [`set_policy`](Self::set_policy).
    ///
    /// The interrupt line is not called: the VM's interrupt controller has the level in its own saved state. If the VM
    /// was saved before the line could be set, it is set once the VM runs.
    ///
    /// # Errors
    ///
    /// [`StateError`] names the first field that holds what no watchdog can be in. Then nothing has changed.
    pub fn restore(&self, state: &WatchdogState<M::State>) -> Result<(), StateError> {
        self.runtime.restore(state)
    }

    /// As [`restore`](Self::restore), with the policy of the saved watchdog, for a VM that is to go on as it was.
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore).
    pub fn restore_with_policy(&self, state: &WatchdogState<M::State>) -> Result<(), StateError> {
        self.runtime.restore_with_policy(state)
    }

    /// Serves the watchdog from a thread of its own, so that no other watchdog's handler delays it.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] if the host gives no thread or descriptor.
    pub fn spawn(&self) -> Result<WatchdogThread, Error> {
        self.spawn_with(|| Ok(()))
    }

    /// As [`spawn`](Self::spawn), and `init` runs first in the new thread: for its seccomp filter, its name or its
    /// processors.
    ///
    /// ```
    /// # use vm_watchdog::{Event, Watchdog, i6300esb::I6300esb};
    /// # fn apply_seccomp_filter() -> std::io::Result<()> { Ok(()) }
    /// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
    /// let thread = watchdog.spawn_with(apply_seccomp_filter)?;
    /// # drop(thread);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] if the host gives no thread or descriptor, if `init` fails, or if it panics. Then there is no
    /// thread.
    pub fn spawn_with(
        &self,
        init: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<WatchdogThread, Error> {
        thread::spawn(self.runtime.clone(), init)
    }

    /// The descriptors that the watchdog needs, for a VMM that closes all others when it enters a jail. Those of a
    /// [`WatchdogThread`] and of a [`ThreadRunDelay`](crate::ThreadRunDelay) are theirs to tell.
    pub fn keep_fds(&self) -> Vec<RawFd> {
        self.runtime.timer.descriptors()
    }

    /// A handle that does not keep the watchdog alive.
    pub fn downgrade(&self) -> WeakWatchdog<M> {
        WeakWatchdog { runtime: Arc::downgrade(&self.runtime) }
    }

    /// Gives a guest's access to the model: what a front end for a model of your own is built on.
    ///
    /// `access` is told the time to tell the model. It says what the access was, for the counters and because a
    /// [heartbeat](Access::Heartbeat) ends retries, and what to return. It runs under the watchdog's lock and must not
    /// call anything of the watchdog or its clock.
    ///
    /// ```
    /// use vm_watchdog::i6300esb::I6300esb;
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
    /// let vendor = watchdog.access(|device, now| {
    ///     let mut vendor = [0; 2];
    ///     (device.read_config(0x00, &mut vendor, now), u16::from_le_bytes(vendor))
    /// });
    /// assert_eq!(vendor, 0x8086);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn access<R>(&self, access: impl FnOnce(&mut M, VmInstant) -> (Access, R)) -> R {
        self.runtime.access(access).1
    }

    /// Asks the model what does not depend on time. `question` must not call anything of the watchdog or its clock.
    pub fn inspect<R>(&self, question: impl FnOnce(&M) -> R) -> R {
        self.runtime.inspect(|core, _| question(core.model()))
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime<M>> {
        &self.runtime
    }

    pub(crate) fn from_runtime(runtime: Arc<Runtime<M>>) -> Self {
        Self { runtime }
    }
}

impl<M> WeakWatchdog<M> {
    /// The watchdog, None once its last handle is gone.
    pub fn upgrade(&self) -> Option<Watchdog<M>> {
        self.runtime.upgrade().map(|runtime| Watchdog { runtime })
    }
}

impl<M> Clone for Watchdog<M> {
    fn clone(&self) -> Self {
        Self { runtime: self.runtime.clone() }
    }
}

impl<M> Clone for WeakWatchdog<M> {
    fn clone(&self) -> Self {
        Self { runtime: self.runtime.clone() }
    }
}

/// The descriptor to poll, readable when [`Watchdog::on_readable`] has something to do: at a deadline, or because a guest's
/// access or the VMM has changed the next deadline. An epoll descriptor; do not wait on it by `epoll_wait`.
impl<M> AsFd for Watchdog<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.runtime.timer.as_fd()
    }
}

/// The descriptor to poll, as of [`AsFd`].
impl<M> AsRawFd for Watchdog<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<M: Model + Send + 'static> std::fmt::Debug for Watchdog<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("id", &self.id()).field("stats", &self.stats()).finish()
    }
}

impl<M> std::fmt::Debug for WeakWatchdog<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakWatchdog")
    }
}

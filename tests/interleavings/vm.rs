//! A VM for the model checker: what its threads do, and what its handler, its interrupt line and its run-delay reader
//! observe.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread::{self, JoinHandle};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, I6300esbStateV1, InterruptPin};
use vm_watchdog::{
    ActionHandler, Event, HandlerError, MIN_WAKE_INTERVAL, Model, MsiMessage, Policy, RunDelay, Stage, VcpuDelay,
    VmClock, VmInstant, Watchdog, WatchdogState, WeakWatchdog, simulated,
};

use crate::common::{Driver, UNIT};

/// The first stage of a watchdog that was [started](Vm::start).
pub const STAGE: Duration = UNIT.saturating_mul(512);
/// Both stages.
pub const PERIOD: Duration = STAGE.saturating_mul(2);
/// The least time between two readings of the run delay.
const READING_INTERVAL: Duration = Duration::from_millis(100);
/// The model checker's threads wait as long as it takes; one that waits for ever is a deadlock, which it reports.
pub const LIMIT: Duration = Duration::from_secs(1);

/// A saved state.
pub type State = WatchdogState<I6300esbStateV1>;
type Inside = dyn Fn(&Vm, &Event) -> Result<(), HandlerError> + Send + Sync;
type InsideLine = dyn Fn(&Vm, bool) + Send + Sync;

/// A watchdog and the VMM around it.
#[derive(Clone)]
pub struct Vm {
    pub watchdog: Watchdog<I6300esb>,
    pub clock: VmClock,
    pub seen: Arc<Seen>,
}

/// How a [`Vm`] differs from the plain one.
pub struct Setup {
    policy: Policy,
    clock: VmClock,
    inside: Box<Inside>,
    inside_line: Box<InsideLine>,
    has_run_delay: bool,
}

/// What was observed from outside the watchdog.
#[derive(Default)]
pub struct Seen {
    observed: Mutex<Observed>,
    /// The guest's driver makes one heartbeat at a time.
    driver: shuttle::sync::Mutex<()>,
    /// Where the model checker may switch to another thread.
    switch: AtomicBool,
}

#[derive(Default)]
struct Observed {
    /// `quiesce` has returned true and `resume` was not called since.
    is_quiet: bool,
    /// Calls of `resume` that have returned, and that are in progress.
    resumes: (u32, u32),
    calls: Vec<&'static str>,
    level: bool,
    messages: u32,
    events: Vec<Event>,
    /// The deadlines of the timeouts whose action is delayed.
    delays: Vec<VmInstant>,
    failures: u64,
    /// Each heartbeat, and the start: the VM's time before and after it.
    heartbeats: Vec<(VmInstant, VmInstant)>,
    violations: Vec<String>,
    /// A state was restored, so that deadlines do not follow from heartbeats.
    is_restored: bool,
    /// Steal time is compensated, so that deadlines may wait for a reading.
    has_run_delay: bool,
}

impl Setup {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            clock: VmClock::monotonic(),
            inside: Box::new(|_, _| Ok(())),
            inside_line: Box::new(|_, _| ()),
            has_run_delay: false,
        }
    }

    pub fn clock(self, clock: VmClock) -> Self {
        Self { clock, ..self }
    }

    /// What the handler does inside its call.
    pub fn handler(self, inside: impl Fn(&Vm, &Event) -> Result<(), HandlerError> + Send + Sync + 'static) -> Self {
        Self { inside: Box::new(inside), ..self }
    }

    /// What the interrupt line does inside its call.
    pub fn line(self, inside_line: impl Fn(&Vm, bool) + Send + Sync + 'static) -> Self {
        Self { inside_line: Box::new(inside_line), ..self }
    }

    pub fn run_delay(self) -> Self {
        Self { has_run_delay: true, ..self }
    }

    pub fn build(self) -> Vm {
        let Self { policy, clock, inside, inside_line, has_run_delay } = self;
        let seen = Arc::new(Seen::default());
        seen.observed().has_run_delay = has_run_delay;
        // The line is older than the watchdog: it finds the handle here.
        let itself: Arc<OnceLock<WeakWatchdog<I6300esb>>> = Arc::default();
        let line = {
            let (seen, clock, itself) = (seen.clone(), clock.clone(), itself.clone());
            move |high: bool| -> io::Result<()> {
                let _call = seen.begin("line");
                seen.switch();
                seen.observed().level = high;
                if let Some(watchdog) = itself.get().and_then(WeakWatchdog::upgrade) {
                    inside_line(&Vm { watchdog, clock: clock.clone(), seen: seen.clone() }, high);
                }
                seen.switch();
                Ok(())
            }
        };
        let sender = {
            let seen = seen.clone();
            move |_: MsiMessage| -> io::Result<()> {
                let _call = seen.begin("sender");
                seen.switch();
                seen.observed().messages += 1;
                seen.switch();
                Ok(())
            }
        };
        // A guest that does not enable MSI gets levels.
        let config = I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA).with_msi().with_command(0x0006);
        let mut builder = Watchdog::builder("wd", I6300esb::new(config))
            .clock(clock.clone())
            .policy(policy)
            .interrupt_line(line)
            .msi(sender);
        if has_run_delay {
            builder = builder.compensate_steal_time(NoDelay(seen.clone()), 4);
        }
        let for_handler = seen.clone();
        let watchdog = {
            let (seen, clock, itself) = (seen.clone(), clock.clone(), itself.clone());
            let perform = move |event: &Event| -> Result<(), HandlerError> {
                let _call = seen.begin("handler");
                seen.note(event);
                seen.switch();
                let watchdog = itself.get().and_then(WeakWatchdog::upgrade);
                let vm = watchdog.map(|watchdog| Vm { watchdog, clock: clock.clone(), seen: seen.clone() });
                let outcome = vm.map_or(Ok(()), |vm| inside(&vm, event));
                seen.switch();
                seen.observed().failures += u64::from(outcome.is_err());
                outcome
            };
            builder.build(Handler { perform, seen: for_handler })
        };
        let watchdog = watchdog.unwrap();
        let _ = itself.set(watchdog.downgrade());
        Vm { watchdog, clock, seen }
    }

    /// The same, with a guest that starts the watchdog.
    pub fn start(self) -> Vm {
        let vm = self.build();
        vm.start();
        vm
    }
}

/// A handler that also notes the actions that the rate delays.
struct Handler<F> {
    perform: F,
    seen: Arc<Seen>,
}

impl<F: Fn(&Event) -> Result<(), HandlerError> + Send + Sync> ActionHandler for Handler<F> {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        let is_told = self.seen.observed().delays.contains(&event.deadline);
        self.seen
            .require(event.delayed == (is_told && event.attempt == 1), || format!("not told of a delay: {event:?}"));
        (self.perform)(event)
    }

    fn delayed(&self, event: &Event, _until: VmInstant) {
        let _call = self.seen.begin("handler");
        self.seen.switch();
        let is_told = self.seen.observed().delays.contains(&event.deadline);
        self.seen.require(!is_told, || format!("told twice of a delay: {event:?}"));
        self.seen.observed().delays.push(event.deadline);
        self.seen.switch();
    }
}

/// A guest that is never starved.
struct NoDelay(Arc<Seen>);

impl RunDelay for NoDelay {
    fn run_delays(&self) -> io::Result<Vec<VcpuDelay>> {
        let _call = self.0.begin("run delay");
        self.0.switch();
        Ok(vec![VcpuDelay::new(0, Duration::ZERO)])
    }
}

impl Vm {
    /// The guest starts its watchdog.
    pub fn start(&self) {
        self.watchdog.set_preloads(512);
        self.enable();
    }

    /// The last write of the start.
    pub fn enable(&self) {
        self.feeding(|| self.watchdog.enable());
    }

    /// A heartbeat: three writes.
    pub fn ping(&self) {
        let _driver = self.seen.driver.lock().unwrap();
        self.watchdog.unlock();
        self.feeding(|| {
            self.watchdog.write_bar(0x0C, &0x0100u16.to_le_bytes());
        });
    }

    fn feeding(&self, write: impl FnOnce()) {
        let before = self.clock.now();
        write();
        let after = self.clock.now();
        self.seen.observed().heartbeats.push((before, after));
    }

    /// The guest's interrupt handler clears WDT_INT_ACT.
    pub fn clear_interrupt(&self) {
        self.watchdog.write_bar(0x08, &[0x01]);
    }

    /// The guest enables MSI.
    pub fn enable_msi(&self) {
        self.watchdog.write_config(0x42, &[0x01, 0x00]);
    }

    /// What an event loop does: serves the timer if it has gone off, some times.
    pub fn serve(&self, times: usize) {
        for _ in 0..times {
            self.seen.switch();
            if simulated::is_readable(&self.watchdog) {
                self.watchdog.on_readable();
            }
        }
    }

    /// Pauses the VM for a snapshot: nothing touches it from here on.
    pub fn stop(&self) {
        let resumes = self.seen.observed().resumes;
        self.clock.pause();
        let is_quiet = self.clock.quiesce(LIMIT);
        self.seen.quiesced(is_quiet, resumes);
    }

    /// Pauses the VM, does `work` and resumes it.
    pub fn stop_for(&self, work: impl FnOnce()) {
        self.stop();
        self.seen.switch();
        work();
        self.seen.switch();
        self.resume();
    }

    pub fn resume(&self) {
        {
            let mut observed = self.seen.observed();
            observed.is_quiet = false;
            observed.resumes.1 += 1;
        }
        self.clock.resume();
        let mut observed = self.seen.observed();
        observed.resumes.0 += 1;
        observed.resumes.1 -= 1;
    }

    /// The VMM puts a saved state back: the watchdog, and the interrupt controller with the line as it was.
    pub fn restore(&self, state: &State, level: bool) {
        self.seen.observed().is_restored = true;
        self.watchdog.restore(state).unwrap();
        self.seen.observed().level = level;
    }

    /// A thread that works on this VM.
    pub fn thread(&self, work: impl FnOnce(&Vm) + Send + 'static) -> JoinHandle<()> {
        let vm = self.clone();
        thread::spawn(move || work(&vm))
    }

    /// Runs these threads side by side to their ends.
    pub fn side_by_side(&self, threads: &[fn(&Vm)]) {
        let handles: Vec<_> = threads.iter().map(|work| self.thread(*work)).collect();
        handles.into_iter().for_each(|handle| handle.join().unwrap());
    }

    /// When the device has something to report the timer has gone off, without any access in between.
    fn check_timer(&self) {
        self.resume();
        simulated::advance(MIN_WAKE_INTERVAL);
        let poll_at = self.watchdog.inspect(|device| device.poll_at());
        if let Some(poll_at) = poll_at.filter(|_| !self.seen.observed().has_run_delay) {
            simulated::advance(poll_at.saturating_duration_since(self.clock.now()));
            let is_readable = simulated::is_readable(&self.watchdog);
            self.seen.require(is_readable, || "the timer is armed too late".into());
        }
    }

    /// Lets the timer alone serve the watchdog until all that is left has come.
    fn let_time_pass(&self) {
        for _ in 0..4 {
            for pause in [MIN_WAKE_INTERVAL, READING_INTERVAL, PERIOD] {
                simulated::advance(pause);
                self.resume();
                self.serve(4);
                let is_at_rest = !simulated::is_readable(&self.watchdog);
                self.seen.require(is_at_rest, || "a timer that was served goes off without end".into());
            }
        }
        self.resume();
    }

    /// The end of an interrupt: its controller lowers the line, and the watchdog is told of it.
    pub fn end_interrupt(&self) {
        self.seen.observed().level = false;
        self.watchdog.resample_interrupt();
    }

    /// What holds at the end of each schedule. `is_right` is given the timeouts that were delivered, and the number of
    /// those of the device.
    pub fn finish(&self, is_right: impl FnOnce(&[Event], u64) -> bool) {
        self.check_timer();
        self.let_time_pass();
        let Self { watchdog, seen, .. } = self;
        let stats = watchdog.stats();
        let timeouts = seen.timeouts();
        let level = watchdog.inspect(|device| device.interrupt_level());
        let wire = seen.level();
        let calls = seen.observed().events.len() as u64;
        let failures = seen.observed().failures;
        seen.require(stats.time_left.is_none(), || format!("the timer was not armed: {stats:?}"));
        seen.require(is_right(&timeouts, stats.expiries), || format!("{timeouts:?} of {} timeouts", stats.expiries));
        seen.require(wire == level, || format!("the line is {wire} and the device's {level}"));
        seen.require(stats.action_failures == failures, || format!("a handler was cut short: {stats:?}"));
        seen.require(stats.actions + stats.action_failures == calls, || format!("{calls} calls: {stats:?}"));
        seen.require(stats.interrupt_failures == 0, || "the line was cut short".into());
        seen.check_deadlines();
        self.check_next_guest();
        seen.assert_no_violations();
    }

    /// A guest that boots after a reset is protected: its timeout is delivered, with its own deadline.
    fn check_next_guest(&self) {
        self.resume();
        self.watchdog.reset();
        self.seen.observed().events.clear();
        self.start();
        let deadline = self.clock.now() + PERIOD;
        simulated::advance(PERIOD);
        self.serve(4);
        let timeouts = self.seen.timeouts();
        let is_told = timeouts.first().is_some_and(|event| event.deadline == deadline);
        self.seen.require(is_told, || format!("the next guest is not protected: {timeouts:?}"));
    }
}

impl Seen {
    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap()
    }

    /// Lets the model checker switch to another thread.
    pub fn switch(&self) {
        self.switch.load(Ordering::SeqCst);
    }

    /// Notes a violation. Inside of calls a panic would be contained by the library.
    pub fn require(&self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.observed().violations.push(violation());
        }
    }

    /// The timeouts that the handler was told of, without retries.
    pub fn timeouts(&self) -> Vec<Event> {
        let observed = self.observed();
        observed.events.iter().filter(|event| event.stage == Stage::Timeout && event.attempt == 1).cloned().collect()
    }

    /// How many actions were delayed.
    pub fn delays(&self) -> usize {
        self.observed().delays.len()
    }

    /// The level of the interrupt line.
    pub fn level(&self) -> bool {
        self.observed().level
    }

    /// How many interrupt messages were sent.
    pub fn messages(&self) -> u32 {
        self.observed().messages
    }

    pub fn assert_no_violations(&self) {
        assert_eq!(self.observed().violations, [] as [String; 0]);
    }

    fn begin(&self, call: &'static str) -> Call<'_> {
        let mut observed = self.observed();
        let Observed { is_quiet, calls, violations, .. } = &mut *observed;
        if *is_quiet {
            violations.push(format!("a call of the {call} begins in a quiet pause"));
        }
        if call != "run delay" && calls.contains(&call) {
            violations.push(format!("two calls of the {call} at a time"));
        }
        calls.push(call);
        Call { seen: self, call }
    }

    fn note(&self, event: &Event) {
        self.require(event.observed >= event.deadline, || format!("early: {event:?}"));
        let mut observed = self.observed();
        let key = |event: &Event| (event.stage, event.deadline, event.attempt);
        if observed.events.iter().any(|earlier| key(earlier) == key(event)) {
            observed.violations.push(format!("delivered twice: {event:?}"));
        }
        observed.events.push(event.clone());
    }

    fn quiesced(&self, is_quiet: bool, resumes: (u32, u32)) {
        let mut observed = self.observed();
        // Another thread that resumes the VM ends the quiet, or the wait for it.
        if resumes.1 > 0 || observed.resumes != resumes {
            return;
        }
        if !is_quiet {
            observed.violations.push("quiesce gave up on a paused VM".into());
        }
        if !observed.calls.is_empty() {
            let calls = observed.calls.clone();
            observed.violations.push(format!("quiet, with calls in progress: {calls:?}"));
        }
        observed.is_quiet = is_quiet;
    }

    /// Each timeout came a whole period after a heartbeat, and no heartbeat came within that period.
    fn check_deadlines(&self) {
        let timeouts = self.timeouts();
        let mut observed = self.observed();
        let Observed { is_restored, has_run_delay, heartbeats, violations, .. } = &mut *observed;
        if *is_restored || *has_run_delay {
            return;
        }
        for event in timeouts {
            let deadline = event.deadline;
            let began = deadline - PERIOD;
            if !heartbeats.iter().any(|(before, after)| *before <= began && began <= *after) {
                violations.push(format!("no whole period: {event:?}, {heartbeats:?}"));
            }
            if heartbeats.iter().any(|(before, after)| *before > began && *after < deadline) {
                violations.push(format!("in spite of a heartbeat: {event:?}, {heartbeats:?}"));
            }
        }
    }
}

/// A call in progress.
struct Call<'a> {
    seen: &'a Seen,
    call: &'static str,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut observed = self.seen.observed();
        if observed.is_quiet {
            let violation = format!("a call of the {} ends in a quiet pause", self.call);
            observed.violations.push(violation);
        }
        let index = observed.calls.iter().position(|call| *call == self.call);
        observed.calls.swap_remove(index.unwrap());
    }
}

//! The shell around the [core](crate::core): owns the lock and the timer, and calls the handler, the interrupt line and the
//! run-delay reader.
//!
//! Every call is made with no lock held, and none while the VM is paused.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_watchdog_devices::{Access, Model, MsiMessage, StateError, VmInstant};

use crate::action::Action;
use crate::clock::{ClockListener, VmClock};
use crate::core::{Call, Core, Delivery};
use crate::event::{ActionHandler, Event};
use crate::foreign;
use crate::interrupt::{InterruptLine, MsiSender};
use crate::log_limit::{LogLimit, Record};
use crate::run_delay::{RunDelay, VcpuDelay};
use crate::state::WatchdogState;
use crate::sync::{MutexGuard, Timer};
use crate::thread::Served;
use crate::turn::{Lock, Side};

/// The most calls that one wake of the host or one access of a guest leads to. What is left is done at the next wake, so
/// that a guest that keeps changing its interrupt does not occupy a thread.
const MOST_CALLS: usize = 8;

/// What the handles of one watchdog share.
pub(crate) struct Runtime<M> {
    pub id: Arc<str>,
    pub clock: VmClock,
    pub timer: Timer,
    pub handler: Box<dyn ActionHandler>,
    pub line: Option<Box<dyn InterruptLine>>,
    pub msi: Option<Box<dyn MsiSender>>,
    pub run_delay: Option<Box<dyn RunDelay>>,
    pub guarded: Lock<Guarded<M>>,
    pub log: LogLimit,
}

/// What the lock guards.
pub(crate) struct Guarded<M> {
    core: Core<M>,
    armed: Armed,
}

/// When the descriptor becomes readable; never later than there is something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    No,
    /// The timer goes off at this instant, or before.
    At(VmInstant),
    /// It is readable, because a thread has changed what there is to do. The thread that serves it sets the timer.
    Now,
}

impl<M> Guarded<M> {
    pub fn new(core: Core<M>) -> Self {
        Self { core, armed: Armed::No }
    }
}

impl<M: Model + Send + 'static> Runtime<M> {
    /// Gives the model a guest's access that does not depend on time, changes no deadline and no interrupt, and so has no
    /// call follow.
    pub fn access_without_time(&self, access: impl FnOnce(&mut M) -> Access) -> Access {
        self.guarded.lock(Side::Other).core.access_without_time(access)
    }

    /// Gives a guest's access to the model, and makes the calls that follow from it, except for those of the handler.
    /// Also gives what the access was in the end.
    pub fn access<R>(&self, access: impl FnOnce(&mut M, VmInstant) -> (Access, R)) -> (Access, R) {
        let mut log = Vec::new();
        let mut guarded = self.guarded.lock(Side::Other);
        let mut now = self.clock.now();
        if let Some(reading) = guarded.core.reading(now) {
            guarded = self.make(reading, guarded, Side::Other, &mut log).0;
            now = self.clock.now();
        }
        let outcome = guarded.core.access(now, access);
        log.extend(guarded.core.take_notice().map(|notice| Record::Notice(now, notice)));
        // Before a call that may take long.
        self.wake_if_sooner(&mut guarded);
        let next = |core: &mut Core<M>| core.reading(now).or_else(|| core.interrupt());
        let mut first = next(&mut guarded.core);
        if first.is_some() {
            guarded = self.make_all(guarded, Side::Other, &mut log, |core| first.take().or_else(|| next(core)));
            self.wake_if_sooner(&mut guarded);
        }
        drop(guarded);
        self.log.write(&self.id, &log);
        outcome
    }

    /// Reports what has expired up to now. What expires meanwhile waits for the next wake.
    pub fn on_readable(&self) {
        let mut log = Vec::new();
        let has_ended_interrupt = self.timer.take_resample();
        let mut guarded = self.guarded.lock(Side::Serving);
        if self.clock.is_paused() {
            if has_ended_interrupt {
                guarded.core.resample_interrupt();
            }
            // Resuming the clock makes the descriptor readable.
            self.disarm(&mut guarded);
            return;
        }
        let now = self.clock.now();
        guarded.core.wake(now);
        guarded = self.make_all(guarded, Side::Serving, &mut log, |core| core.next_call(now));
        if has_ended_interrupt {
            // After the calls: a line that is still asserted is set again at the next wake, which bounds how often.
            guarded.core.resample_interrupt();
        }
        self.arm(&mut guarded);
        drop(guarded);
        self.log.write(&self.id, &log);
    }

    /// The platform resets.
    pub fn reset(&self) {
        self.change_line_after(Core::reset);
    }

    /// The end of an interrupt has lowered the line.
    pub fn resample_interrupt(&self) {
        self.change_line_after(Core::resample_interrupt);
    }

    fn change_line_after(&self, change: impl FnOnce(&mut Core<M>)) {
        let mut log = Vec::new();
        let mut guarded = self.guarded.lock(Side::Other);
        change(&mut guarded.core);
        guarded = self.make_all(guarded, Side::Other, &mut log, Core::interrupt);
        self.wake_if_sooner(&mut guarded);
        drop(guarded);
        self.log.write(&self.id, &log);
    }

    /// Changes, saves or replaces the core.
    pub fn with_core<R>(&self, work: impl FnOnce(&mut Core<M>, VmInstant) -> R) -> R {
        let mut guarded = self.guarded.lock(Side::Other);
        let result = work(&mut guarded.core, self.clock.now());
        self.wake_if_sooner(&mut guarded);
        result
    }

    /// Takes over a saved state under the policy that is in force, or changes nothing.
    pub fn restore(&self, state: &WatchdogState<M::State>) -> Result<(), StateError> {
        let WatchdogState::V1(state) = state;
        self.with_core(|core, now| {
            let policy = core.policy();
            core.restore(state, now)?;
            core.set_policy(policy, now);
            Ok(())
        })
    }

    /// Takes over a saved state and its policy, or changes nothing.
    pub fn restore_with_policy(&self, state: &WatchdogState<M::State>) -> Result<(), StateError> {
        let WatchdogState::V1(state) = state;
        self.with_core(|core, now| core.restore(state, now))
    }

    /// Looks at the core.
    pub fn inspect<R>(&self, question: impl FnOnce(&Core<M>, VmInstant) -> R) -> R {
        let guarded = self.guarded.lock(Side::Other);
        question(&guarded.core, self.clock.now())
    }

    /// Makes the calls that `next` names. What they have changed or left is for the caller to arm the timer for.
    fn make_all<'a>(
        &'a self,
        mut guarded: MutexGuard<'a, Guarded<M>>,
        side: Side,
        log: &mut Vec<Record>,
        mut next: impl FnMut(&mut Core<M>) -> Option<Call>,
    ) -> MutexGuard<'a, Guarded<M>> {
        for _ in 0..MOST_CALLS {
            let Some(call) = next(&mut guarded.core) else {
                break;
            };
            let is_made;
            (guarded, is_made) = self.make(call, guarded, side, log);
            if !is_made {
                break;
            }
        }
        guarded
    }

    /// Makes a call without the lock, unless the VM is paused. Also gives whether it was made.
    fn make<'a>(
        &'a self,
        call: Call,
        mut guarded: MutexGuard<'a, Guarded<M>>,
        side: Side,
        log: &mut Vec<Record>,
    ) -> (MutexGuard<'a, Guarded<M>>, bool) {
        let Some(permit) = self.clock.permit() else {
            guarded.core.put_back(call);
            return (guarded, false);
        };
        let began = self.clock.now();
        let last_heartbeat = guarded.core.last_heartbeat();
        drop(guarded);
        let guarded = match call {
            Call::ReadRunDelay => {
                let reading = self.read_run_delay(began, log);
                let mut guarded = self.guarded.lock(side);
                guarded.core.run_delay(reading, began);
                guarded
            }
            Call::SetLine(level) => {
                let is_set = self.set_line(level, began, log);
                let mut guarded = self.guarded.lock(side);
                guarded.core.line_set(is_set);
                guarded
            }
            Call::SendMessage(message) => {
                let is_sent = self.send_message(message, began, log);
                let mut guarded = self.guarded.lock(side);
                guarded.core.message_sent(is_sent);
                guarded
            }
            Call::Perform(delivery) => {
                let mut outcome = Outcome { runtime: self, is_performed: false };
                outcome.is_performed = self.perform(&delivery, began, last_heartbeat, log);
                drop(outcome);
                self.guarded.lock(side)
            }
            Call::Withhold(delivery, until) => {
                self.tell(&delivery, until, began, last_heartbeat, log);
                let mut guarded = self.guarded.lock(side);
                guarded.core.told(self.clock.now());
                guarded
            }
        };
        // The VM is quiet when the outcome is noted.
        drop(permit);
        (guarded, true)
    }

    fn read_run_delay(&self, began: VmInstant, log: &mut Vec<Record>) -> Option<Vec<VcpuDelay>> {
        let reader = self.run_delay.as_ref()?;
        let reading = foreign::call(|| reader.run_delays());
        reading.map_err(|error| log.push(Record::RunDelayFailed(began, error))).ok()
    }

    fn set_line(&self, level: bool, began: VmInstant, log: &mut Vec<Record>) -> bool {
        let Some(line) = &self.line else {
            return true;
        };
        let outcome = foreign::call(|| line.set_level(level));
        outcome.map_err(|error| log.push(Record::LineFailed(began, level, error))).is_ok()
    }

    fn send_message(&self, message: MsiMessage, began: VmInstant, log: &mut Vec<Record>) -> bool {
        let Some(msi) = &self.msi else {
            return true;
        };
        let outcome = foreign::call(|| msi.send(message));
        outcome.map_err(|error| log.push(Record::MessageFailed(began, message, error))).is_ok()
    }

    fn perform(
        &self,
        delivery: &Delivery,
        observed: VmInstant,
        last_heartbeat: Option<VmInstant>,
        log: &mut Vec<Record>,
    ) -> bool {
        let event = self.event(delivery, observed, last_heartbeat);
        let outcome = match event.action {
            Action::None => foreign::contain(|| self.handler.note(&event)),
            _ => foreign::call(|| self.handler.perform(&event)),
        };
        log.push(Record::Event(event.clone()));
        outcome.map_err(|error| log.push(Record::ActionFailed(event, error))).is_ok()
    }

    /// Tells the handler that the policy's rate withholds an action.
    fn tell(
        &self,
        delivery: &Delivery,
        until: Option<VmInstant>,
        observed: VmInstant,
        last_heartbeat: Option<VmInstant>,
        log: &mut Vec<Record>,
    ) {
        let event = Event { delayed: until.is_some(), ..self.event(delivery, observed, last_heartbeat) };
        let outcome = foreign::contain(|| match until {
            Some(until) => self.handler.delayed(&event, until),
            None => self.handler.suppressed(&event),
        });
        log.push(Record::Withheld(event.clone(), until));
        if let Err(error) = outcome {
            log.push(Record::ActionFailed(event, error));
        }
    }

    fn event(&self, delivery: &Delivery, observed: VmInstant, last_heartbeat: Option<VmInstant>) -> Event {
        let Delivery { stage, action, deadline, attempt, is_delayed, .. } = *delivery;
        let id = self.id.clone();
        Event { id, stage, action, deadline, observed, last_heartbeat, attempt, delayed: is_delayed }
    }

    /// Has the serving thread set the timer, if there is something to do before it goes off.
    fn wake_if_sooner(&self, guarded: &mut Guarded<M>) {
        let Some(wanted) = guarded.core.next_wake() else {
            return;
        };
        let is_sooner = match guarded.armed {
            Armed::No => true,
            Armed::At(armed_at) => wanted < armed_at,
            Armed::Now => false,
        };
        if is_sooner {
            self.wake(guarded);
        }
    }

    fn wake(&self, guarded: &mut Guarded<M>) {
        // If the system call is refused, the next access of the guest tries again.
        if guarded.armed != Armed::Now && self.timer.wake() {
            guarded.armed = Armed::Now;
        }
    }

    /// Sets the timer for the next thing to do. Only the serving thread sets it.
    fn arm(&self, guarded: &mut Guarded<M>) {
        let Some(wanted) = guarded.core.next_wake() else {
            return self.disarm(guarded);
        };
        self.end_wake(guarded);
        self.timer.arm(self.clock.host_time_of(wanted));
        guarded.armed = Armed::At(wanted);
    }

    fn disarm(&self, guarded: &mut Guarded<M>) {
        self.end_wake(guarded);
        self.timer.disarm();
        guarded.armed = Armed::No;
    }

    fn end_wake(&self, guarded: &Guarded<M>) {
        if guarded.armed == Armed::Now {
            self.timer.end_wake();
        }
    }
}

/// Notes the outcome of a call of the handler when it is dropped, however the call ended.
struct Outcome<'a, M: Model + Send + 'static> {
    runtime: &'a Runtime<M>,
    is_performed: bool,
}

impl<M: Model + Send + 'static> Drop for Outcome<'_, M> {
    fn drop(&mut self) {
        let mut guarded = self.runtime.guarded.lock(Side::Serving);
        guarded.core.performed(self.is_performed, self.runtime.clock.now());
    }
}

impl<M: Model + Send + 'static> ClockListener for Runtime<M> {
    fn clock_changed(&self) {
        let mut guarded = self.guarded.lock(Side::Other);
        // What the timer was set to was an instant of the host, which is another instant of the VM now.
        if guarded.core.next_wake().is_some() {
            self.wake(&mut guarded);
        }
    }
}

impl<M: Model + Send + 'static> Served for Runtime<M> {
    fn id(&self) -> &str {
        &self.id
    }

    fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn on_readable(&self) {
        self.on_readable();
    }
}

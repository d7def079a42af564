//! One watchdog of a VM in another process: shared by its socket, its handler, its VM and its metrics.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_watchdog::i6300esb::{ArmedStateV1, I6300esb, InterruptPin};
use vm_watchdog::{Action, ActionHandler, Event, HandlerError, MsiMessage, VmInstant, Watchdog};
use vm_watchdog_timeline::GuestExpiry;
use vm_watchdog_vfio_user::{CloseReason, Intx, Msi};

use crate::serve::control::Control;
use crate::serve::control::messages::VmEvent;
use crate::serve::control::qmp::VmListener;
use crate::serve::control::remap::remap;
use crate::serve::device::WatchdogDevice;
use crate::serve::events::{Entry, ServerEvent, Timeline};
use crate::serve::last_action::LastAction;
use crate::serve::late::LateHandler;
use crate::serve::options::WatchdogOptions;
use crate::serve::peer::{Owner, Peer};
use crate::serve::progress::Progress;
use crate::serve::restored::Restored;
use crate::serve::vm::{Vm, VmWatchdog};

/// The least time between two entries for the actions of pretimeouts that were left out.
const SUPPRESSED_INTERVAL: Duration = Duration::from_secs(1);

/// A watchdog of a VM that runs in another process.
pub struct Endpoint {
    pub watchdog: Watchdog<I6300esb>,
    intx: Option<Arc<Intx>>,
    msi: Option<Arc<Msi>>,
    pub socket: PathBuf,
    pub vm: Arc<Vm>,
    pub clients: Clients,
    /// The process of the VMM that is connected.
    vmm: Mutex<Option<Arc<Peer>>>,
    /// Whether a thread compares it with the process behind the control socket.
    is_comparing: AtomicBool,
    pub progress: Progress,
    pub last_action: LastAction,
    timeline: Timeline,
    /// Whether a guest that does not know of a reset gets its watchdog back.
    rearms: bool,
    /// Whether the guest has reached BAR0 since the last reset, or has asked for its size.
    is_in_reach: Arc<AtomicBool>,
    restored: Mutex<Restored>,
    /// What there was at the last [`observe`](Endpoint::observe).
    seen: Mutex<Seen>,
    /// How many of the actions that were left out are recorded, and when that was last done.
    suppressed: Mutex<(u64, Option<Instant>)>,
}

/// The part of a watchdog's state whose changes are events or are saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The registers of an armed watchdog.
    armed: Option<ArmedStateV1>,
    timed_out: bool,
    rearmed: u64,
    found_unprotected: u64,
}

/// Counts the clients of a socket.
#[derive(Debug, Default)]
pub struct Clients {
    pub is_connected: AtomicBool,
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub protocol_errors: AtomicU64,
}

impl Endpoint {
    /// Builds a watchdog and its endpoint.
    pub fn build(options: &WatchdogOptions, vm: Arc<Vm>, timeline: Timeline) -> Result<Arc<Self>, vm_watchdog::Error> {
        let has_pin = options.device.interrupt_pin != InterruptPin::None;
        let intx = has_pin.then(Arc::<Intx>::default);
        let msi = options.device.msi.then(Arc::<Msi>::default);
        let device = I6300esb::new(options.device);
        let builder = Watchdog::builder(&*options.id, device).clock(vm.clock.clone()).policy(options.policy);
        let builder = match intx.clone() {
            Some(intx) => builder.interrupt_line(move |high| intx.set_level(high)),
            None => builder,
        };
        let builder = match msi.clone() {
            Some(msi) => builder.msi(move |_: MsiMessage| msi.send()),
            None => builder,
        };
        let builder = if options.rearms { builder.rearm_after_reset() } else { builder };
        let handler = LateHandler::new();
        let endpoint = Arc::new(Self {
            watchdog: builder.build(handler.clone())?,
            intx,
            msi,
            socket: options.socket.clone(),
            vm,
            clients: Clients::default(),
            vmm: Mutex::default(),
            is_comparing: AtomicBool::new(false),
            progress: Progress::default(),
            last_action: LastAction::default(),
            timeline,
            rearms: options.rearms,
            is_in_reach: Arc::default(),
            restored: Mutex::default(),
            seen: Mutex::default(),
            suppressed: Mutex::default(),
        });
        handler.set_owner(&endpoint);
        let watchdog: Arc<dyn VmWatchdog> = endpoint.clone();
        endpoint.vm.add(Arc::downgrade(&watchdog));
        Ok(endpoint)
    }

    /// The device for a client.
    pub fn device(&self) -> WatchdogDevice {
        WatchdogDevice {
            watchdog: self.watchdog.clone(),
            intx: self.intx.clone(),
            msi: self.msi.clone(),
            is_in_reach: self.is_in_reach.clone(),
            pauses: self.vm.pauses.clone(),
        }
    }

    /// Writes to the timeline.
    pub fn record(&self, event: ServerEvent) {
        self.timeline.record(Entry { id: self.watchdog.id().to_owned(), event });
    }

    /// Records that its socket is served from now on.
    pub fn listening(&self) {
        // A restored watchdog may have timed out already. Observed here, so that a guest that clears it is a change.
        self.observe();
        self.record(ServerEvent::Listening {
            socket: self.socket.display().to_string(),
            actions: self.vm.control.as_str(),
        });
    }

    /// Records that a client has connected, which is the process `vmm`.
    pub fn connected(self: &Arc<Self>, vmm: Arc<Peer>) {
        self.set_vmm(Some(vmm));
        self.clients.is_connected.store(true, Ordering::Relaxed);
        self.clients.connections.fetch_add(1, Ordering::Relaxed);
        self.record(ServerEvent::Connected);
        self.vm.follow_pause();
        self.compare_control();
        self.vm.follow_clients();
    }

    /// Records that the connection of the client is closed.
    pub fn disconnected(&self, reason: CloseReason) {
        // First, so that the descriptor of its process is closed when the event is read.
        self.set_vmm(None);
        self.clients.is_connected.store(false, Ordering::Relaxed);
        if reason != CloseReason::Left {
            self.clients.protocol_errors.fetch_add(1, Ordering::Relaxed);
        }
        self.record(ServerEvent::Disconnected { reason });
        self.vm.follow_pause();
        self.observe();
        self.record_suppressed();
        self.vm.follow_clients();
        // The end of the connection drops what was pending, which `observe` does not see.
        self.save_soon();
    }

    /// Records that a surplus client was refused.
    pub fn refused(&self) {
        self.clients.refused.fetch_add(1, Ordering::Relaxed);
        self.record(ServerEvent::Refused);
    }

    /// Records and saves what has changed since the last call.
    pub fn observe(&self) {
        // Read under the lock, so that no thread replaces a newer observation by an older one.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = self.watchdog.stats();
        let (armed, timed_out) = self.watchdog.inspect(|device| (device.armed_registers(), device.timed_out()));
        let now = Seen { armed, timed_out, rearmed: stats.rearmed, found_unprotected: stats.found_unprotected };
        let before = std::mem::replace(&mut *seen, now);
        drop(seen);
        if now.rearmed != before.rearmed {
            self.record(ServerEvent::Rearmed);
        }
        if now.armed.is_some() != before.armed.is_some() {
            self.record(if now.armed.is_some() { ServerEvent::Armed } else { ServerEvent::Disarmed });
        }
        if now.found_unprotected != before.found_unprotected {
            self.record(ServerEvent::Unprotected { reason: self.why_not_rearmed().to_owned() });
        }
        if now != before {
            self.save_soon();
        }
    }

    fn set_vmm(&self, vmm: Option<Arc<Peer>>) {
        *self.vmm.lock().unwrap_or_else(PoisonError::into_inner) = vmm;
    }

    /// Reports a control socket that does not belong to the VMM that has connected.
    fn compare_control(self: &Arc<Self>) {
        if !matches!(self.vm.control, Control::CloudHypervisor(_)) {
            return self.report_foreign_control();
        }
        // The file system of the socket may be one in user space, so another thread waits for it, and one at a time.
        if self.is_comparing.swap(true, Ordering::Relaxed) {
            return;
        }
        let endpoint = self.clone();
        let compare = move || {
            endpoint.report_foreign_control();
            endpoint.is_comparing.store(false, Ordering::Relaxed);
        };
        if let Err(error) = thread::Builder::new().name("compare".into()).spawn(compare) {
            log::error!("watchdog {}: the process behind the API is not compared: {error}", self.watchdog.id());
            self.is_comparing.store(false, Ordering::Relaxed);
        }
    }

    fn report_foreign_control(&self) {
        let owner = self.owner();
        let Owner::Vmm(Some(_)) = owner else {
            return;
        };
        // QMP connects anew to the successor of a process that has ended.
        let Some((socket, process)) = self.vm.control.process().filter(|(_, process)| !process.has_ended()) else {
            return;
        };
        if let Err(error) = owner.check(&process) {
            self.record(ServerEvent::ForeignControl { socket, reason: error.to_string() });
        }
    }

    /// Whether its threads make progress. Reports when they no longer do.
    pub fn makes_progress(&self) -> bool {
        let Vm { clock, .. } = &*self.vm;
        self.progress.is_made(self.watchdog.id(), self.vm.action_limit(), clock.is_paused(), &self.watchdog.stats())
    }

    fn why_not_rearmed(&self) -> &'static str {
        if !self.rearms {
            "it is not armed again with --no-rearm"
        } else if self.watchdog.inspect(I6300esb::armed_before_reset).is_none() {
            "what it had set before is not known"
        } else {
            "it feeds more slowly than its last timeout, so it has set another one"
        }
    }

    /// Whether the guest believes in a protection that it does not have.
    pub fn is_unprotected(&self) -> bool {
        self.watchdog.stats().unprotected || self.restored().is_found()
    }

    /// Looks for a guest that QEMU has restored without the address of its watchdog, and maps the watchdog again.
    pub fn look_for_restored(self: &Arc<Self>) {
        let is_found = self.restored().observe(self.is_out_of_reach(), self.vm.clock.now());
        if !is_found {
            return;
        }
        let endpoint = self.clone();
        // QEMU sends requests to this thread while it answers.
        let started = thread::Builder::new().name("remap".into()).spawn(move || endpoint.remap());
        if let Err(error) = started {
            self.record(ServerEvent::Unprotected { reason: error.to_string() });
        }
    }

    /// How long until there may be a restored guest to find, unless the VM is paused.
    pub fn restored_due_in(&self) -> Option<Duration> {
        self.restored().due_in(self.vm.clock.now())
    }

    /// Whether the watchdog was armed before its last reset, and the guest has neither booted nor reached the watchdog since.
    /// For a guest without firmware, Cloud Hypervisor asks for the size of BAR0 when it makes the device.
    fn is_out_of_reach(&self) -> bool {
        self.clients.is_connected.load(Ordering::Relaxed)
            && !self.is_in_reach.load(Ordering::Relaxed)
            && self.watchdog.inspect(|device| device.armed_before_reset().is_some() && device.bar0().is_none())
    }

    fn remap(&self) {
        let bar0 = self.watchdog.inspect(I6300esb::armed_before_reset).and_then(|armed| armed.bar0);
        let outcome = match (self.vm.control.qmp(), bar0) {
            _ if !self.rearms => Err("with --no-rearm its address is not put back".into()),
            (None, _) => Err("without --qmp its address cannot be put back".into()),
            (_, None) => Err("its address is not known".into()),
            (Some(qmp), Some(bar0)) => remap(qmp, &self.owner(), bar0),
        };
        self.record(match outcome {
            Ok(()) => ServerEvent::Remapped,
            Err(why) => ServerEvent::Unprotected { reason: format!("its heartbeats do not arrive: {why}") },
        });
    }

    fn restored(&self) -> MutexGuard<'_, Restored> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a pending action, because the VM was reset or shut down.
    fn acknowledge(&self) {
        self.watchdog.acknowledge();
        self.save_soon();
    }

    /// Saves the state now, if there is a file for it.
    pub fn save_now(&self) {
        if let Some(state) = &self.vm.state {
            state.save_now();
        }
    }

    fn save_soon(&self) {
        if let Some(state) = &self.vm.state {
            state.save_soon();
        }
    }

    /// Records that a stage has expired.
    fn expired(&self, event: &Event) {
        self.record(ServerEvent::Expiry(GuestExpiry::new(event, self.watchdog.stats().heartbeats)));
        self.observe();
        if let Some(metrics) = &self.vm.metrics {
            metrics.write_soon();
        }
    }

    /// Records how many actions were left out since the last time.
    fn record_suppressed(&self) {
        self.record_suppressed_of(self.watchdog.stats().suppressed_actions);
    }

    fn record_suppressed_of(&self, all: u64) {
        let mut suppressed = self.suppressed.lock().unwrap_or_else(PoisonError::into_inner);
        let actions = all.saturating_sub(suppressed.0);
        if actions > 0 {
            *suppressed = (all, Some(Instant::now()));
            drop(suppressed);
            self.record(ServerEvent::ActionSuppressed { actions });
        }
    }
}

impl VmListener for Endpoint {
    fn vm_event(&self, event: VmEvent) {
        // The device is reset through its own socket. QMP only reports that the VM was reset.
        if matches!(event, VmEvent::Reset { .. } | VmEvent::Shutdown { .. }) {
            self.acknowledge();
        }
        let is_connected = matches!(event, VmEvent::Control { connected: true, .. });
        if let Some(event) = ServerEvent::of_vm(event) {
            self.record(event);
        }
        if is_connected {
            self.report_foreign_control();
        }
    }
}

impl VmWatchdog for Endpoint {
    fn owner(&self) -> Owner {
        if self.vm.accepts_any_process {
            return Owner::Any;
        }
        Owner::Vmm(self.vmm.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn is_connected(&self) -> bool {
        self.clients.is_connected.load(Ordering::Relaxed)
    }
}

/// Performs the actions of the watchdog.
impl ActionHandler for Endpoint {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        let _busy = self.progress.acting.begin(Instant::now());
        // A delayed action was recorded as an expiry when it was delayed.
        if !event.delayed {
            self.expired(event);
        }
        self.record_suppressed();
        let action = event.action;
        self.last_action.started(event);
        if matches!(action, Action::None | Action::Debug) {
            self.last_action.ended(event, &Ok(()));
            self.save_soon();
            return Ok(());
        }
        if event.attempt == 1 {
            // The action may end the VM, and then this server may be ended too.
            self.save_now();
        }
        let outcome = self.vm.control.perform(event, &self.socket, &self.owner());
        self.last_action.ended(event, &outcome);
        self.record(ServerEvent::of_outcome(action, &outcome));
        self.save_soon();
        outcome
    }
    fn note(&self, event: &Event) {
        // An event without an action cannot fail.
        let _ = self.perform(event);
    }

    fn delayed(&self, event: &Event, until: VmInstant) {
        self.expired(event);
        self.last_action.delayed(event);
        self.record(ServerEvent::ActionDelayed { action: event.action, until_ns: until.as_nanos() });
        self.record_suppressed();
        self.save_soon();
    }

    fn suppressed(&self, event: &Event) {
        self.expired(event);
        let recorded = self.suppressed.lock().unwrap_or_else(PoisonError::into_inner).1;
        if recorded.is_none_or(|recorded| recorded.elapsed() >= SUPPRESSED_INTERVAL) {
            // The watchdog counts this one after the call.
            self.record_suppressed_of(self.watchdog.stats().suppressed_actions.saturating_add(1));
        }
    }
}

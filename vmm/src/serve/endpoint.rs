//! One watchdog: what its socket, its handler, its VM and its metrics share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{Action, ActionHandler, Event, HandlerError, Watchdog};
use vm_watchdog_vmm::vfio_user::Intx;

use super::connection::Standing;
use super::control::Control;
use super::events::{Entry, Fire, Timeline, What};
use super::options::EndpointOptions;
use super::state::Keeper;
use super::vm::Vm;

/// A watchdog of a VM that runs in another process.
pub struct Endpoint {
    pub watchdog: Watchdog<I6300esb>,
    pub intx: Option<Arc<Intx>>,
    pub socket: PathBuf,
    pub vm: Arc<Vm>,
    pub clients: Clients,
    timeline: Timeline,
    control: Control,
    keeper: Option<Keeper>,
    /// Whether the watchdog was armed, and had timed out, when it was last looked at.
    seen: Mutex<(bool, bool)>,
}

/// Counts the clients of a socket.
#[derive(Debug, Default)]
pub struct Clients {
    pub is_connected: AtomicBool,
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub protocol_errors: AtomicU64,
}

/// The library's handler. It finds the endpoint once that is there.
#[derive(Clone, Default)]
struct Handler(Arc<OnceLock<Weak<Endpoint>>>);

impl Endpoint {
    /// Builds the watchdog with everything around it.
    pub fn build(
        options: &EndpointOptions,
        vm: Arc<Vm>,
        control: Control,
        timeline: Timeline,
        keeper: Option<Keeper>,
    ) -> Result<Arc<Self>, vm_watchdog::Error> {
        let config = &options.watchdog;
        let intx = config.interrupt.then(Arc::<Intx>::default);
        let interrupt_pin = if config.interrupt { InterruptPin::IntA } else { InterruptPin::None };
        let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(interrupt_pin));
        let builder = Watchdog::builder(&*options.id, device).clock(vm.clock.clone()).policy(config.policy);
        let builder = match intx.clone() {
            Some(intx) => builder.interrupt_line(move |high| Ok(intx.set_level(high)?)),
            None => builder,
        };
        let handler = Handler::default();
        let endpoint = Arc::new(Self {
            watchdog: builder.build(handler.clone())?,
            intx,
            socket: options.socket.clone(),
            vm,
            clients: Clients::default(),
            timeline,
            control,
            keeper,
            seen: Mutex::new((false, false)),
        });
        // Nobody else has the cell, so it is empty.
        let _ = handler.0.set(Arc::downgrade(&endpoint));
        endpoint.vm.add(&endpoint);
        Ok(endpoint)
    }

    /// Writes to the timeline.
    pub fn record(&self, what: What) {
        self.timeline.record(Entry { id: self.watchdog.id().to_owned(), what });
    }

    /// Its socket is served from now on.
    pub fn listening(&self) {
        // A restored watchdog has timed out before anybody looks: the guest that clears that changes something.
        self.observe();
        self.record(What::Listening { socket: self.socket.display().to_string(), actions: self.control.as_str() });
    }

    /// A client has connected.
    pub fn connected(&self) {
        self.clients.is_connected.store(true, Ordering::Relaxed);
        self.clients.connections.fetch_add(1, Ordering::Relaxed);
        self.record(What::Connected);
    }

    /// The client has gone, or was sent away.
    pub fn disconnected(&self, reason: Standing) {
        self.clients.is_connected.store(false, Ordering::Relaxed);
        if reason != Standing::Left {
            self.clients.protocol_errors.fetch_add(1, Ordering::Relaxed);
        }
        self.record(What::Disconnected { reason });
        self.observe();
        // Whatever was pending has ended with the connection, which the look at the watchdog does not show.
        self.keep_soon();
    }

    /// A client was one too many.
    pub fn refused(&self) {
        self.clients.refused.fetch_add(1, Ordering::Relaxed);
        self.record(What::Refused);
    }

    /// Tells, and keeps, what has changed since the last look.
    pub fn observe(&self) {
        // Looked at under the lock, so that of two threads none goes back to what the other knows better.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.watchdog.stats().armed, self.watchdog.timed_out());
        let before = std::mem::replace(&mut *seen, now);
        drop(seen);
        if now.0 != before.0 {
            self.record(if now.0 { What::Armed } else { What::Disarmed });
        }
        if now != before {
            self.keep_soon();
        }
    }

    /// The VM has been dealt with by somebody else.
    pub fn acknowledge(&self) {
        self.watchdog.acknowledge();
        self.keep_soon();
    }

    /// Keeps what there is, before the end.
    pub fn keep(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.save_now();
        }
    }

    fn keep_soon(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.save_soon();
        }
    }

    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        self.record(What::Fire(Fire::new(event, self.watchdog.stats().heartbeats)));
        self.observe();
        if event.attempt == 1 {
            // The action may end the VM, and then this server may be ended too.
            self.keep();
        }
        let action = event.action;
        if matches!(action, Action::None | Action::Debug) {
            return Ok(());
        }
        let outcome = self.control.perform(event, &self.socket);
        self.record(match &outcome {
            Ok(()) => What::Performed { action },
            Err(error) => What::ActionFailed { action, reason: error.to_string() },
        });
        self.keep_soon();
        outcome
    }
}

impl ActionHandler for Handler {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        let endpoint = self.0.get().and_then(Weak::upgrade).ok_or("the server is about to end")?;
        endpoint.perform(event)
    }

    fn note(&self, event: &Event) {
        // There is nothing to perform that could fail.
        let _ = self.perform(event);
    }
}

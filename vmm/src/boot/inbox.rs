//! How the watchdogs, the vCPU and the operator reach the main loop: a queue each, and one eventfd that wakes it.
//!
//! A watchdog's handler never acts itself. It leaves its event here and returns, so that no action runs while a watchdog
//! waits for it; when the queue is full it says so, and the library tries again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_watchdog::{ActionHandler, Event, HandlerError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::devices::GuestRequest;
use super::error::BootError;
use super::operator::Wish;

/// How many events of watchdogs may wait for the main loop.
const CAPACITY: usize = 16;

/// What reaches the main loop.
pub enum Message {
    /// A watchdog fired.
    Watchdog(Event),
    /// The guest stands still and wants something.
    Guest(GuestRequest),
    /// The vCPU failed.
    Failed(BootError),
}

/// The main loop's end.
pub struct Inbox {
    watchdogs: Receiver<Event>,
    vcpu: Receiver<Result<GuestRequest, BootError>>,
    operator: Receiver<Wish>,
}

/// The other ends.
pub struct Senders {
    /// The watchdogs'.
    pub watchdogs: WatchdogSender,
    /// The vCPU's.
    pub vcpu: VcpuSender,
    /// The operator's. His signals wake the main loop themselves.
    pub operator: Sender<Wish>,
}

/// The watchdogs' end.
#[derive(Clone)]
pub struct WatchdogSender {
    queue: SyncSender<Event>,
    wake: Arc<EventFd>,
}

/// The vCPU's end.
pub struct VcpuSender {
    queue: Sender<Result<GuestRequest, BootError>>,
    wake: Arc<EventFd>,
}

/// Wakes the event loop when there is mail.
pub struct Bell(Arc<EventFd>);

/// Opens the inbox.
pub fn open() -> io::Result<(Inbox, Senders, Bell)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (events, watchdogs) = sync_channel(CAPACITY);
    let (requests, vcpu) = channel();
    let (wishes, operator) = channel();
    let senders = Senders {
        watchdogs: WatchdogSender { queue: events, wake: wake.clone() },
        vcpu: VcpuSender { queue: requests, wake: wake.clone() },
        operator: wishes,
    };
    Ok((Inbox { watchdogs, vcpu, operator }, senders, Bell(wake)))
}

impl Inbox {
    /// The next message of the VM. What the guest asked for itself comes first.
    pub fn next(&self) -> Option<Message> {
        match self.vcpu.try_recv() {
            Ok(Ok(request)) => Some(Message::Guest(request)),
            Ok(Err(error)) => Some(Message::Failed(error)),
            Err(_) => self.watchdogs.try_recv().ok().map(Message::Watchdog),
        }
    }

    /// The next wish of the operator.
    pub fn next_wish(&self) -> Option<Wish> {
        self.operator.try_recv().ok()
    }

    /// Forgets what the guest and its watchdogs wanted before a reset.
    pub fn forget(&self) {
        while self.next().is_some() {}
    }
}

impl ActionHandler for WatchdogSender {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        self.queue.try_send(event.clone())?;
        Ok(self.wake.write(1)?)
    }

    /// For the timeline.
    fn note(&self, event: &Event) {
        if let Err(error) = self.perform(event) {
            log::error!("watchdog {}: a timeout is missing in the timeline: {error}", event.id);
        }
    }
}

impl VcpuSender {
    /// Reports. Nobody listens any more when the VMM ends; then nothing is lost.
    pub fn send(&self, report: Result<GuestRequest, BootError>) {
        if self.queue.send(report).is_ok() {
            // The counter of an eventfd cannot overflow by ones.
            let _ = self.wake.write(1);
        }
    }
}

impl MutEventSubscriber for Bell {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // The owner of the loop reads the inbox; an empty counter is no error here.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_raw_fd(), EventSet::IN)) {
            log::error!("the main loop hears nobody: {error}");
        }
    }
}

//! The queues from the watchdogs, the vCPU and the operator to the main loop, and the eventfd that wakes it.
//!
//! The handler of a watchdog queues its event and returns, so that no action runs on the watchdog's thread. When the queue
//! is full, the handler fails and the library tries again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_watchdog::{ActionHandler, Event, HandlerError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::request::GuestRequest;
use crate::error::BootError;
use crate::operator::OperatorRequest;

/// How many events of watchdogs the queue holds.
const CAPACITY: usize = 16;

/// A message to the main loop.
pub enum Message {
    /// A watchdog has expired.
    Watchdog(Event),
    /// The guest requests something, and does not run until it is done.
    Guest(GuestRequest),
    /// The vCPU failed.
    Failed(BootError),
}

/// The receiving end, in the main loop.
pub struct Inbox {
    watchdogs: Receiver<Event>,
    vcpu: Receiver<Result<GuestRequest, BootError>>,
    operator: Receiver<OperatorRequest>,
}

/// The sending ends.
pub struct Senders {
    /// The watchdogs'.
    pub watchdogs: WatchdogSender,
    /// The vCPU's.
    pub vcpu: VcpuSender,
    /// The operator's. Signals wake the main loop without the eventfd.
    pub operator: Sender<OperatorRequest>,
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

/// Wakes the event loop when there is a message.
pub struct InboxSubscriber(Arc<EventFd>);

/// Opens the inbox.
pub fn open() -> io::Result<(Inbox, Senders, InboxSubscriber)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (events, watchdogs) = sync_channel(CAPACITY);
    let (requests, vcpu) = channel();
    let (operator_requests, operator) = channel();
    let senders = Senders {
        watchdogs: WatchdogSender { queue: events, wake: wake.clone() },
        vcpu: VcpuSender { queue: requests, wake: wake.clone() },
        operator: operator_requests,
    };
    Ok((Inbox { watchdogs, vcpu, operator }, senders, InboxSubscriber(wake)))
}

impl Inbox {
    /// The next message of the VM. Requests of the guest come first.
    pub fn next(&self) -> Option<Message> {
        match self.vcpu.try_recv() {
            Ok(Ok(request)) => Some(Message::Guest(request)),
            Ok(Err(error)) => Some(Message::Failed(error)),
            Err(_) => self.watchdogs.try_recv().ok().map(Message::Watchdog),
        }
    }

    /// The next request of the operator.
    pub fn next_operator_request(&self) -> Option<OperatorRequest> {
        self.operator.try_recv().ok()
    }

    /// Drops the messages of the guest and its watchdogs, at a reset.
    pub fn clear(&self) {
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
    /// Reports to the main loop, unless that has ended.
    pub fn send(&self, report: Result<GuestRequest, BootError>) {
        if self.queue.send(report).is_ok() {
            // The counter of an eventfd cannot overflow by ones.
            let _ = self.wake.write(1);
        }
    }
}

impl MutEventSubscriber for InboxSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Clears the counter; the owner of the loop reads the inbox.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_raw_fd(), EventSet::IN)) {
            log::error!("the main loop receives no messages: {error}");
        }
    }
}

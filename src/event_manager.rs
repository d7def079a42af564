//! A watchdog in an `event-manager` loop.

use std::os::fd::{AsFd, AsRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::any::AnyWatchdog;

/// Serves a watchdog from an `event-manager` loop, on whose thread the handler is then called.
///
/// ```
/// use event_manager::{EventManager, SubscriberOps};
/// use vm_watchdog::{Event, Watchdog, WatchdogSubscriber, i6300esb::I6300esb};
///
/// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// let mut events = EventManager::<WatchdogSubscriber>::new()?;
/// events.add_subscriber(WatchdogSubscriber::new(watchdog));
/// events.run_with_timeout(0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WatchdogSubscriber(AnyWatchdog);

impl WatchdogSubscriber {
    /// A subscriber that serves `watchdog`, of whichever model.
    pub fn new(watchdog: impl Into<AnyWatchdog>) -> Self {
        Self(watchdog.into())
    }
}

impl MutEventSubscriber for WatchdogSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.0.on_readable();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_fd().as_raw_fd(), EventSet::IN)) {
            log::error!("watchdog {} is not served: {error}", self.0.id());
        }
    }
}

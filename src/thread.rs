//! A thread that runs one watchdog, for VMMs without an event loop.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::error::Error;

const TIMER: u64 = 0;
const STOP: u64 = 1;

/// The thread that [`Watchdog::spawn`](crate::Watchdog::spawn) starts. Dropping this value waits for a handler call in
/// progress and ends the thread.
///
/// ```
/// # use vm_watchdog::{Event, Watchdog, i6300esb::I6300esb};
/// let watchdog = Watchdog::builder("wd", I6300esb::new(Default::default())).build(|_: &Event| Ok(()))?;
/// let thread = watchdog.spawn()?;
/// // ... the VM runs ...
/// drop(thread);
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping this value ends the watchdog's thread"]
pub struct WatchdogThread {
    stop: Arc<OwnedFd>,
    handle: Option<JoinHandle<()>>,
}

/// What a thread serves: a watchdog of any model.
pub(crate) trait Served: Send + Sync {
    fn id(&self) -> &str;
    /// The descriptor to poll.
    fn timer(&self) -> BorrowedFd<'_>;
    /// The descriptor is readable.
    fn on_readable(&self);
}

/// Runs `watchdog` on a new thread.
pub(crate) fn spawn(watchdog: Arc<impl Served + 'static>) -> Result<WatchdogThread, Error> {
    let id = watchdog.id().to_owned();
    let start = || {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        // Not poll(2), which fails once a sandbox has lowered the limit of descriptors below two.
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, watchdog.timer(), EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &*stop, EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        // The thread shares ownership of the eventfd, because a handler may drop the `WatchdogThread`: an epoll forgets a
        // descriptor that is closed.
        let kept_open = stop.clone();
        let name = thread_name(format!("watchdog {}", watchdog.id()));
        let handle = thread::Builder::new().name(name).spawn(move || serve(&*watchdog, &epoll, &kept_open))?;
        Ok(WatchdogThread { stop, handle: Some(handle) })
    };
    start().map_err(|source: io::Error| Error::Thread { id, source })
}

/// Replaces NUL bytes: a watchdog's id may contain them, and a thread's name must not.
fn thread_name(name: String) -> String {
    name.replace('\0', "?")
}

/// `epoll` has the watchdog's timer and `_stop`, which stays open as long as this runs.
fn serve(watchdog: &impl Served, epoll: &OwnedFd, _stop: &OwnedFd) {
    let mut ready = Vec::with_capacity(2);
    loop {
        ready.clear();
        match epoll::wait(epoll, spare_capacity(&mut ready), None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                log::error!("watchdog {} is no longer served: {error}", watchdog.id());
                return;
            }
        }
        let is_stopped = |event: &epoll::Event| {
            let data = event.data;
            data.u64() == STOP
        };
        if ready.iter().any(is_stopped) {
            return;
        }
        watchdog.on_readable();
    }
}

impl Drop for WatchdogThread {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()) {
            log::error!("cannot stop a watchdog's thread: {error}");
            return;
        }
        let Some(handle) = self.handle.take() else {
            return;
        };
        // A handler may drop its own `WatchdogThread`. The thread then ends after the handler returns.
        if handle.thread().id() != thread::current().id() {
            // `on_readable` catches panics of the handler, so the thread does not panic.
            let _ = handle.join();
        }
    }
}

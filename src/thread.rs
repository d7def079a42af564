//! A thread that runs one watchdog, for VMMs without an event loop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::error::Error;
use crate::foreign;

const TIMER: u64 = 0;
const STOP: u64 = 1;

/// The thread that [`Watchdog::spawn`](crate::Watchdog::spawn) starts. Dropping this value waits for a handler call in
/// progress and ends the thread.
///
/// The thread keeps the watchdog alive. It makes no difference which of this value and the last
/// [`Watchdog`](crate::Watchdog) is dropped first.
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
    descriptors: Arc<Descriptors>,
    handle: Option<JoinHandle<()>>,
}

/// What the thread waits on. It shares their ownership, because a handler may drop the `WatchdogThread`.
#[derive(Debug)]
struct Descriptors {
    epoll: OwnedFd,
    stop: OwnedFd,
}

/// What a thread serves: a watchdog of any model.
pub(crate) trait Served: Send + Sync {
    fn id(&self) -> &str;
    /// The descriptor to poll.
    fn timer(&self) -> BorrowedFd<'_>;
    /// The descriptor is readable.
    fn on_readable(&self);
}

impl WatchdogThread {
    /// The descriptors that the thread needs beside those of the watchdog, for a VMM that closes all others when it enters
    /// a jail.
    pub fn keep_fds(&self) -> Vec<RawFd> {
        vec![self.descriptors.epoll.as_raw_fd(), self.descriptors.stop.as_raw_fd()]
    }
}

/// Runs `watchdog` on a new thread, after `init`.
pub(crate) fn spawn(
    watchdog: Arc<dyn Served>,
    init: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<WatchdogThread, Error> {
    let id = watchdog.id().to_owned();
    start(watchdog, init).map_err(|source| Error::Thread { id, source })
}

fn start(
    watchdog: Arc<dyn Served>,
    init: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<WatchdogThread> {
    // Not poll(2), which fails once a sandbox has lowered the limit of descriptors below two.
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    epoll::add(&epoll, watchdog.timer(), EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &stop, EventData::new_u64(STOP), epoll::EventFlags::IN)?;
    let descriptors = Arc::new(Descriptors { epoll, stop });

    let name = thread_name(format!("watchdog {}", watchdog.id()));
    let (sender, outcome_of_init) = mpsc::sync_channel(1);
    let of_thread = descriptors.clone();
    let handle = thread::Builder::new().name(name).spawn(move || {
        let outcome = foreign::contain(init).unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let is_ready = outcome.is_ok();
        // The other end waits for it.
        let _ = sender.send(outcome);
        if is_ready {
            serve(&*watchdog, &of_thread);
        }
    })?;
    let thread = WatchdogThread { descriptors, handle: Some(handle) };
    // The thread sends before it ends, which is waited for after an error.
    outcome_of_init.recv().unwrap_or_else(|closed| Err(io::Error::other(closed))).map(|()| thread)
}

/// Replaces NUL bytes: a watchdog's id may contain them, and a thread's name must not.
fn thread_name(name: String) -> String {
    name.replace('\0', "?")
}

fn serve(watchdog: &dyn Served, descriptors: &Descriptors) {
    let mut ready = Vec::with_capacity(2);
    loop {
        ready.clear();
        match epoll::wait(&descriptors.epoll, spare_capacity(&mut ready), None) {
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
        if let Err(error) = rustix::io::write(&self.descriptors.stop, &1_u64.to_ne_bytes()) {
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

//! A thread that serves one watchdog, for VMMs without an event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};

use vm_watchdog_devices::Model;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Error, Watchdog};

const TIMER: u64 = 0;
const STOP: u64 = 1;

/// The thread that [`Watchdog::spawn`] starts. Dropping it ends the thread, after the handler call in progress.
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
#[must_use = "the watchdog is served until this is dropped"]
pub struct WatchdogThread {
    stop: EventFd,
    handle: Option<JoinHandle<()>>,
}

impl<M: Model + Send + 'static> Watchdog<M> {
    /// Serves the watchdog from a thread of its own, so that no other watchdog's handler delays it.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] if the host gives no thread or descriptor.
    pub fn spawn(&self) -> Result<WatchdogThread, Error> {
        let start = || {
            let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            let epoll = Epoll::new()?;
            for (token, fd) in [(TIMER, self.as_raw_fd()), (STOP, stop.as_raw_fd())] {
                epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
            }
            let watchdog = self.clone();
            // An epoll forgets a descriptor that is closed, as `stop` is by a handler that drops its own thread.
            let kept_open = stop.try_clone()?;
            let serve = move || {
                serve(&watchdog, &epoll);
                drop(kept_open);
            };
            let name = thread_name(format!("watchdog {}", self.id()));
            let handle = thread::Builder::new().name(name).spawn(serve)?;
            Ok(WatchdogThread { stop, handle: Some(handle) })
        };
        start().map_err(|source| Error::Thread { id: self.id().to_owned(), source })
    }
}

/// A NUL in a thread's name is an error, and an id may hold one.
fn thread_name(name: String) -> String {
    name.replace('\0', "?")
}

fn serve<M: Model + Send + 'static>(watchdog: &Watchdog<M>, epoll: &Epoll) {
    let mut events = [EpollEvent::default(); 2];
    loop {
        let ready = match epoll.wait(-1, &mut events) {
            Ok(count) => &events[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("watchdog {} is no longer served: {error}", watchdog.id());
                return;
            }
        };
        if ready.iter().any(|event| event.data() == STOP) {
            return;
        }
        watchdog.on_readable();
    }
}

impl Drop for WatchdogThread {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            log::error!("cannot stop a watchdog's thread: {error}");
            return;
        }
        let Some(handle) = self.handle.take() else {
            return;
        };
        // A handler may drop what owns its own thread, which then ends by itself.
        if handle.thread().id() != thread::current().id() {
            // The thread contains the handler's panics and has none of its own.
            let _ = handle.join();
        }
    }
}

//! The process as a service: signals, the service manager, and the sockets that it passes.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Catches SIGTERM and SIGINT.
pub struct Signals(UnixStream);

impl Signals {
    /// From now on these signals no longer end the process.
    pub fn catch() -> io::Result<Self> {
        let (signalled, signal) = UnixStream::pair()?;
        for number in [SIGTERM, SIGINT] {
            pipe::register(number, signal.try_clone()?)?;
        }
        Ok(Self(signalled))
    }

    /// Waits for one of them. Meanwhile notifies the watchdog of the service manager, if it has one, while `is_healthy`.
    pub fn wait(mut self, mut is_healthy: impl FnMut() -> bool) {
        let interval = sd_notify::watchdog_enabled().map(|timeout| (timeout / 2).max(Duration::from_millis(1)));
        if let Err(error) = self.0.set_read_timeout(interval) {
            log::error!("the watchdog of the service manager is not notified: {error}");
        }
        loop {
            match self.0.read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if is_healthy() {
                        notify(&[NotifyState::Watchdog]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

/// Lets the process open as many files as it is allowed to: a watchdog takes about six.
pub fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // If that fails, fewer watchdogs fit, and the start reports the error.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Tells the service manager that every socket listens.
pub fn ready(watchdogs: usize) {
    let status = format!("{watchdogs} watchdogs");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Tells the service manager that the server ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    // Without a service manager this does nothing and is no error.
    if let Err(error) = sd_notify::notify(state) {
        log::error!("the service manager cannot be notified: {error}");
    }
}

/// The listening sockets that the service manager passes, by path.
pub fn inherited_sockets() -> io::Result<Vec<(PathBuf, UnixListener)>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        if let Some(listener) = passed.take_unix_listener(index)? {
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
            sockets.push((path, listener));
        }
    }
    Ok(sockets)
}

/// Takes the socket at `path` out of those that were passed.
pub fn take(sockets: &mut Vec<(PathBuf, UnixListener)>, path: &Path) -> Option<UnixListener> {
    let is_it = |passed: &Path| {
        // Paths that cannot be canonicalized are not equal.
        passed == path || path.canonicalize().is_ok_and(|path| passed.canonicalize().ok() == Some(path))
    };
    let index = sockets.iter().position(|(passed, _)| is_it(passed))?;
    Some(sockets.swap_remove(index).1)
}

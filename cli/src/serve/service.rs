//! The process as a service: signals, the service manager, and the sockets that it passes.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::io::FdFlags;
use rustix::process::Resource;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// How many files the process has open beside those of its watchdogs: its signals, metrics and their clients, QMP, the
/// state, and a command of the operator.
const FILES: u64 = 48;
/// How many a watchdog has open: its timer, its socket, its clients and their processes, and the eventfds of a message.
const FILES_PER_WATCHDOG: u64 = 32;

/// Ends the server as a signal does.
pub struct Ender {
    signal: UnixStream,
    shall_end: Arc<AtomicBool>,
}

/// Catches the signals of the operator.
pub struct Signals {
    signalled: UnixStream,
    signal: UnixStream,
    shall_end: Arc<AtomicBool>,
    shall_reopen: Arc<AtomicBool>,
}

impl Signals {
    /// From now on these signals no longer end the process.
    pub fn catch() -> io::Result<Self> {
        let (signalled, signal) = UnixStream::pair()?;
        let (shall_end, shall_reopen) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        for (number, flag) in [(SIGTERM, &shall_end), (SIGINT, &shall_end), (SIGHUP, &shall_reopen)] {
            // The flag first: it is looked at when the byte has arrived.
            flag::register(number, flag.clone())?;
            pipe::register(number, signal.try_clone()?)?;
        }
        // A write beyond RLIMIT_FSIZE then fails, as on a full disk. The signal is not ignored, because the commands of
        // the operator would inherit that.
        flag::register(SIGXFSZ, Arc::default())?;
        Ok(Self { signalled, signal, shall_end, shall_reopen })
    }

    /// For a thread that ends the server.
    pub fn ender(&self) -> io::Result<Ender> {
        Ok(Ender { signal: self.signal.try_clone()?, shall_end: self.shall_end.clone() })
    }

    /// Waits for SIGTERM or SIGINT, and calls `reopen` at each SIGHUP. Meanwhile notifies the watchdog of the service
    /// manager, if it has one, while `is_healthy`, which is asked at half of that watchdog's timeout.
    pub fn wait(mut self, mut is_healthy: impl FnMut() -> bool, reopen: impl Fn()) {
        let interval = sd_notify::watchdog_enabled().map(|timeout| (timeout / 2).max(Duration::from_millis(1)));
        if let Err(error) = self.signalled.set_read_timeout(interval) {
            log::error!("the watchdog of the service manager is not notified: {error}");
        }
        loop {
            match self.signalled.read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if is_healthy() {
                        notify(&[NotifyState::Watchdog]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(1) if !self.shall_end.load(Ordering::SeqCst) => {
                    if self.shall_reopen.swap(false, Ordering::SeqCst) {
                        reopen();
                    }
                }
                _ => return,
            }
        }
    }
}

impl Ender {
    pub fn end(mut self) {
        self.shall_end.store(true, Ordering::SeqCst);
        if let Err(error) = self.signal.write_all(&[0]) {
            log::error!("the server cannot be ended: {error}");
        }
    }
}

/// Too few files may be open for the server to serve.
#[derive(Debug, thiserror::Error)]
#[error(
    "RLIMIT_NOFILE is {limit}, needed are {needed} for {watchdogs} watchdogs (LimitNOFILE= of a service, `ulimit -n` of a shell)"
)]
pub struct FileLimitError {
    limit: u64,
    needed: u64,
    watchdogs: usize,
}

/// Checks that the process may open as many files as it needs.
///
/// # Errors
///
/// [`FileLimitError`] if not.
pub fn check_file_limit(watchdogs: usize) -> Result<(), FileLimitError> {
    let needed = FILES + FILES_PER_WATCHDOG * watchdogs as u64;
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(FileLimitError { limit, needed, watchdogs }),
        _ => Ok(()),
    }
}

/// Tells the service manager that every socket listens.
pub fn ready(watchdogs: usize) {
    let status = format!("{watchdogs} watchdogs");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// What the service manager shows for the server.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
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
            // Not for the commands of the operator.
            rustix::io::fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
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

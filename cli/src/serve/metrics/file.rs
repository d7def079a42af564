//! The metrics in a file, for the textfile collector of node_exporter.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::serve::endpoint::Endpoint;
use crate::serve::locked_file::LockedFile;
use crate::serve::metrics::render;

/// The longest time between two writes.
const INTERVAL: Duration = Duration::from_secs(15);
/// The least time between two writes, although a guest causes expiries all the time.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// The permissions of the file: node_exporter has a user of its own.
const MODE: u32 = 0o644;

/// Replaces the file of the metrics, on a thread of its own.
#[derive(Clone)]
pub struct MetricsFile {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// `None` once it is removed.
    file: Mutex<Option<LockedFile>>,
    /// Whether something has changed that cannot wait.
    changed: Mutex<bool>,
    signal: Condvar,
}

impl MetricsFile {
    /// Locks the file, and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// It is locked by another server, is no regular file, or the host refuses.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = Mutex::new(Some(LockedFile::open(path.clone(), MODE, b"")?));
        Ok(Self { shared: Arc::new(Shared { path, file, changed: Mutex::default(), signal: Condvar::new() }) })
    }

    /// Writes the metrics of `endpoints` from now on.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or the host cannot start a thread.
    pub fn start(&self, endpoints: Vec<Arc<Endpoint>>) -> io::Result<()> {
        self.shared.write(&endpoints)?;
        let shared = self.shared.clone();
        thread::Builder::new().name("metrics-file".into()).spawn(move || shared.keep_writing(&endpoints))?;
        Ok(())
    }

    /// Writes the metrics soon.
    pub fn write_soon(&self) {
        *self.shared.changed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.signal.notify_all();
    }

    /// Removes the file: the metrics are no longer true.
    pub fn remove(&self) {
        let file = self.shared.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = file.map(LockedFile::remove) {
            log::error!("metrics file {} is left behind: {error}", self.shared.path.display());
        }
    }
}

impl Shared {
    fn keep_writing(&self, endpoints: &[Arc<Endpoint>]) {
        let mut failing = false;
        loop {
            thread::sleep(LEAST_INTERVAL);
            let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.signal.wait_timeout_while(changed, INTERVAL - LEAST_INTERVAL, |changed| !*changed);
            *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
            match self.write(endpoints) {
                Ok(()) => failing = false,
                // Tried again after the interval; the first failure is told.
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    log::error!("metrics file {} is not written: {error}", self.path.display());
                }
                Err(_) => {}
            }
        }
    }

    fn write(&self, endpoints: &[Arc<Endpoint>]) -> io::Result<()> {
        let text = render(endpoints).map_err(io::Error::other)?;
        match &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.replace(text.as_bytes()),
            None => Ok(()),
        }
    }
}

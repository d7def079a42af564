//! The state of a watchdog in a file, so that the next server knows the cause of the last reset.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use vm_watchdog::i6300esb::{I6300esb, I6300esbStateV1};
use vm_watchdog::{Policy, Watchdog, WatchdogState};

/// How long an action, or the end of the server, waits for the disk.
const SAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a save that is not urgent is delayed, so that one write also covers the outcome of the handler.
const SAVE_DELAY: Duration = Duration::from_millis(10);
/// The least time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// The longest file that is read. The files that the server writes are shorter than a kilobyte.
const LONGEST_FILE: u64 = 64 << 10;

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFileError {
    /// It cannot be read, written, or set aside.
    #[error("state {}: {source}", path.display())]
    Host { path: PathBuf, source: io::Error },
}

/// The state that was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The last reset came from the watchdog.
    pub wdt_timeout: bool,
    /// The guest had the watchdog armed.
    pub was_armed: bool,
    /// A timeout had not been acted upon.
    pub was_pending: bool,
}

/// A file that holds no valid state: why, and its new path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub reason: String,
    pub path: PathBuf,
}

/// Writes the state of a watchdog to its file, on a thread of its own.
#[derive(Clone)]
pub struct StateWriter {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    watchdog: OnceLock<Watchdog<I6300esb>>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// Numbers of saves: the last requested, the last that a thread waits for, and the last written.
#[derive(Debug, Default)]
struct Progress {
    requested: u64,
    urgent: u64,
    written: u64,
}

impl StateWriter {
    pub fn new(path: PathBuf) -> Self {
        let shared = Shared { path, watchdog: OnceLock::new(), progress: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Loads the file into `watchdog`, resets it, and writes its state to the file from now on.
    ///
    /// The reset keeps only WDT_TIMEOUT, because the VM that had armed the watchdog has lost its connection.
    ///
    /// # Errors
    ///
    /// [`StateFileError`] if the file cannot be read or written at all.
    pub fn start(
        &self,
        watchdog: &Watchdog<I6300esb>,
        policy: Policy,
    ) -> Result<(Option<Found>, Option<SetAside>), StateFileError> {
        let path = &self.shared.path;
        let host = |source| StateFileError::Host { path: path.clone(), source };
        let (found, set_aside) = match read(path).map_err(host)? {
            None => (None, None),
            Some(bytes) => match load(&bytes, watchdog, policy) {
                Ok(found) => (Some(found), None),
                Err(reason) => {
                    let aside = with_suffix(path, ".corrupt");
                    fs::rename(path, &aside).map_err(host)?;
                    (None, Some(SetAside { reason, path: aside }))
                }
            },
        };
        watchdog.reset();
        write(path, watchdog).map_err(host)?;
        // The cell is empty: only this call sets it.
        let _ = self.shared.watchdog.set(watchdog.clone());
        let shared = self.shared.clone();
        thread::Builder::new().name("state".into()).spawn(move || shared.keep_writing()).map_err(host)?;
        Ok((found, set_aside))
    }

    /// Writes the state after a short delay.
    pub fn save_soon(&self) {
        self.shared.progress().requested += 1;
        self.shared.changed.notify_all();
    }

    /// Writes the state now, and waits for the disk with a timeout.
    pub fn save_now(&self) {
        let mut progress = self.shared.progress();
        progress.requested += 1;
        progress.urgent = progress.requested;
        let requested = progress.requested;
        self.shared.changed.notify_all();
        // The timeout lets the watchdog fire although the disk hangs.
        let is_waiting = |progress: &mut Progress| progress.written < requested;
        drop(self.shared.changed.wait_timeout_while(progress, SAVE_TIMEOUT, is_waiting));
    }
}

impl Shared {
    fn keep_writing(&self) {
        loop {
            let progress = self.changed.wait_while(self.progress(), |progress| progress.requested == progress.written);
            let progress = progress.unwrap_or_else(PoisonError::into_inner);
            let can_wait = |progress: &mut Progress| progress.urgent <= progress.written;
            let progress = self.changed.wait_timeout_while(progress, SAVE_DELAY, can_wait);
            let requested = progress.unwrap_or_else(PoisonError::into_inner).0.requested;
            let Some(watchdog) = self.watchdog.get() else {
                return;
            };
            let started = Instant::now();
            if let Err(error) = write(&self.path, watchdog) {
                log::error!("state {} is not saved: {error}", self.path.display());
            }
            self.progress().written = requested;
            self.changed.notify_all();
            thread::sleep(WRITE_INTERVAL.saturating_sub(started.elapsed()));
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Opening a FIFO would block until another process writes to it.
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is there and is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Restores the watchdog from the bytes of a file, with its current policy.
fn load(bytes: &[u8], watchdog: &Watchdog<I6300esb>, policy: Policy) -> Result<Found, String> {
    let state: WatchdogState<I6300esbStateV1> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    // Checks every field. Nothing fires, because the timer is not served yet.
    watchdog.restore(&state).map_err(|error| error.to_string())?;
    let found =
        Found { wdt_timeout: watchdog.timed_out(), was_armed: watchdog.stats().armed, was_pending: state.is_pending() };
    watchdog.restore(&state.without_pending()).map_err(|error| error.to_string())?;
    watchdog.set_policy(policy);
    Ok(found)
}

/// Replaces the file atomically.
fn write(path: &Path, watchdog: &Watchdog<I6300esb>) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(&watchdog.save())?;
    bytes.push(b'\n');
    let new = with_suffix(path, ".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_watchdog::{Event, ManualClock, VmClock};

    fn watchdog() -> (Watchdog<I6300esb>, ManualClock) {
        let (clock, time) = VmClock::manual();
        let builder = Watchdog::builder("wd", I6300esb::new(Default::default())).clock(clock);
        (builder.build(|_: &Event| Ok(())).unwrap(), time)
    }

    /// Lets a watchdog time out.
    fn time_out((watchdog, time): &(Watchdog<I6300esb>, ManualClock)) {
        watchdog.write_config(0x68, &[2]);
        time.advance(Duration::from_secs(3000));
        watchdog.on_readable();
    }

    #[test]
    fn the_next_server_keeps_the_cause_of_the_last_reset_and_resets_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let old = watchdog();
        let writer = StateWriter::new(path.clone());
        assert_eq!(writer.start(&old.0, Policy::default()).unwrap(), (None, None));
        time_out(&old);
        writer.save_now();

        let (new, _) = watchdog();
        let (found, set_aside) = StateWriter::new(path).start(&new, Policy::default()).unwrap();
        assert_eq!(found, Some(Found { wdt_timeout: true, was_armed: true, was_pending: false }));
        assert_eq!(set_aside, None);
        assert!(new.timed_out() && !new.stats().armed);
    }

    #[test]
    fn an_invalid_file_is_set_aside_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (sound, _) = watchdog();
        let sound = serde_json::to_string(&sound.save()).unwrap();
        for corrupt in [
            String::new(),
            sound[..sound.len() / 2].to_owned(),
            sound.replace("\"version\":1", "\"version\":2"),
            sound.replace("\"preload1\":1048575", "\"preload1\":1048576"),
            sound.replace("\"wdt_timeout\":false", "\"wdt_timeout\":true,\"colour\":\"red\""),
            format!("{sound}{sound}"),
            "\0".repeat(100_000),
        ] {
            assert_ne!(corrupt, sound);
            fs::write(&path, &corrupt).unwrap();
            let (watchdog, _) = watchdog();
            let (found, set_aside) = StateWriter::new(path.clone()).start(&watchdog, Policy::default()).unwrap();
            assert_eq!((found, watchdog.timed_out()), (None, false));
            let set_aside = set_aside.expect("a message");
            assert_eq!(fs::read_to_string(set_aside.path).unwrap(), corrupt);
            assert!(load(&fs::read(&path).unwrap(), &watchdog, Policy::default()).is_ok(), "a sound one in its place");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_at_the_start() {
        let (watchdog, _) = watchdog();
        let writer = StateWriter::new("/nonexistent/state".into());
        let error = writer.start(&watchdog, Policy::default()).unwrap_err();
        assert!(error.to_string().starts_with("state /nonexistent/state: "), "{error}");
    }
}

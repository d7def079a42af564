//! The state of the VM's watchdogs in a file, so that the next server knows the cause of the last reset.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};
use vm_watchdog::Watchdog;
use vm_watchdog::i6300esb::{I6300esb, I6300esbState};
use vm_watchdog_timeline::bounded;

use crate::serve::locked_file::LockedFile;

/// How long an action, or the end of the server, waits for the disk.
const SAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a save that is not urgent is delayed, so that one write also covers the outcome of the handler.
const SAVE_DELAY: Duration = Duration::from_millis(10);
/// The least time between two writes that a guest causes.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The time from a write that failed to the next try.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The permissions of the file.
const MODE: u32 = 0o600;
/// The version of the file.
const VERSION: u32 = 1;

/// The state file cannot be used: it cannot be locked, read, written, or set aside.
#[derive(Debug, thiserror::Error)]
#[error("state {}: {source}", path.display())]
pub struct StateFileError {
    path: PathBuf,
    source: io::Error,
}

/// What the file had.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The state of each watchdog that the file knew.
    pub found: HashMap<String, Found>,
    /// Set if the file was not valid.
    pub set_aside: Option<SetAside>,
}

/// The state of a watchdog that was found in a file.
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

/// Writes the state of the watchdogs to their file, on a thread of its own.
#[derive(Clone)]
pub struct StateWriter {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    file: Mutex<LockedFile>,
    watchdogs: OnceLock<Vec<Watchdog<I6300esb>>>,
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

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct States {
    #[serde(deserialize_with = "known_version")]
    version: u32,
    watchdogs: BTreeMap<String, I6300esbState>,
}

impl StateWriter {
    /// Locks the file, and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// It is locked by another server, is no regular file, or the host refuses.
    pub fn open(path: PathBuf) -> Result<Self, StateFileError> {
        let locked = States::of(&[]).to_bytes().and_then(|empty| LockedFile::open(path.clone(), MODE, &empty));
        let file = Mutex::new(locked.map_err(|source| StateFileError { path: path.clone(), source })?);
        let (progress, changed) = (Mutex::default(), Condvar::new());
        Ok(Self { shared: Arc::new(Shared { path, file, watchdogs: OnceLock::new(), progress, changed }) })
    }

    /// Loads the file into `watchdogs`, resets them, and writes their states to the file from now on.
    ///
    /// The reset keeps only WDT_TIMEOUT, because the VM that had armed a watchdog has lost its connection.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written at all.
    pub fn start(&self, watchdogs: Vec<Watchdog<I6300esb>>) -> Result<Restored, StateFileError> {
        self.try_start(watchdogs).map_err(|source| StateFileError { path: self.shared.path.clone(), source })
    }

    fn try_start(&self, watchdogs: Vec<Watchdog<I6300esb>>) -> io::Result<Restored> {
        let mut file = self.shared.file();
        let mut restored = Restored::default();
        match load(&file.read()?, &watchdogs) {
            Ok(found) => restored.found = found,
            Err(reason) => restored.set_aside = Some(SetAside { reason, path: file.set_aside()? }),
        }
        watchdogs.iter().for_each(Watchdog::reset);
        file.replace(&States::of(&watchdogs).to_bytes()?)?;
        drop(file);
        // The cell is empty: only this call sets it.
        let _ = self.shared.watchdogs.set(watchdogs);
        let shared = self.shared.clone();
        thread::Builder::new().name("state".into()).spawn(move || shared.keep_writing())?;
        Ok(restored)
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
        // The timeout lets the watchdog act although the disk hangs.
        let is_waiting = |progress: &mut Progress| progress.written < requested;
        drop(self.shared.changed.wait_timeout_while(progress, SAVE_TIMEOUT, is_waiting));
    }
}

impl Shared {
    fn keep_writing(&self) {
        let mut failing = false;
        loop {
            let progress = self.changed.wait_while(self.progress(), |progress| progress.requested == progress.written);
            drop(self.wait_unless_urgent(progress.unwrap_or_else(PoisonError::into_inner), SAVE_DELAY));
            let requested = self.progress().requested;
            let started = Instant::now();
            let written = States::of(self.watchdogs.get().map_or(&[], Vec::as_slice)).to_bytes();
            match written.and_then(|bytes| self.file().replace(&bytes)) {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        log::info!("state {} is saved again", self.path.display());
                    }
                    let mut progress = self.progress();
                    progress.written = requested;
                    self.changed.notify_all();
                    drop(self.wait_unless_urgent(progress, WRITE_INTERVAL.saturating_sub(started.elapsed())));
                }
                // Tried again until it is on the disk; the first failure is told.
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        log::error!("state {} is not saved, and is tried again: {error}", self.path.display());
                    }
                    thread::sleep(RETRY_INTERVAL);
                }
            }
        }
    }

    /// Waits, unless a thread waits for the disk.
    fn wait_unless_urgent<'a>(&self, progress: MutexGuard<'a, Progress>, limit: Duration) -> MutexGuard<'a, Progress> {
        let can_wait = |progress: &mut Progress| progress.urgent <= progress.written;
        self.changed.wait_timeout_while(progress, limit, can_wait).unwrap_or_else(PoisonError::into_inner).0
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, LockedFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl States {
    fn of(watchdogs: &[Watchdog<I6300esb>]) -> Self {
        let states = watchdogs.iter().map(|watchdog| (watchdog.id().to_owned(), watchdog.save()));
        Self { version: VERSION, watchdogs: states.collect() }
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Refuses another version before its unknown fields are refused.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        other => Err(serde::de::Error::custom(format!("version {other}, accepted is {VERSION}"))),
    }
}

/// Restores the watchdogs from the bytes of a file, or none of them.
fn load(bytes: &[u8], watchdogs: &[Watchdog<I6300esb>]) -> Result<HashMap<String, Found>, String> {
    let States { watchdogs: states, .. } = serde_json::from_slice(bytes).map_err(|error| bounded(&error))?;
    let before: Vec<_> = watchdogs.iter().map(Watchdog::save).collect();
    let mut found = HashMap::new();
    for watchdog in watchdogs {
        let Some(state) = states.get(watchdog.id()) else {
            continue;
        };
        // Checks every field. Nothing is performed, because the timer is not served yet.
        if let Err(error) = watchdog.restore(state) {
            for (watchdog, before) in watchdogs.iter().zip(&before) {
                watchdog.restore(before).map_err(|error| error.to_string())?;
            }
            return Err(format!("{}: {error}", watchdog.id()));
        }
        let stats = watchdog.stats();
        let (wdt_timeout, was_armed, was_pending) = (watchdog.timed_out(), stats.armed, state.is_pending());
        found.insert(watchdog.id().to_owned(), Found { wdt_timeout, was_armed, was_pending });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use vm_watchdog::{Event, ManualClock, VmClock};

    fn watchdog(id: &str) -> (Watchdog<I6300esb>, ManualClock) {
        let (clock, time) = VmClock::manual();
        let builder = Watchdog::builder(id, I6300esb::new(Default::default())).clock(clock);
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
        let (old, other) = (watchdog("a"), watchdog("b"));
        let writer = StateWriter::open(path.clone()).unwrap();
        assert_eq!(writer.start(vec![old.0.clone(), other.0]).unwrap(), Restored::default());
        time_out(&old);
        writer.save_now();
        // The lock goes with the server.
        let copy = folder.path().join("copy");
        fs::copy(path, &copy).unwrap();

        let (a, b, c) = (watchdog("a").0, watchdog("b").0, watchdog("c").0);
        let writer = StateWriter::open(copy).unwrap();
        let Restored { found, set_aside } = writer.start(vec![a.clone(), b.clone(), c]).unwrap();
        let timed_out = Found { wdt_timeout: true, was_armed: true, was_pending: false };
        let idle = Found { wdt_timeout: false, was_armed: false, was_pending: false };
        assert_eq!(found, HashMap::from([("a".to_owned(), timed_out), ("b".to_owned(), idle)]));
        assert_eq!(set_aside, None);
        assert!(a.timed_out() && !a.stats().armed && !b.timed_out());
    }

    #[test]
    fn an_invalid_file_is_set_aside_and_not_used() {
        let sound = watchdog("wd");
        time_out(&sound);
        let sound = String::from_utf8(States::of(&[sound.0, watchdog("other").0]).to_bytes().unwrap()).unwrap();
        let twice = sound.repeat(2);
        for (from, to) in [
            (sound.as_str(), ""),
            (&sound[sound.len() / 2..], ""),
            ("\"version\": 1,\n  \"watchdogs\"", "\"version\": 2,\n  \"watchdogs\""),
            ("\"preload1\": 1048575", "\"preload1\": 1048576"),
            ("\"wdt_timeout\": true", "\"wdt_timeout\": true, \"colour\": \"red\""),
            (&sound, &twice),
            (&sound, &"\0".repeat(100_000)),
            (&sound, &format!("\"{}\"", "x".repeat(100_000))),
        ] {
            let corrupt = sound.replacen(from, to, 1);
            assert_ne!(corrupt, sound);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state");
            fs::write(&path, &corrupt).unwrap();
            let (new, other) = (watchdog("wd").0, watchdog("other").0);
            let writer = StateWriter::open(path.clone()).unwrap();
            let Restored { found, set_aside } = writer.start(vec![new.clone(), other.clone()]).unwrap();
            assert_eq!((found.len(), new.timed_out(), other.timed_out()), (0, false, false), "{corrupt}");
            let SetAside { reason, path: aside } = set_aside.expect("a message");
            assert!(reason.len() < 400, "{reason}");
            assert_eq!(fs::read_to_string(aside).unwrap(), corrupt);
            assert!(load(&fs::read(&path).unwrap(), &[new]).is_ok(), "a sound one in its place");
        }
    }

    #[test]
    fn a_disk_that_is_full_is_tried_again_until_the_state_is_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("away").join("state");
        fs::create_dir(folder.path().join("away")).unwrap();
        let old = watchdog("wd");
        let writer = StateWriter::open(path.clone()).unwrap();
        writer.start(vec![old.0.clone()]).unwrap();
        // A folder that is not there fails as a full disk does: no new file can be written.
        fs::rename(folder.path().join("away"), folder.path().join("gone")).unwrap();
        time_out(&old);
        writer.save_now();
        fs::rename(folder.path().join("gone"), folder.path().join("away")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&path).unwrap().contains("\"wdt_timeout\": true") {
            assert!(Instant::now() < deadline, "it is not tried again");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_at_the_start() {
        let error = StateWriter::open("/nonexistent/state".into()).err().unwrap();
        assert!(error.to_string().starts_with("state /nonexistent/state: "), "{error}");
    }
}

//! The dumps of a VM's memory: how many there may be in their folder, and how much of its file system they may take.
//!
//! A guest causes them, and each is as large as its memory. The oldest are kept and a new one is refused, because the first
//! dump shows the cause of a failure, and so that a guest cannot replace it by later ones.
//!
//! QEMU writes the file, under its own user. The limits hold for what a guest does; a QEMU that its guest has taken over may
//! write whatever its user may.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::serve::options::DumpOptions;

/// How many files in the folder are looked at, because a user who may write to it may fill it.
const MOST_FILES: usize = 10_000;
/// What is left free of the file system, as its twentieth part.
const RESERVE: u64 = 20;
/// The end of the name of a dump.
const SUFFIX: &str = ".elf";

/// The dumps of a VM.
pub struct Dumps {
    options: DumpOptions,
    /// Locked while one is begun: there is one at a time.
    turn: Mutex<()>,
    /// The one that QEMU writes, or has been asked to write.
    current: Mutex<Option<PathBuf>>,
}

/// Why a dump is not begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The folder cannot be looked at.
    #[error("dump folder {}: {source}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    /// Too many other files are in the folder.
    #[error("dump folder {}: more than {MOST_FILES} files are in it", .0.display())]
    TooManyFiles(PathBuf),
    /// As many dumps as there may be are in the folder.
    #[error("dump folder {}: {found} dumps are in it, and --dump-limit is {most}", folder.display())]
    TooMany { folder: PathBuf, found: u64, most: u64 },
    /// The dumps would be larger than they may be.
    #[error("dump folder {}: its dumps have {found} bytes and may have {most}, and this one has {size}", folder.display())]
    TooLarge { folder: PathBuf, found: u64, most: u64, size: u64 },
    /// The file system would be full.
    #[error("dump folder {}: {free} bytes are free, {reserve} of them have to stay so, and the dump has {size}", folder.display())]
    NoSpace { folder: PathBuf, free: u64, reserve: u64, size: u64 },
}

impl Dumps {
    pub fn new(options: DumpOptions) -> Self {
        Self { options, turn: Mutex::default(), current: Mutex::default() }
    }

    /// Whose turn it is to begin a dump.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path for a dump of a guest with so much memory, which the watchdog `id` has caused.
    ///
    /// # Errors
    ///
    /// It would be beyond a limit, or the folder cannot be looked at.
    pub fn begin(&self, id: &str, size: u64) -> Result<PathBuf, DumpError> {
        self.check(size)?;
        let path = self.options.folder.join(name(id));
        *self.current() = Some(path.clone());
        Ok(path)
    }

    /// QEMU has written the dump.
    pub fn completed(&self) {
        self.current().take();
    }

    /// QEMU has not written the dump, or not all of it: removes what there is. Returns its path.
    pub fn failed(&self) -> Option<PathBuf> {
        let path = self.current().take()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("the dump {} is not complete and cannot be removed: {error}", path.display());
            }
            _ => {}
        }
        Some(path)
    }

    fn check(&self, size: u64) -> Result<(), DumpError> {
        let DumpOptions { folder, most, .. } = &self.options;
        let (folder, most) = (folder.clone(), *most);
        let (found, found_size) = self.found()?;
        if found >= most {
            return Err(DumpError::TooMany { folder, found, most });
        }
        let disk = rustix::fs::statvfs(&folder)
            .map_err(|errno| DumpError::Folder { folder: folder.clone(), source: errno.into() })?;
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        let most = self.options.size.unwrap_or(all / 2);
        if found_size.saturating_add(size) > most {
            return Err(DumpError::TooLarge { folder, found: found_size, most, size });
        }
        let (free, reserve) = (disk.f_bavail.saturating_mul(disk.f_frsize), all / RESERVE);
        if free < size.saturating_add(reserve) {
            return Err(DumpError::NoSpace { folder, free, reserve, size });
        }
        Ok(())
    }

    /// How many dumps of the VM are in the folder, and how many bytes they have.
    fn found(&self) -> Result<(u64, u64), DumpError> {
        let folder = &self.options.folder;
        let refused = |source| DumpError::Folder { folder: folder.clone(), source };
        let (mut count, mut size) = (0, 0u64);
        for (index, entry) in fs::read_dir(folder).map_err(refused)?.enumerate() {
            if index == MOST_FILES {
                return Err(DumpError::TooManyFiles(folder.clone()));
            }
            if let Some(length) = self.length(&entry.map_err(refused)?) {
                count += 1;
                size = size.saturating_add(length);
            }
        }
        Ok((count, size))
    }

    /// The length of a file, if it is a dump of the VM. A symbolic link is not followed, and is none.
    fn length(&self, entry: &DirEntry) -> Option<u64> {
        let name = entry.file_name();
        let name = name.to_str()?;
        self.options.ids.iter().find(|id| is_name_of(id, name))?;
        let metadata = entry.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    fn current(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that the folder is there and can be looked at.
///
/// # Errors
///
/// The error of the host.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    fs::read_dir(folder).map(drop)
}

/// A name for a dump, unique by its time.
fn name(id: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}{}.{:03}{SUFFIX}", prefix(id), now.as_secs(), now.subsec_millis())
}

/// The beginning of the names of the dumps that a watchdog has caused.
fn prefix(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).chain(['-']).collect()
}

/// Whether a file has the name of a dump that the watchdog `id` has caused.
fn is_name_of(id: &str, name: &str) -> bool {
    let time = name.strip_prefix(&prefix(id)).and_then(|rest| rest.strip_suffix(SUFFIX));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = time.and_then(|time| time.split_once('.'));
    parts.is_some_and(|(seconds, millis)| is_number(seconds) && is_number(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn dumps(folder: &Path, most: u64, size: Option<u64>) -> Dumps {
        let ids = vec!["wd".to_owned(), "ü/x".to_owned()];
        Dumps::new(DumpOptions { folder: folder.to_owned(), ids, most, size })
    }

    #[test]
    fn dumps_of_this_vm_are_counted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["wd-1700000000.001.elf", "__x-1.000.elf"] {
            fs::write(path(name), [0; 100]).unwrap();
        }
        for name in ["wd-other-1.000.elf", "wd-1.000", "wd-1.000.elf.old", "wd-.000.elf", "wd-1.x.elf", "own-1.000.elf"]
        {
            fs::write(path(name), [0; 1000]).unwrap();
        }
        symlink(outside.path(), path("wd-2.000.elf")).unwrap();
        fs::create_dir(path("wd-3.000.elf")).unwrap();
        assert_eq!(dumps(folder.path(), 5, None).found().unwrap(), (2, 200));
    }

    #[test]
    fn a_dump_beyond_a_limit_is_refused_and_the_older_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let limited = dumps(folder.path(), 2, Some(1000));
        let first = limited.begin("wd", 600).unwrap();
        fs::write(&first, [0; 600]).unwrap();
        limited.completed();
        let refused = |size| limited.begin("ü/x", size).unwrap_err().to_string();
        assert!(refused(401).ends_with("its dumps have 600 bytes and may have 1000, and this one has 401"));
        let second = limited.begin("ü/x", 400).unwrap();
        assert!(second.file_name().unwrap().to_str().unwrap().starts_with("__x-"), "{second:?}");
        fs::write(&second, [0; 1]).unwrap();
        assert!(refused(1).ends_with("2 dumps are in it, and --dump-limit is 2"));
        assert_eq!(fs::read(first).unwrap().len(), 600);
    }

    #[test]
    fn a_dump_that_leaves_the_disk_too_little_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let disk = rustix::fs::statvfs(folder.path()).unwrap();
        let limited = dumps(folder.path(), 5, Some(u64::MAX));
        for size in [disk.f_bavail * disk.f_frsize, u64::MAX] {
            let error = limited.begin("wd", size).unwrap_err();
            assert!(matches!(error, DumpError::NoSpace { .. }), "{error}");
        }
        assert!(matches!(dumps(folder.path(), 5, None).begin("wd", u64::MAX), Err(DumpError::TooLarge { .. })));
        let error = dumps(Path::new("/nonexistent"), 5, None).begin("wd", 1).unwrap_err();
        assert!(error.to_string().starts_with("dump folder /nonexistent: No such file"), "{error}");
    }

    #[test]
    fn what_a_failed_dump_has_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dumps = dumps(folder.path(), 5, None);
        assert_eq!(dumps.failed(), None);
        let first = dumps.begin("wd", 1).unwrap();
        fs::write(&first, [0; 10]).unwrap();
        dumps.completed();
        assert_eq!(dumps.failed(), None, "it is complete");
        fs::remove_file(first).unwrap();
        let second = dumps.begin("wd", 1).unwrap();
        fs::write(&second, [0; 10]).unwrap();
        assert_eq!(dumps.failed(), Some(second));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

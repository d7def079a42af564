//! A file that one process at a time uses, and that is replaced as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

/// The longest file that is read.
const LONGEST_FILE: u64 = 1 << 20;
/// How many files that were set aside are kept.
const MOST_SET_ASIDE: u32 = 100;

/// A locked file.
#[derive(Debug)]
pub struct LockedFile {
    path: PathBuf,
    /// The file at the path. The lock is on it, and moves to the file that takes its place.
    file: File,
    /// The permissions of new files.
    mode: u32,
}

impl LockedFile {
    /// Locks the file at `path`, and creates it with `content` if it is not there. New files have the permissions `mode`,
    /// whatever the umask.
    ///
    /// # Errors
    ///
    /// Another process has locked it, it is no regular file, or the host refuses.
    pub fn open(path: PathBuf, mode: u32, content: &[u8]) -> io::Result<Self> {
        loop {
            let file = match open_regular(File::options().read(true), &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Another process may create it meanwhile, and is asked for the lock then.
                    match new_file(&path, mode, content)?.persist_noclobber(&path) {
                        Ok(_) => continue,
                        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => continue,
                        Err(refused) => return Err(refused.error),
                    }
                }
                file => file?,
            };
            lock(&file)?;
            // The process that had it may have replaced it between the opening and the lock.
            if fs::symlink_metadata(&path).is_ok_and(|now| is_same(&now, &file)) {
                return Ok(Self { path, file, mode });
            }
        }
    }

    /// The whole content.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&self.file).take(LONGEST_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST_FILE {
            return Err(invalid("it is longer than a mebibyte"));
        }
        Ok(bytes)
    }

    /// Replaces the file. It has the old content or the new one, also after a crash of the host.
    pub fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        let new = new_file(&self.path, self.mode, content)?;
        lock(new.as_file())?;
        self.file = new.persist(&self.path)?;
        File::open(folder(&self.path))?.sync_all()
    }

    /// Removes the file.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Renames the file to a name that is free, and returns that.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        for number in 1..=MOST_SET_ASIDE {
            let suffix = if number == 1 { ".corrupt".to_owned() } else { format!(".corrupt.{number}") };
            let aside = with_suffix(&self.path, &suffix);
            match rustix::fs::renameat_with(CWD, &self.path, CWD, &aside, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(aside),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(invalid("it is invalid, and too many invalid files are kept beside it"))
    }
}

impl Drop for LockedFile {
    /// Gives the lock up. Closing the file is not enough: a process that was forked and has not yet executed its program
    /// still has it open, and with it the lock.
    fn drop(&mut self) {
        // If the host refuses, the lock ends with that process.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Opens a file in a folder where a tenant may be able to place something else.
///
/// # Errors
///
/// It is a symbolic link or no regular file, or the host refuses.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Opening a FIFO would block until another process opens it.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let opened = options.custom_flags(flags).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => invalid("it is a symbolic link"),
        _ => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(invalid("it is there and is no regular file"));
    }
    Ok(file)
}

/// A file with this content beside `path`, under an unpredictable name, removed unless it is persisted.
fn new_file(path: &Path, mode: u32, content: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder(path))?;
    // The umask may have removed permissions.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn lock(file: &File) -> io::Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
        Errno::WOULDBLOCK => io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"),
        error => error.into(),
    })
}

fn is_same(metadata: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|of_file| (of_file.dev(), of_file.ino()) == (metadata.dev(), metadata.ino()))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_also_after_the_file_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut first = LockedFile::open(path.clone(), 0o600, b"new").unwrap();
        assert_eq!(first.read().unwrap(), b"new");
        for content in [b"a", b"b"] {
            // Another descriptor of this process is as good as another process to flock.
            let refused = LockedFile::open(path.clone(), 0o600, b"").unwrap_err();
            assert_eq!(refused.to_string(), "another process uses it");
            first.replace(content).unwrap();
        }
        drop(first);
        assert_eq!(LockedFile::open(path, 0o600, b"").unwrap().read().unwrap(), b"b");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_process_that_was_forked_does_not_keep_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = LockedFile::open(path.clone(), 0o600, b"").unwrap();
        // What a process has between its fork and the program that it executes.
        let _forked = first.file.try_clone().unwrap();
        drop(first);
        LockedFile::open(path, 0o600, b"").unwrap();
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let target = folder.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert_eq!(LockedFile::open(path.clone(), 0o600, b"").unwrap_err().to_string(), "it is a symbolic link");
        fs::remove_file(&path).unwrap();

        // The name of the temporary file of the first version of this program.
        std::os::unix::fs::symlink(&target, folder.path().join("state.new")).unwrap();
        LockedFile::open(path, 0o600, b"1").unwrap().replace(b"2").unwrap();
        assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    }

    #[test]
    fn older_files_that_were_set_aside_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for (content, name) in [("1", "state.corrupt"), ("2", "state.corrupt.2"), ("3", "state.corrupt.3")] {
            let mut file = LockedFile::open(path.clone(), 0o600, content.as_bytes()).unwrap();
            assert_eq!(file.set_aside().unwrap(), folder.path().join(name));
            file.replace(b"sound").unwrap();
            fs::remove_file(&path).unwrap();
        }
        for (content, name) in [("1", "state.corrupt"), ("2", "state.corrupt.2"), ("3", "state.corrupt.3")] {
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), content);
        }
    }
}

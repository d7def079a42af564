//! The socket file of a watchdog: created, checked and removed.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::serve::control::connect::connect;

/// How many clients can wait to be accepted.
const BACKLOG: i32 = 16;

/// How long a starting server waits for another one in the same folder, which takes less than a millisecond.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
/// The delay between two tries to lock.
const LOCK_DELAY: Duration = Duration::from_millis(5);

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another process serves it.
    #[error("socket {}: another process serves it", .0.display())]
    Live(PathBuf),
    /// The file is no socket, so it is not replaced.
    #[error("socket {}: there is a file that is no socket, which is not replaced", .0.display())]
    NoSocket(PathBuf),
    /// The service manager passes it, and it does not listen.
    #[error("socket {}: the service manager passes it, and it does not listen", .0.display())]
    NotListening(PathBuf),
    /// The host refuses.
    #[error("socket {}: {source}", path.display())]
    Host { path: PathBuf, source: io::Error },
}

/// A listening socket.
#[derive(Debug)]
pub struct Socket {
    pub listener: UnixListener,
}

/// The file of a listening socket. Dropping it removes the file, if it is still the same.
#[derive(Debug)]
pub struct SocketFile {
    /// Path, device and inode; `None` if the service manager removes it.
    file: Option<(PathBuf, u64, u64)>,
}

impl Socket {
    /// Listens on `path`, with the permissions `mode`. Replaces the socket of a server that has ended.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if the path is in use, or cannot be used.
    pub fn bind(path: &Path, mode: Mode) -> Result<(Self, SocketFile), SocketError> {
        let host = |source: io::Error| SocketError::Host { path: path.to_owned(), source };
        // Held until the socket listens: before that, another starting server would take it for a stale one.
        let _folder = lock_folder(path);
        match Self::listen(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                Self::listen(path, mode).map_err(host)
            }
            outcome => outcome.map_err(host),
        }
    }

    /// A socket that the service manager listens on, and removes.
    ///
    /// # Errors
    ///
    /// [`SocketError`] if it does not listen, or the host refuses.
    pub fn inherited(path: &Path, listener: UnixListener) -> Result<(Self, SocketFile), SocketError> {
        let host = |source: io::Error| SocketError::Host { path: path.to_owned(), source };
        if !rustix::net::sockopt::socket_acceptconn(&listener).map_err(|errno| host(errno.into()))? {
            return Err(SocketError::NotListening(path.to_owned()));
        }
        listener.set_nonblocking(true).map_err(host)?;
        Ok((Self { listener }, SocketFile { file: None }))
    }

    fn listen(path: &Path, mode: Mode) -> io::Result<(Self, SocketFile)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file is created with the mode of the socket, so that there is no time in which others can connect.
        rustix::fs::fchmod(&socket, mode)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let metadata = fs::symlink_metadata(path)?;
        let file = SocketFile { file: Some((path.to_owned(), metadata.dev(), metadata.ino())) };
        // The umask may have removed permissions.
        rustix::fs::chmod(path, mode)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok((Self { listener: socket.into() }, file))
    }
}

impl SocketFile {
    /// Its path, if this process removes it.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, ..)| path.as_path())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some((path, device, inode)) = &self.file else {
            return;
        };
        let is_same =
            fs::symlink_metadata(path).is_ok_and(|current| (current.dev(), current.ino()) == (*device, *inode));
        if is_same {
            if let Err(error) = fs::remove_file(path) {
                log::error!("socket {} is left behind: {error}", path.display());
            }
        }
    }
}

/// Locks the folder of a socket against other starting servers. Continues without the lock after a timeout, so that no
/// process can prevent a server from starting.
fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        && Instant::now() < deadline
    {
        thread::sleep(LOCK_DELAY);
    }
    Some(folder)
}

/// Removes a socket that no process serves.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let host = |source: io::Error| SocketError::Host { path: path.to_owned(), source };
    if !fs::symlink_metadata(path).map_err(host)?.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(host),
        Ok(_) => Err(SocketError::Live(path.to_owned())),
        // A process listens, and its backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::Live(path.to_owned())),
        Err(error) => Err(host(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    const OWNER_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);

    #[test]
    fn the_file_is_for_the_owner_alone_and_goes_with_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        let socket = Socket::bind(&path, OWNER_ONLY).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        // It never listens: a child that another test forks would hold a listening socket for some moments more.
        let stale = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(stale, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let socket = Socket::bind(&path, OWNER_ONLY).unwrap();
        assert!(matches!(Socket::bind(&path, OWNER_ONLY), Err(SocketError::Live(_))));
        assert!(UnixStream::connect(&path).is_ok(), "the first one still listens");
        drop(socket);
    }

    #[test]
    fn a_server_that_is_about_to_listen_is_not_stale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let lock = lock_folder(&path);
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| Socket::bind(&path, OWNER_ONLY));
            thread::sleep(Duration::from_millis(20));
            rustix::net::listen(&socket, BACKLOG).unwrap();
            drop(lock);
            assert!(matches!(second.join().unwrap(), Err(SocketError::Live(_))));
        });
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path, OWNER_ONLY), Err(SocketError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_that_replaced_the_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watchdog");
        let socket = Socket::bind(&path, OWNER_ONLY).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_that_names_it() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = Socket::bind(&path, OWNER_ONLY).unwrap_err();
        assert!(error.to_string().contains("xxx"), "{error}");
    }
}

//! Connects to a Unix socket of another process, which another tenant may own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects to a socket, and returns a non-blocking one. Fails instead of waiting if the backlog of the listener is full.
///
/// # Errors
///
/// It is a symbolic link, which a tenant may have placed, or no socket, or the host refuses.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::Socket => {}
        FileType::Symlink => return Err(invalid("it is a symbolic link")),
        _ => return Err(invalid("it is no socket")),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Connects to the file that was looked at, whatever is at the path now.
    let checked = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::net::connect(&socket, &SocketAddrUnix::new(checked)?)?;
    Ok(socket)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_connected_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let [socket, stale, link, file] = ["socket", "stale", "link", "file"].map(|name| folder.path().join(name));
        let _listener = UnixListener::bind(&socket).unwrap();
        // It never listens: a child that another test forks would hold a listening socket for some moments more.
        let closed = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(closed, &SocketAddrUnix::new(&stale).unwrap()).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        fs::write(&file, "").unwrap();
        connect(&socket).unwrap();
        assert_eq!(connect(&link).unwrap_err().to_string(), "it is a symbolic link");
        assert_eq!(connect(&file).unwrap_err().to_string(), "it is no socket");
        assert_eq!(connect(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(connect(&stale).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

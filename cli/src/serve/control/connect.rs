//! Connects to the control socket of a VMM.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::local_socket;

/// How long writing a request may take.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to a socket. Fails instead of waiting if the backlog of the listener is full.
///
/// # Errors
///
/// It is a symbolic link, which a tenant may have placed, or no socket, or the host refuses.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::from(local_socket::connect(path)?);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}

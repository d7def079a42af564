//! Waiting for others, but not for ever.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take that is not a timeout of the watchdog itself. A boot takes 8 s on an idle machine, and on a
/// loaded one 100 s were seen.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Connects to a socket that another process is about to listen on.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}

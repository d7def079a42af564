//! Waits for other processes, with a limit.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Limit for every wait except for the watchdog's timeouts. A boot takes 8 s on an idle machine, and took up to 100 s
/// on a loaded one.
pub const WAIT_LIMIT: Duration = Duration::from_secs(300);

/// Connects to a socket that another process is about to listen on.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if started.elapsed() < WAIT_LIMIT => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}

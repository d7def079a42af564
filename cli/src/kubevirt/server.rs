//! The server of a sidecar, as a process that the first one starts and watches.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long the server may take until its socket listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a process may take to end after SIGTERM, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A process that was started here, with a descriptor that is readable when it has ended.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    ended: OwnedFd,
}

impl Watched {
    /// Starts a process.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let opened = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        match opened {
            Ok(ended) => Ok(Self { child, ended }),
            Err(errno) => {
                // It has just been started and does nothing yet that has to be finished.
                let _ = child.kill();
                let _ = child.wait();
                Err(errno.into())
            }
        }
    }

    /// The status if it has ended.
    pub fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it, by SIGTERM first.
    pub fn stop(&mut self) -> io::Result<()> {
        // It may have ended.
        let _ = rustix::process::pidfd_send_signal(&self.ended, Signal::TERM);
        wait(&[self.as_fd()], STOP_TIMEOUT)?;
        if self.status()?.is_none() {
            self.child.kill()?;
        }
        self.child.wait().map(drop)
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    pub process: Watched,
    pub arguments: Vec<String>,
    /// What it tells a service manager.
    pub notifications: UnixDatagram,
}

impl Server {
    /// Starts this program with other arguments, and waits until its socket listens. `folder` is for the socket by which
    /// it says so.
    ///
    /// # Errors
    ///
    /// Why it does not listen, in words.
    pub fn start(arguments: Vec<String>, folder: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("it cannot be started: {error}");
        let (notifications, path) = notifications(folder).map_err(failed)?;
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command.args(&arguments).env("NOTIFY_SOCKET", path).env_remove("WATCHDOG_USEC").stdin(Stdio::null());
        let process = Watched::start(&mut command).map_err(failed)?;
        let mut server = Self { process, arguments, notifications };
        match server.is_ready().map_err(failed)? {
            true => Ok(server),
            false => {
                let status = server.process.status().map_err(failed)?;
                server.process.stop().map_err(failed)?;
                Err(match status {
                    Some(status) => format!("it has ended ({status}): its message is in the log of the sidecar"),
                    None => format!("it does not listen after {} s", START_TIMEOUT.as_secs()),
                })
            }
        }
    }

    fn is_ready(&mut self) -> io::Result<bool> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            wait(&[self.process.as_fd(), self.notifications.as_fd()], left)?;
            if self.has_said("READY=1")? {
                return Ok(true);
            }
            if left.is_zero() || self.process.status()?.is_some() {
                return Ok(false);
            }
        }
    }

    /// Takes what it has told a service manager, so that it never waits for a reader.
    pub fn drain(&self) -> io::Result<()> {
        self.has_said("").map(drop)
    }

    /// The same, and whether this line was among it.
    fn has_said(&self, line: &str) -> io::Result<bool> {
        let (mut datagram, mut has_said) = ([0; 4096], false);
        loop {
            match self.notifications.recv(&mut datagram) {
                Ok(length) => {
                    let mut lines = datagram[..length].split(|&byte| byte == b'\n');
                    has_said |= lines.any(|found| found == line.as_bytes());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(has_said),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn notifications(folder: &Path) -> io::Result<(UnixDatagram, PathBuf)> {
    let path = folder.join("notify");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    Ok((socket, path))
}

/// Waits until one of the descriptors is readable, at most for a time.
pub fn wait(descriptors: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Vec<bool>> {
    let deadline = Instant::now() + limit;
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(_) => return Ok(polled.iter().map(|polled| !polled.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => thread::yield_now(),
            Err(errno) => return Err(errno.into()),
        }
    }
}

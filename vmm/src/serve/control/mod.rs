//! Who performs the actions of a watchdog. All of it runs on the watchdog's own thread, and has a limit in time.

pub mod cloud_hypervisor;
pub mod exec;
pub mod qmp;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vm_watchdog::{Event, HandlerError};

use self::cloud_hypervisor::CloudHypervisor;
use self::exec::Commands;
use self::qmp::Qmp;

/// How long writing a request may take.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// Who performs the actions of a watchdog.
pub enum Control {
    /// Nobody: its policy asks for nothing.
    Nobody,
    /// QEMU, which is told where to write dumps.
    Qmp { qmp: Arc<Qmp>, dump_folder: Option<PathBuf> },
    /// Cloud Hypervisor.
    CloudHypervisor(CloudHypervisor),
    /// A command of the operator's, which runs as one of `commands`.
    Exec { command: String, commands: Arc<Commands> },
}

impl Control {
    /// Performs `event.action`.
    ///
    /// # Errors
    ///
    /// What was not done, and why.
    pub fn perform(&self, event: &Event, socket: &Path) -> Result<(), HandlerError> {
        match self {
            Self::Nobody => Err("there is nobody to perform it".into()),
            Self::Qmp { qmp, dump_folder } => qmp.perform(event, dump_folder.as_deref()),
            Self::CloudHypervisor(api) => api.perform(event.action),
            Self::Exec { command, commands } => commands.run(command, event, socket),
        }
    }

    /// In words, for the timeline.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Qmp { .. } => "QMP",
            Self::CloudHypervisor(_) => "Cloud Hypervisor",
            Self::Exec { .. } => "command",
        }
    }
}

/// Connects to a socket, without waiting for somebody who does not accept.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    Ok(stream)
}

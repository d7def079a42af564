//! The process at the other end of a Unix socket, and whether a control socket is that of the VMM.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// The process that has connected, or that listens.
#[derive(Debug)]
pub struct Peer {
    /// 0 if it is in another pid namespace.
    pid: i32,
    /// `None` if the host does not tell, as of a process that has ended.
    pidfd: Option<OwnedFd>,
}

/// The process that a control socket has to belong to.
#[derive(Clone, Debug)]
pub enum Owner {
    /// Any process: the operator accepts it.
    Any,
    /// The VMM; `None` while no VMM is connected.
    Vmm(Option<Arc<Peer>>),
}

/// A control socket belongs to another process than the VMM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is served by {control}, and the VMM is {vmm} (accepted with --any-control-process)")]
pub struct ForeignControl {
    control: String,
    vmm: String,
}

impl Peer {
    /// The process at the other end of a connection. That of a listener is the one that called listen().
    pub fn of(stream: &UnixStream) -> Self {
        let pid = pid(stream).unwrap_or(0);
        let pidfd = match pidfd(stream) {
            // Linux before 6.5. If the process has ended, its number may belong to another one by now.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
            }
            pidfd => pidfd.ok(),
        };
        Self { pid, pidfd }
    }

    /// Whether it has ended, as far as the host tells. Another process may have its socket.
    pub fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let poll = |pidfd| rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now));
        self.pidfd.as_ref().is_some_and(|pidfd| poll(pidfd).is_ok_and(|ready| ready > 0))
    }

    /// Whether both are the same process. False if the host does not tell.
    fn is(&self, other: &Self) -> bool {
        // A number is that of one process as long as the process has not ended.
        let is_certain = |peer: &Self| peer.pid != 0 && peer.pidfd.is_some() && !peer.has_ended();
        self.pid == other.pid && is_certain(self) && is_certain(other)
    }
}

impl Owner {
    /// Checks that a control socket belongs to the process.
    ///
    /// # Errors
    ///
    /// [`ForeignControl`] names both processes.
    pub fn check(&self, control: &Peer) -> Result<(), ForeignControl> {
        let vmm = match self {
            Self::Any => return Ok(()),
            Self::Vmm(Some(vmm)) if vmm.is(control) => return Ok(()),
            Self::Vmm(vmm) => vmm.as_ref().map_or_else(|| "not connected".to_owned(), ToString::to_string),
        };
        Err(ForeignControl { control: control.to_string(), vmm })
    }

    /// Whether events of a control socket count: it belongs to the process, or no VMM is connected yet.
    pub fn believes(&self, control: &Peer) -> bool {
        matches!(self, Self::Vmm(None)) || self.check(control).is_ok()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { pid: 0, .. } => f.write_str("a process of another pid namespace"),
            Self { pid, pidfd } if pidfd.is_none() || self.has_ended() => write!(f, "process {pid}, which has ended"),
            Self { pid, .. } => write!(f, "process {pid}"),
        }
    }
}

/// The process that the host noted when the socket was connected; 0 if it is in another pid namespace.
fn pid(stream: &UnixStream) -> io::Result<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    // SAFETY: SO_PEERCRED writes a ucred, which any bytes are. The call of rustix has a type for the pid that cannot hold 0.
    unsafe { option(stream, libc::SO_PEERCRED, &mut credentials) }?;
    Ok(credentials.pid)
}

/// A descriptor of that process.
fn pidfd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: SO_PEERPIDFD writes a descriptor.
    unsafe { option(stream, libc::SO_PEERPIDFD, &mut pidfd) }?;
    // SAFETY: the host has just opened it, with FD_CLOEXEC, for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Reads an option of a socket.
///
/// # Safety
///
/// The option has the type `T`, which any bytes are a value of.
unsafe fn option<T>(stream: &UnixStream, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let pointer: *mut T = value;
    // SAFETY: the pointers are to a value of the option's type and to its size, and live longer than the call.
    let status =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, pointer.cast(), &raw mut length) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    /// This process, by both ways to be told of it.
    fn this_process() -> [Peer; 2] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let connected = UnixStream::connect(folder.path().join("s")).unwrap();
        [Peer::of(&connected), Peer::of(&listener.accept().unwrap().0)]
    }

    fn peer(pid: i32) -> Peer {
        let pidfd = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Peer { pid, pidfd }
    }

    fn refusal(vmm: Option<Peer>, control: &Peer) -> Option<String> {
        Owner::Vmm(vmm.map(Arc::new)).check(control).err().map(|error| error.to_string())
    }

    #[test]
    fn a_listener_and_a_client_of_one_process_are_the_same() {
        let [listener, client] = this_process();
        assert_eq!(listener.pid, std::process::id() as i32);
        assert_eq!(refusal(Some(client), &listener), None);
    }

    #[test]
    fn another_process_is_refused_by_its_number() {
        let [listener, client] = this_process();
        let told = refusal(Some(client), &peer(1)).unwrap();
        let expected = format!("it is served by process 1, and the VMM is process {}", listener.pid);
        assert!(told.starts_with(&expected), "{told}");
        assert_eq!(refusal(Some(peer(1)), &peer(1)), None);
        assert!(Owner::Any.check(&peer(1)).is_ok());
    }

    #[test]
    fn a_process_that_the_host_does_not_tell_is_refused() {
        let unknown = || Peer { pid: 0, pidfd: None };
        let told = refusal(Some(unknown()), &unknown()).unwrap();
        assert!(told.contains("the VMM is a process of another pid namespace"), "{told}");
        assert!(told.contains("--any-control-process"), "{told}");
        // The number of a process that may be another one by now.
        assert!(refusal(Some(Peer { pid: 1, pidfd: None }), &peer(1)).is_some());
    }

    #[test]
    fn a_process_that_has_ended_is_not_the_one_that_has_its_number_now() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let [vmm, control] = [(); 2].map(|()| peer(child.id() as i32));
        assert!(vmm.is(&control));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = refusal(Some(vmm), &control).unwrap();
        assert!(told.contains("which has ended"), "{told}");
    }

    #[test]
    fn without_a_vmm_events_are_believed_and_actions_refused() {
        let owner = Owner::Vmm(None);
        assert!(owner.believes(&peer(1)));
        assert!(owner.check(&peer(1)).unwrap_err().to_string().contains("the VMM is not connected"));
    }
}

//! The process at the other end of a Unix socket.

use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// The process that has connected.
#[derive(Debug)]
pub struct Peer(OwnedFd);

impl Peer {
    /// `None` if the host does not tell, as of a process in another pid namespace.
    pub fn of(stream: &UnixStream) -> Option<Self> {
        let pid = Pid::from_raw(pid(stream)?)?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// Whether it has ended. Another process may have its socket.
    pub fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// The process that the host noted when the socket was connected; 0 if it is in another pid namespace.
fn pid(stream: &UnixStream) -> Option<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of the option's type and to its size, and live longer than the call. The call of
    // rustix has a type for the pid that cannot hold 0.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    (status == 0).then_some(credentials.pid)
}

//! Where the files of a VM are, in the containers of its pod.
//!
//! KubeVirt 1.6 and newer mount one volume into both containers: the launcher sees it whole at `/var/run/kubevirt-hooks`, and a
//! sidecar sees at the same path only the part of it that has the name of its container. The launcher takes each file
//! in that part for a socket of gRPC, and looks into no folder there: so the sockets are one folder deeper.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The folder of the sockets, below the one that sidecar and launcher share.
pub const FOLDER: &str = "vm-watchdog";

const SHARED: &str = "VM_WATCHDOG_SHARED_FOLDER";
const LAUNCHER: &str = "VM_WATCHDOG_LAUNCHER_FOLDER";
const PRIVATE: &str = "VM_WATCHDOG_PRIVATE_FOLDER";

/// The folders of a VM. The first process of the sidecar passes them to the hook in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// The sockets that QEMU uses, as the sidecar sees them.
    pub shared: PathBuf,
    /// The same folder as QEMU sees it.
    pub launcher: PathBuf,
    /// What QEMU does not see: the state of the watchdog, and the socket that asks for the server.
    pub private: PathBuf,
}

impl Folders {
    /// Those in the environment, if they are there.
    pub fn of_environment() -> Option<Self> {
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        Some(Self { shared: path(SHARED)?, launcher: path(LAUNCHER)?, private: path(PRIVATE)? })
    }

    /// The variables for [`of_environment`](Self::of_environment).
    pub fn variables(&self) -> [(&'static str, &OsStr); 3] {
        let Self { shared, launcher, private } = self;
        [(SHARED, shared.as_os_str()), (LAUNCHER, launcher.as_os_str()), (PRIVATE, private.as_os_str())]
    }

    /// The socket of the watchdog, as the sidecar sees it.
    pub fn watchdog(&self) -> PathBuf {
        self.shared.join("watchdog")
    }

    /// The socket that asks for the server.
    pub fn requests(&self) -> PathBuf {
        self.private.join("requests")
    }
}

/// Whether QEMU's options and XML take the path as it is.
pub fn is_plain(path: &Path) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    path.to_str().is_some_and(|path| path.starts_with('/') && path.bytes().all(is_plain))
}

//! What a server needs after its start, as its options say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vm_watchdog_probes::{Handler, Probe};

use crate::serve::options::{ControlOptions, DumpOptions, ServeOptions};

/// What the sandbox leaves to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// What it does in folders, and in those below them.
    pub folders: Vec<(PathBuf, Folder)>,
    pub network: Network,
    /// Whether it has a helper process.
    pub has_helper: bool,
    /// Whether its service manager listens on an abstract Unix socket.
    pub notifies_abstract: bool,
    /// Whether its service manager listens on a socket of AF_VSOCK.
    pub notifies_vsock: bool,
}

/// What a server does in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Removes its socket.
    Socket,
    /// Replaces a file.
    Replaced,
    /// Appends to a file, which it may have to create.
    Appended,
    /// Lists and removes dumps.
    Dumps,
}

/// Where a server connects over the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    None,
    /// To these TCP ports.
    Ports(BTreeSet<u16>),
    /// To any TCP port: a server of HTTP may redirect a probe.
    Any,
}

impl Needs {
    /// What the options and the environment ask for. `sockets` are the files that the server has to remove.
    pub fn of<'a>(options: &ServeOptions, sockets: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut needs = Self::default();
        let mut add = |path: &Path, what| needs.folders.push((folder(path), what));
        sockets.into_iter().for_each(|path| add(path, Folder::Socket));
        [&options.state, &options.metrics_file].into_iter().flatten().for_each(|path| add(path, Folder::Replaced));
        options.events_file.iter().for_each(|path| add(path, Folder::Appended));
        if let ControlOptions::Qmp { dumps: Some(DumpOptions { folder, .. }), .. } = &options.control {
            needs.folders.push((folder.clone(), Folder::Dumps));
        }
        let probes = options.health.iter().flat_map(|health| [&health.liveness, &health.readiness]).flatten();
        probes.for_each(|probe| needs.network.add(probe));
        needs.has_helper = matches!(options.control, ControlOptions::Exec { .. }) || options.looks_up_names();
        let manager = std::env::var("NOTIFY_SOCKET").unwrap_or_default();
        needs.notifies_abstract = manager.starts_with('@');
        needs.notifies_vsock = manager.starts_with("vsock");
        needs
    }
}

impl Network {
    fn add(&mut self, probe: &Probe) {
        match (&probe.handler, &mut *self) {
            (Handler::HttpGet { .. }, _) => *self = Self::Any,
            (Handler::TcpSocket { .. }, Self::Any) => {}
            (Handler::TcpSocket { port, .. }, Self::Ports(ports)) => drop(ports.insert(*port)),
            (Handler::TcpSocket { port, .. }, Self::None) => *self = Self::Ports([*port].into()),
            _ => {}
        }
    }
}

/// The folder of a file.
fn folder(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

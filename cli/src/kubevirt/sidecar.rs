//! `vm-watchdog sidecar`: the first process of a hook sidecar. It runs sidecar-shim, and the server when the hook asks for it.
//!
//! The server is a child of the first process, and not of the hook: sidecar-shim waits until all that a hook has started
//! has closed its output, and the events of the server belong into the log of the container. The sidecar ends when
//! sidecar-shim ends, which the launcher asks for after QEMU has ended. When the pod is deleted, all containers get SIGTERM
//! while the guest still shuts down: the server stays until QEMU has left it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::exit;
use crate::kubevirt::folders::{FOLDER, Folders, is_plain};
use crate::kubevirt::request;
use crate::kubevirt::server::{Server, Watched, wait};

/// How often the server is looked at after SIGTERM: whether QEMU is still connected.
const LOOK: Duration = Duration::from_millis(500);
/// Without anything to do.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// Runs in the hook sidecar of a KubeVirt VM: sidecar-shim, and the server when the VM asks for a watchdog.
#[derive(Clone, Debug, clap::Args)]
pub struct SidecarArguments {
    /// The folder that KubeVirt has mounted into the sidecar
    #[arg(long = "folder", value_name = "PATH", default_value = "/var/run/kubevirt-hooks")]
    folder: PathBuf,

    /// The same folder as the container with QEMU sees it [default: the folder with the name of this container below it]
    ///
    /// KubeVirt 1.6 and newer tell the name in the variable CONTAINER_NAME. Without it the folder is the same.
    #[arg(long = "launcher-folder", value_name = "PATH")]
    launcher_folder: Option<PathBuf>,

    /// The program that speaks with KubeVirt
    #[arg(long = "shim", value_name = "PROGRAM", default_value = "/sidecar-shim")]
    shim: PathBuf,

    /// Its arguments
    #[arg(value_name = "ARGUMENT", default_values = ["--version", "v1alpha3"], last = true)]
    arguments: Vec<OsString>,
}

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum SidecarError {
    /// A folder has a name that QEMU's options or XML would change.
    #[error("folder {}: accepted are absolute paths of letters, digits, hyphens, dots and underscores", .0.display())]
    Folder(PathBuf),
    /// The host refuses.
    #[error("{doing}: {source}")]
    Host { doing: String, source: io::Error },
}

impl SidecarError {
    fn host(doing: impl ToString) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { doing: doing.to_string(), source }
    }
}

/// Runs until sidecar-shim ends, or a signal ends both. The status is that of sidecar-shim.
pub fn run(arguments: &SidecarArguments) -> ExitCode {
    match try_run(arguments) {
        Ok(status) => {
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            exit::report(&error);
            ExitCode::FAILURE
        }
    }
}

fn try_run(arguments: &SidecarArguments) -> Result<ExitStatus, SidecarError> {
    let signals = signals().map_err(SidecarError::host("catch signals"))?;
    // Removed at the end.
    let private = tempfile::Builder::new().prefix("vm-watchdog").tempdir();
    let private = private.map_err(SidecarError::host("make a folder for temporary files"))?;
    let folders = folders(arguments, private.path())?;
    make_folder(&folders.shared).map_err(SidecarError::host(folders.shared.display()))?;
    let requests = folders.requests();
    let requests = UnixListener::bind(&requests).map_err(SidecarError::host(requests.display()))?;

    let mut command = Command::new(&arguments.shim);
    command.args(&arguments.arguments).envs(folders.variables());
    let shim = Watched::start(&mut command).map_err(SidecarError::host(arguments.shim.display()))?;
    let mut sidecar = Sidecar { folders, signals, requests, shim, server: None, shall_end: false };
    let outcome = sidecar.run().map_err(SidecarError::host("wait"));
    sidecar.stop();
    outcome
}

struct Sidecar {
    folders: Folders,
    signals: UnixStream,
    requests: UnixListener,
    shim: Watched,
    server: Option<Server>,
    /// SIGTERM has arrived.
    shall_end: bool,
}

impl Sidecar {
    fn run(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.shim.status()? {
                return Ok(status);
            }
            if self.shall_end && !self.is_connected() {
                return Ok(ExitStatus::default());
            }
            let server = self.server.as_ref().map(|server| [server.process.as_fd(), server.notifications.as_fd()]);
            let always = [self.shim.as_fd(), self.signals.as_fd(), self.requests.as_fd()];
            let descriptors: Vec<_> = always.into_iter().chain(server.into_iter().flatten()).collect();
            let ready = wait(&descriptors, if self.shall_end { LOOK } else { LONG })?;
            if ready[1] {
                self.take_signal();
            }
            if ready[2] {
                self.answer();
            }
            self.look_at_server()?;
        }
    }

    fn take_signal(&mut self) {
        // What was signalled does not matter.
        let _ = (&self.signals).read(&mut [0; 64]);
        self.shall_end = true;
        if self.is_connected() {
            exit::report(&"the sidecar is to end, and waits until QEMU has left the watchdog");
        }
    }

    /// Starts the server that the hook asks for, if it does not run.
    fn answer(&mut self) {
        let Ok((stream, _)) = self.requests.accept() else { return };
        let outcome = request::take(&stream).and_then(|arguments| self.serve(arguments));
        // If the hook has ended, its caller knows.
        let _ = request::answer(&stream, &outcome);
    }

    /// KubeVirt calls the hook more than once before QEMU starts: the server that runs stays, unless it is to be another one.
    fn serve(&mut self, arguments: Vec<String>) -> Result<(), String> {
        self.look_at_server().map_err(|error| error.to_string())?;
        if self.server.as_ref().is_some_and(|server| server.arguments == arguments) {
            return Ok(());
        }
        self.stop_server();
        self.server = Some(Server::start(arguments, &self.folders.private)?);
        Ok(())
    }

    fn look_at_server(&mut self) -> io::Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.drain()?;
        if let Some(status) = server.process.status()? {
            exit::report(&format!(
                "the server has ended ({status}): the guest has no watchdog until its VM starts anew"
            ));
            self.server = None;
        }
        Ok(())
    }

    /// Whether QEMU is connected to the server.
    fn is_connected(&self) -> bool {
        self.server.is_some() && has_client(&self.folders.watchdog())
    }

    fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            if let Err(error) = server.process.stop() {
                exit::report(&format!("the server does not end: {error}"));
            }
        }
    }

    fn stop(&mut self) {
        if let Err(error) = self.shim.stop() {
            exit::report(&format!("sidecar-shim does not end: {error}"));
        }
        self.stop_server();
    }
}

/// The signals by which a container is ended, as a stream.
fn signals() -> io::Result<UnixStream> {
    let (signals, writer) = UnixStream::pair()?;
    for number in [SIGTERM, SIGINT, SIGQUIT, SIGHUP] {
        pipe::register(number, writer.try_clone()?)?;
    }
    Ok(signals)
}

fn folders(arguments: &SidecarArguments, private: &Path) -> Result<Folders, SidecarError> {
    let launcher = arguments.launcher_folder.clone().unwrap_or_else(|| match std::env::var_os("CONTAINER_NAME") {
        Some(container) => arguments.folder.join(container),
        None => arguments.folder.clone(),
    });
    let shared = arguments.folder.join(FOLDER);
    let folders = Folders { shared, launcher: launcher.join(FOLDER), private: private.to_owned() };
    let unusual = [&folders.shared, &folders.launcher].into_iter().find(|path| !is_plain(path)).cloned();
    unusual.map_or(Ok(folders), |folder| Err(SidecarError::Folder(folder)))
}

/// A folder for the user of the VM alone. That of an earlier sidecar of the pod may be there.
fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => Ok(()),
        outcome => outcome,
    }
}

/// Whether a client is connected to a listening socket: the kernel lists the server's side of each connection with the path.
///
/// The format is in `Documentation/filesystems/proc.rst` and unix(7): number, references, protocol, flags, type, state, inode, path.
fn has_client(path: &Path) -> bool {
    const CONNECTED: &str = "03";
    let Ok(sockets) = fs::read_to_string("/proc/net/unix") else { return false };
    let mut fields = sockets.lines().map(|line| line.split_whitespace().skip(5));
    fields.any(|mut fields| fields.next() == Some(CONNECTED) && fields.nth(1).map(Path::new) == Some(path))
}

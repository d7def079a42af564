//! `vm-watchdog serve`: watchdogs for VMs of other VMMs, over vfio-user.
//!
//! Each socket has a thread that serves its client ([`server`]) and each watchdog one of the library's that calls its
//! handler ([`endpoint`]), so that no VM, however hostile, delays the watchdog of another, and no action runs on a
//! thread that the VMM waits for while it carries the action out. The protocol is in [`vm_watchdog_vmm::vfio_user`].

mod connection;
mod control;
mod endpoint;
mod events;
mod log;
mod metrics;
mod options;
mod server;
mod service;
mod socket;
mod state;
mod vm;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vm_watchdog::{VmClock, WatchdogThread};

pub use self::options::ServeOptions;

use self::control::Control;
use self::control::cloud_hypervisor::CloudHypervisor;
use self::control::exec::Commands;
use self::control::qmp::Qmp;
use self::endpoint::Endpoint;
use self::events::{Entry, Lines, Timeline, What};
use self::options::{ControlOptions, EndpointOptions};
use self::service::Signals;
use self::socket::{Socket, SocketError, SocketFile};
use self::state::{Found, Keeper, SetAside, StateFileError};
use self::vm::Vm;
use crate::exit::ExitStatus;
use crate::timeline::Format;

/// How long the end of the process waits for its threads.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum ServeError {
    /// A socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A state file cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The service manager's sockets and ours do not go together.
    #[error("the service manager passes the socket {}, which no --socket names", .0.display())]
    SurplusSocket(PathBuf),
    /// The address for the metrics cannot be used.
    #[error("metrics {address}: {source}")]
    Metrics { address: SocketAddr, source: io::Error },
    /// The library refuses.
    #[error(transparent)]
    Watchdog(#[from] vm_watchdog::Error),
    /// The host refuses.
    #[error("{doing}: {source}")]
    Host { doing: &'static str, source: io::Error },
}

impl ServeError {
    fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { doing, source: source.into() }
    }
}

/// Serves until a signal ends it.
pub fn run(options: ServeOptions) -> ExitCode {
    let commands = Arc::default();
    let outcome = try_run(options, &commands);
    // Those of a start that has failed.
    commands.stop();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-watchdog: {error}");
            ExitStatus::Failed.into()
        }
    }
}

fn try_run(options: ServeOptions, commands: &Arc<Commands>) -> Result<(), ServeError> {
    let signals = Signals::catch().map_err(ServeError::host("catch signals"))?;
    service::raise_file_limit();
    let lines = events::open().map_err(ServeError::host("start a thread"))?;
    let output = Output { lines: lines.clone(), format: options.events };
    log::install(output.timeline(VmClock::monotonic()));

    let mut sockets = open_sockets(&options)?;
    let metrics = options.metrics.map(open_metrics).transpose()?;
    let mut vms = HashMap::new();
    let mut endpoints = Vec::new();
    for options in &options.endpoints {
        endpoints.push(output.build(options, &mut vms, commands)?);
    }
    let mut threads = start(&endpoints, &mut sockets)?;
    let metrics = metrics.map(|listener| metrics::spawn(listener, endpoints.clone())).transpose();
    let metrics = metrics.map_err(ServeError::host("start a thread"))?;

    for endpoint in &endpoints {
        endpoint.listening();
    }
    if let Some(address) = metrics {
        let what = What::Metrics { address: address.to_string() };
        output.timeline(VmClock::monotonic()).record(Entry { id: "server".to_owned(), what });
    }
    for vm in vms.into_values() {
        if let Some(qmp) = &vm.qmp {
            qmp.follow(vm.clone()).map_err(ServeError::host("start a thread"))?;
        }
    }
    service::ready(endpoints.len());
    signals.wait(|| threads.are_serving());
    service::stopping();
    // While the VMMs are still served: a command may need an answer of theirs to end.
    commands.stop();
    threads.stop();
    for endpoint in &endpoints {
        endpoint.record(What::Stopped);
    }
    // Removes the socket files.
    drop(sockets);
    lines.finish();
    Ok(())
}

/// A listening socket, until a thread has it, and its file, until the end.
type Sockets = Vec<(Option<Socket>, SocketFile)>;

/// Where events go.
struct Output {
    lines: Lines,
    format: Format,
}

impl Output {
    fn timeline(&self, clock: VmClock) -> Timeline {
        Timeline::new(clock, self.format, Box::new(self.lines.clone()))
    }

    /// Builds a watchdog, in the state that it was left in, and its VM if it is the first of it.
    fn build(
        &self,
        options: &EndpointOptions,
        vms: &mut HashMap<VmKey, Arc<Vm>>,
        commands: &Arc<Commands>,
    ) -> Result<Arc<Endpoint>, ServeError> {
        let key = VmKey::of(options);
        let vm = vms.entry(key).or_insert_with(|| Vm::new(options.control.qmp.clone().map(Qmp::new))).clone();
        let control = control_of(&options.control, &vm, commands);
        let timeline = self.timeline(vm.clock.clone());
        let keeper = options.state.clone().map(Keeper::new);
        let endpoint = Endpoint::build(options, vm, control, timeline, keeper.clone())?;
        if let Some(keeper) = keeper {
            let (found, set_aside) = keeper.start(&endpoint.watchdog, options.watchdog.policy)?;
            tell_state(&endpoint, found, set_aside);
        }
        Ok(endpoint)
    }
}

/// What tells VMs apart: their control socket, or for want of one the watchdog's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum VmKey {
    Control(PathBuf),
    Socket(PathBuf),
}

impl VmKey {
    fn of(options: &EndpointOptions) -> Self {
        let ControlOptions { qmp, cloud_hypervisor, .. } = &options.control;
        let control = qmp.as_ref().or(cloud_hypervisor.as_ref());
        control.map_or_else(|| Self::Socket(options.socket.clone()), |path| Self::Control(path.clone()))
    }
}

fn control_of(options: &ControlOptions, vm: &Vm, commands: &Arc<Commands>) -> Control {
    let ControlOptions { qmp: _, cloud_hypervisor, poweroff, exec, dump_folder } = options.clone();
    match (exec, &vm.qmp, cloud_hypervisor) {
        (Some(command), _, _) => Control::Exec { command, commands: commands.clone() },
        (None, Some(qmp), _) => Control::Qmp { qmp: qmp.clone(), dump_folder },
        (None, None, Some(path)) => Control::CloudHypervisor(CloudHypervisor::new(path, poweroff)),
        (None, None, None) => Control::Nobody,
    }
}

fn tell_state(endpoint: &Endpoint, found: Option<Found>, set_aside: Option<SetAside>) {
    if let Some(Found { wdt_timeout, was_armed, was_pending }) = found {
        endpoint.record(What::Restored { wdt_timeout, was_armed });
        if was_pending {
            let message = "the last timeout before the server ended was not dealt with, and is not now".to_owned();
            endpoint.record(What::Log { level: "error".to_owned(), message });
        }
    }
    if let Some(SetAside { reason, path }) = set_aside {
        let message = format!("the state file was no state ({reason}) and is now {}", path.display());
        endpoint.record(What::Log { level: "error".to_owned(), message });
    }
}

/// Makes every socket, or takes it from the service manager, in the order of the options.
fn open_sockets(options: &ServeOptions) -> Result<Sockets, ServeError> {
    let mut inherited = service::inherited_sockets().map_err(ServeError::host("take the service manager's sockets"))?;
    let mut sockets = Vec::new();
    for EndpointOptions { socket, .. } in &options.endpoints {
        let (socket, file) = match service::take(&mut inherited, socket) {
            Some(listener) => Socket::inherited(listener).map_err(ServeError::host("take a socket"))?,
            None => Socket::bind(socket, options.socket_mode)?,
        };
        sockets.push((Some(socket), file));
    }
    match inherited.into_iter().next() {
        Some((path, _)) => Err(ServeError::SurplusSocket(path)),
        None => Ok(sockets),
    }
}

fn open_metrics(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|source| ServeError::Metrics { address, source })
}

/// The threads that serve.
struct Threads {
    stop: Arc<OwnedFd>,
    /// Hears of each serving thread that ends, and loses its last sender with the last one.
    ended: Receiver<()>,
    are_serving: bool,
    watchdogs: Vec<WatchdogThread>,
}

fn start(endpoints: &[Arc<Endpoint>], sockets: &mut Sockets) -> Result<Threads, ServeError> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let stop = Arc::new(stop.map_err(ServeError::host("create an eventfd"))?);
    let (end, ended): (Sender<()>, _) = channel();
    let mut watchdogs = Vec::new();
    for (endpoint, (socket, _)) in endpoints.iter().zip(sockets) {
        watchdogs.push(endpoint.watchdog.spawn()?);
        if let Some(socket) = socket.take() {
            server::spawn(endpoint.clone(), socket, stop.clone(), end.clone())
                .map_err(ServeError::host("start a thread"))?;
        }
    }
    Ok(Threads { stop, ended, are_serving: true, watchdogs })
}

impl Threads {
    /// Whether all is well. Once it is not it stays so, that the service manager may see to it.
    fn are_serving(&mut self) -> bool {
        self.are_serving &= self.ended.try_recv() == Err(TryRecvError::Empty);
        self.are_serving
    }

    fn stop(self) {
        if let Err(errno) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            ::log::error!("the serving threads cannot be stopped: {errno}");
        }
        let deadline = Instant::now() + LAST_WAIT;
        while self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        // An action that still waits for a VMM ends with the process, which does not wait for it.
        self.watchdogs.into_iter().for_each(std::mem::forget);
    }
}

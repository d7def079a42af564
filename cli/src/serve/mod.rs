//! `vm-watchdog serve`: watchdogs for VMs of other VMMs, over vfio-user.
//!
//! Each socket has a thread that serves its client ([`server`]), and each watchdog has a thread of the library that calls
//! its handler ([`endpoint`]). So a hostile VM cannot delay the watchdog of another one, and an action does not block the
//! socket that the VMM may need to perform the action. The protocol is in [`vm_watchdog_vfio_user`].

mod control;
mod device;
mod endpoint;
mod events;
mod metrics;
pub mod options;
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

use log::Level;
use rustix::event::{EventfdFlags, eventfd};
use vm_watchdog::{VmClock, WatchdogThread};
use vm_watchdog_timeline::{Format, LogLine, install_logger};

use crate::serve::control::Control;
use crate::serve::control::cloud_hypervisor::CloudHypervisor;
use crate::serve::control::exec::Commands;
use crate::serve::control::qmp::Qmp;
use crate::serve::endpoint::Endpoint;
use crate::serve::events::{Entry, Lines, ServerEvent, Timeline};
use crate::serve::options::{ControlOptions, EndpointOptions, ServeOptions};
use crate::serve::service::Signals;
use crate::serve::socket::{Socket, SocketError, SocketFile};
use crate::serve::state::{Found, SetAside, StateFileError, StateWriter};
use crate::serve::vm::Vm;

/// How long the end of the process waits for its threads.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum ServeError {
    /// A socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A state file cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The service manager passes a socket that no option names.
    #[error("the service manager passes the socket {}, which no --socket names", .0.display())]
    SurplusSocket(PathBuf),
    /// The address for the metrics cannot be used.
    #[error("metrics {address}: {source}")]
    Metrics { address: SocketAddr, source: io::Error },
    /// The library cannot build a watchdog.
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
    // If the start failed, commands may be running.
    commands.stop();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-watchdog: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: ServeOptions, commands: &Arc<Commands>) -> Result<(), ServeError> {
    let signals = Signals::catch().map_err(ServeError::host("catch signals"))?;
    service::raise_file_limit();
    let lines = events::open().map_err(ServeError::host("start a thread"))?;
    let output = Output { lines: lines.clone(), format: options.events };
    install_logger(Arc::new(output.timeline(VmClock::monotonic())));

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
        let event = ServerEvent::Metrics { address: address.to_string() };
        output.timeline(VmClock::monotonic()).record(Entry { id: "server".to_owned(), event });
    }
    for vm in vms.into_values() {
        if let Some(qmp) = &vm.qmp {
            qmp.listen(vm.clone()).map_err(ServeError::host("start a thread"))?;
        }
    }
    service::ready(endpoints.len());
    signals.wait(|| threads.are_serving());
    service::stopping();
    // While the VMMs are still served: a command may wait for one of them.
    commands.stop();
    threads.stop();
    for endpoint in &endpoints {
        endpoint.record(ServerEvent::Stopped);
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

    /// Builds a watchdog with its saved state, and its VM if it is the first watchdog of that VM.
    fn build(
        &self,
        options: &EndpointOptions,
        vms: &mut HashMap<VmKey, Arc<Vm>>,
        commands: &Arc<Commands>,
    ) -> Result<Arc<Endpoint>, ServeError> {
        let key = VmKey::of(options);
        let vm = vms
            .entry(key)
            .or_insert_with(|| Vm::new(options.control.qmp().map(|path| Qmp::new(path.to_owned()))))
            .clone();
        let control = control_of(&options.control, &vm, commands);
        let timeline = self.timeline(vm.clock.clone());
        let state = options.state.clone().map(StateWriter::new);
        let endpoint = Endpoint::build(options, vm, control, timeline, state.clone())?;
        if let Some(state) = state {
            let (found, set_aside) = state.start(&endpoint.watchdog, options.policy)?;
            record_state(&endpoint, found, set_aside);
        }
        Ok(endpoint)
    }
}

/// The identity of a VM: its control socket, or the socket of the watchdog if it has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum VmKey {
    Control(PathBuf),
    Socket(PathBuf),
}

impl VmKey {
    fn of(options: &EndpointOptions) -> Self {
        let control = options.control.socket();
        control.map_or_else(|| Self::Socket(options.socket.clone()), |path| Self::Control(path.to_owned()))
    }
}

fn control_of(options: &ControlOptions, vm: &Vm, commands: &Arc<Commands>) -> Control {
    match (options.clone(), &vm.qmp) {
        (ControlOptions::Exec { command, .. }, _) => Control::Exec { command, commands: commands.clone() },
        (ControlOptions::Qmp { dump_folder, .. }, Some(qmp)) => Control::Qmp { qmp: qmp.clone(), dump_folder },
        (ControlOptions::CloudHypervisor { path, poweroff }, _) => {
            Control::CloudHypervisor(CloudHypervisor::new(path, poweroff))
        }
        (ControlOptions::Qmp { .. } | ControlOptions::None, _) => Control::None,
    }
}

fn record_state(endpoint: &Endpoint, found: Option<Found>, set_aside: Option<SetAside>) {
    if let Some(Found { wdt_timeout, was_armed, was_pending }) = found {
        endpoint.record(ServerEvent::Restored { wdt_timeout, was_armed });
        if was_pending {
            let message = "the action of the last timeout before the server ended is not performed".to_owned();
            endpoint.record(ServerEvent::Log(LogLine::new(Level::Error, message)));
        }
    }
    if let Some(SetAside { reason, path }) = set_aside {
        let message = format!("the state file was invalid ({reason}) and is now {}", path.display());
        endpoint.record(ServerEvent::Log(LogLine::new(Level::Error, message)));
    }
}

/// Creates each socket, or takes it from the service manager, in the order of the options.
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
    /// Receives once from each serving thread that ends. Disconnected when all have ended.
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
    /// Whether every thread serves. Stays false once one has ended, so that the service manager restarts the server.
    fn are_serving(&mut self) -> bool {
        self.are_serving &= self.ended.try_recv() == Err(TryRecvError::Empty);
        self.are_serving
    }

    fn stop(self) {
        if let Err(errno) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            log::error!("the serving threads cannot be stopped: {errno}");
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        // The process does not wait for an action that still waits for a VMM.
        self.watchdogs.into_iter().for_each(std::mem::forget);
    }
}

//! `vm-watchdog serve`: the watchdogs of a VM of another VMM, over vfio-user.
//!
//! One process serves one VM, so that the kernel keeps VMs apart. Each socket has a thread that serves its client
//! ([`server`]), and each watchdog has a thread of the library that calls its handler ([`endpoint`]): an action does not
//! block the socket that the VMM may need to perform the action. The protocol is in [`vm_watchdog_vfio_user`].

pub mod control;
pub mod device;
mod endpoint;
mod events;
mod health;
pub mod helper;
mod last_action;
mod late;
mod lines;
mod locked_file;
mod metrics;
pub mod options;
mod peer;
mod progress;
mod restored;
mod sandbox;
mod server;
mod service;
mod socket;
mod state;
mod status;
mod vm;

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::Mode;
use vm_watchdog::{VmClock, WatchdogThread};
use vm_watchdog_probes::handlers::Resolve;
use vm_watchdog_timeline::{Format, LogLine, install_logger};
use vm_watchdog_vfio_user::Disposer;

use crate::exit;
use crate::serve::control::{Control, dumps};
use crate::serve::endpoint::Endpoint;
use crate::serve::events::{Entry, ServerEvent, Timeline};
use crate::serve::health::names::Names;
use crate::serve::health::{Health, HealthError};
use crate::serve::helper::messages::Subject;
use crate::serve::lines::Lines;
use crate::serve::metrics::Subjects;
use crate::serve::metrics::file::MetricsFile;
use crate::serve::options::{ControlOptions, DumpOptions, MetricsAddress, ServeOptions, WatchdogOptions};
use crate::serve::sandbox::mode::SandboxMode;
use crate::serve::sandbox::needs::Needs;
use crate::serve::sandbox::{InForce, Landlock, SandboxError};
use crate::serve::service::{FileLimitError, Signals};
use crate::serve::socket::{Socket, SocketError, SocketFile};
use crate::serve::state::{Found, Restored, SetAside, StateFileError, StateWriter};
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
    /// The file for the metrics cannot be used.
    #[error("metrics file {}: {source}", path.display())]
    MetricsFile { path: PathBuf, source: io::Error },
    /// The file for the events cannot be used.
    #[error("events file {}: {source}", path.display())]
    EventsFile { path: PathBuf, source: io::Error },
    /// The folder for the dumps cannot be looked at.
    #[error("dump folder {}: {source}", path.display())]
    DumpFolder { path: PathBuf, source: io::Error },
    /// Too few files may be open.
    #[error(transparent)]
    FileLimit(#[from] FileLimitError),
    /// The probes cannot be run.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The sandbox cannot be entered.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The process that runs the commands has ended, so that no action can be performed.
    #[error("{0}")]
    Helper(String),
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
    match try_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report(&error);
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: ServeOptions) -> Result<(), ServeError> {
    let signals = Signals::catch().map_err(ServeError::host("catch signals"))?;
    service::check_file_limit(options.watchdogs.len())?;
    let (lines, writer) =
        lines::open(options.events_file.clone(), options.events).map_err(|source| match &options.events_file {
            Some(path) => ServeError::EventsFile { path: path.clone(), source },
            None => ServeError::host("write events")(source),
        })?;
    let output = Output { lines: lines.clone(), format: options.events };
    install_logger(Arc::new(output.timeline(VmClock::monotonic())));

    if let ControlOptions::Qmp { dumps: Some(DumpOptions { folder, .. }), .. } = &options.control {
        dumps::check_folder(folder).map_err(|source| ServeError::DumpFolder { path: folder.clone(), source })?;
    }
    let mut sockets = open_sockets(&options)?;
    let metrics = options.metrics.clone().map(|address| open_metrics(address, options.socket_mode)).transpose()?;
    let metrics_file = options.metrics_file.clone().map(open_metrics_file).transpose()?;
    let state = options.state.clone().map(StateWriter::open).transpose()?;
    let names = Names::spawn(options.looks_up_names(), options.sandbox == SandboxMode::On);
    let names = names.map_err(ServeError::host("start the process that looks up names"))?;
    let control = Control::new(options.control.clone(), subjects(&options));
    let control = control.map_err(ServeError::host("start the process that runs commands"))?;

    let files = sockets.iter().map(|(_, file)| file).chain(metrics.iter().filter_map(|metrics| metrics.file.as_ref()));
    let needs = Needs::of(&options, files.filter_map(SocketFile::path));
    // Before the first thread, because the sandbox is that of a thread and of those that it starts.
    let is_root = rustix::process::geteuid().is_root();
    let InForce { seccomp, landlock } = sandbox::enter(options.sandbox, &needs)?;
    writer.start().map_err(ServeError::host("start a thread"))?;
    let Landlock { status: landlock, abi: landlock_abi } = landlock;
    let in_force = ServerEvent::Sandbox { seccomp, landlock, landlock_abi, is_root };
    output.timeline(VmClock::monotonic()).record(Entry::of_server(in_force));
    if is_root {
        output.warn("the server runs as root, and needs no more than the user of the VMM".to_owned());
    }
    names.listen().map_err(ServeError::host("start a thread"))?;
    let ender = signals.ender().map_err(ServeError::host("catch signals"))?;
    if let Some(helper) = control.helper() {
        let ended = move |_: &str| ender.end();
        helper.listen(ended).map_err(ServeError::host("start a thread"))?;
    }
    let vm = Vm::new(control, options.any_control_process, state, metrics_file);
    let mut endpoints = Vec::new();
    for options in &options.watchdogs {
        endpoints.push(Endpoint::build(options, vm.clone(), output.timeline(vm.clock.clone()))?);
    }
    let health = options
        .health
        .as_ref()
        .map(|health| Health::build(health, vm.clone(), endpoints.first().cloned(), output.timeline(vm.clock.clone())));
    let health = health.transpose()?;
    output.restore(&vm, &endpoints)?;
    let mut threads = start(&endpoints, &mut sockets)?;
    let subjects = Subjects {
        name: options.name,
        started: Instant::now(),
        started_at: SystemTime::now(),
        vm: vm.clone(),
        endpoints: endpoints.clone(),
        health: health.clone(),
    };
    let metrics = metrics.map(|Metrics { listener, address, file }| {
        metrics::http::spawn(listener, subjects.clone()).map(|()| (address, file))
    });
    let metrics = metrics.transpose().map_err(ServeError::host("start a thread"))?;
    if let Some(file) = &vm.metrics {
        let render = move || metrics::render(&subjects).map_err(io::Error::other);
        file.start(render).map_err(ServeError::host("write the metrics file"))?;
    }

    for endpoint in &endpoints {
        endpoint.listening();
    }
    if let Some((address, _)) = &metrics {
        let event = ServerEvent::Metrics { address: address.clone() };
        output.timeline(VmClock::monotonic()).record(Entry::of_server(event));
    }
    for warning in options.warnings {
        output.warn(warning);
    }
    let resolver: Arc<dyn Resolve> = Arc::new(names);
    if let Some((health, options)) = health.as_ref().zip(options.health.as_ref()) {
        threads.watchdogs.extend(health.start(options, &resolver)?);
    }
    if let Some(qmp) = vm.control.qmp() {
        qmp.listen(vm.clone()).map_err(ServeError::host("start a thread"))?;
    }
    service::ready(endpoints.len());
    signals.wait(|| threads.are_serving() && make_progress(&endpoints, health.as_deref()), || lines.reopen());
    service::stopping();
    let helper = vm.control.helper();
    let failure = helper.and_then(|helper| helper.failure());
    if let Some(helper) = helper {
        // While the VMMs are still served: a command may wait for one of them.
        helper.stop();
    }
    threads.stop();
    for endpoint in &endpoints {
        endpoint.record(ServerEvent::Stopped);
    }
    if let Some(file) = &vm.metrics {
        file.remove();
    }
    // Removes the socket files.
    drop((sockets, metrics));
    lines.finish();
    failure.map_or(Ok(()), |reason| Err(ServeError::Helper(reason)))
}

/// The watchdogs that a command may be run for, and what else times out.
fn subjects(options: &ServeOptions) -> Vec<Subject> {
    let watchdogs = options.watchdogs.iter().map(|watchdog| (watchdog.id.as_str(), watchdog.socket.as_os_str()));
    let first = options.watchdogs.first().map_or_else(Default::default, |watchdog| watchdog.socket.clone());
    let liveness = options.health.is_some().then_some((health::LIVENESS, first.as_os_str()));
    let subject = |(id, socket): (&str, &OsStr)| Subject { id: id.to_owned(), socket: socket.to_owned() };
    watchdogs.chain(liveness).map(subject).collect()
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

    /// Records a warning. The logger, which everything in this process uses, takes errors alone.
    fn warn(&self, message: String) {
        self.timeline(VmClock::monotonic()).record(LogLine::new(Level::Warn, message).into());
    }

    /// Restores what the state file has of the watchdogs, and keeps their states in it from now on.
    fn restore(&self, vm: &Vm, endpoints: &[Arc<Endpoint>]) -> Result<(), ServeError> {
        let Some(state) = &vm.state else {
            return Ok(());
        };
        let watchdogs = endpoints.iter().map(|endpoint| endpoint.watchdog.clone()).collect();
        let Restored { found, set_aside } = state.start(watchdogs)?;
        for endpoint in endpoints {
            if let Some(found) = found.get(endpoint.watchdog.id()) {
                record_state(endpoint, found);
            }
        }
        if let Some(SetAside { reason, path }) = set_aside {
            let message = format!("the state file was invalid ({reason}) and is now {}", path.display());
            self.timeline(vm.clock.clone()).record(LogLine::new(Level::Error, message).into());
        }
        Ok(())
    }
}

fn record_state(endpoint: &Endpoint, found: &Found) {
    let Found { wdt_timeout, was_armed, was_pending } = *found;
    endpoint.record(ServerEvent::Restored { wdt_timeout, was_armed });
    if was_pending {
        let message = "the action of the last timeout before the server ended is not performed".to_owned();
        endpoint.record(ServerEvent::Log(LogLine::new(Level::Error, message)));
    }
}

/// Creates each socket, or takes it from the service manager, in the order of the options.
fn open_sockets(options: &ServeOptions) -> Result<Sockets, ServeError> {
    let mut inherited = service::inherited_sockets().map_err(ServeError::host("take the service manager's sockets"))?;
    let mut sockets = Vec::new();
    for WatchdogOptions { socket, .. } in &options.watchdogs {
        let (socket, file) = match service::take(&mut inherited, socket) {
            Some(listener) => Socket::inherited(socket, listener)?,
            None => Socket::bind(socket, options.socket_mode)?,
        };
        sockets.push((Some(socket), file));
    }
    match inherited.into_iter().next() {
        Some((path, _)) => Err(ServeError::SurplusSocket(path)),
        None => Ok(sockets),
    }
}

/// A listener for scrapers.
struct Metrics {
    listener: OwnedFd,
    /// The address for people and for the event.
    address: String,
    /// Its file, if it is a Unix socket.
    file: Option<SocketFile>,
}

fn open_metrics(address: MetricsAddress, mode: Mode) -> Result<Metrics, ServeError> {
    match address {
        MetricsAddress::Tcp(address) => {
            let listener = || -> io::Result<Metrics> {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?.to_string();
                Ok(Metrics { listener: listener.into(), address, file: None })
            };
            listener().map_err(|source| ServeError::Metrics { address, source })
        }
        MetricsAddress::Unix(path) => {
            let (socket, file) = Socket::bind(&path, mode)?;
            let address = format!("unix:{}", path.display());
            Ok(Metrics { listener: socket.listener.into(), address, file: Some(file) })
        }
    }
}

fn open_metrics_file(path: PathBuf) -> Result<MetricsFile, ServeError> {
    MetricsFile::open(path.clone()).map_err(|source| ServeError::MetricsFile { path, source })
}

/// Whether every watchdog makes progress, and what acts on liveness failures.
fn make_progress(endpoints: &[Arc<Endpoint>], health: Option<&Health>) -> bool {
    // Asks all of them, because each reports its own stall.
    let stalled = endpoints.iter().filter(|endpoint| !endpoint.makes_progress()).count();
    health.is_none_or(Health::makes_progress) && stalled == 0
}

/// The threads that serve.
struct Threads {
    stop: Arc<OwnedFd>,
    /// Receives once from each serving thread that ends. Disconnected when all have ended, or if there is none.
    ended: Receiver<()>,
    are_serving: bool,
    /// The threads that act, also on a liveness failure.
    watchdogs: Vec<WatchdogThread>,
}

fn start(endpoints: &[Arc<Endpoint>], sockets: &mut Sockets) -> Result<Threads, ServeError> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let stop = Arc::new(stop.map_err(ServeError::host("create an eventfd"))?);
    let (end, ended): (Sender<()>, _) = channel();
    let disposer = Disposer::spawn().map_err(ServeError::host("start a thread"))?;
    let mut watchdogs = Vec::new();
    for (endpoint, (socket, _)) in endpoints.iter().zip(sockets) {
        watchdogs.push(endpoint.watchdog.spawn()?);
        if let Some(socket) = socket.take() {
            server::spawn(endpoint.clone(), socket, disposer.clone(), stop.clone(), end.clone())
                .map_err(ServeError::host("start a thread"))?;
        }
    }
    Ok(Threads { stop, ended, are_serving: true, watchdogs })
}

impl Threads {
    /// Whether every thread serves. Stays false once one has ended, so that the service manager restarts the server.
    fn are_serving(&mut self) -> bool {
        self.are_serving &= self.ended.try_recv().is_err();
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

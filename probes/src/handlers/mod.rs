//! The handlers: one blocking call an attempt, which ends when the probe's timeout does.
//!
//! The guest is hostile. Whatever it answers, an attempt ends not later than `timeoutSeconds` after it began, reads a
//! limited number of bytes, and keeps less than 100 KiB of them (TLS has buffers of its own, of about as much). Text of
//! the guest in a message is cut, and has no control characters.
//!
//! | what | limit |
//! |---|---|
//! | the attempt: names, connections, TLS, all redirects, the last byte | `timeoutSeconds` |
//! | the head of an HTTP response | 64 KiB, 256 headers; 5 responses of status 1xx before it |
//! | its body | 10 KiB are read, and the rest is not waited for |
//! | redirects | 10, to the same host; `Location` up to 8 KiB |
//! | the bytes of a connection, with TLS | 1 MiB |
//! | an answer of the guest agent | 64 MiB are read, as the output of a command may have; 64 KiB are kept |
//! | threads | one a prober, while a name is looked up; it outlives the attempt if the system's resolver is slow |
//!
//! # Failure or error
//!
//! What a guest can cause is a failure: no connection, no agent, no answer in time, an answer that is malformed. What
//! only the host can cause is an error: no descriptors, no memory, no permission, no such network interface.
//!
//! # A thread for each probe
//!
//! ```
//! use std::net::TcpListener;
//! use vm_watchdog_devices::VmInstant;
//! use vm_watchdog_probes::handlers::{Guest, Prober};
//! use vm_watchdog_probes::{Handler, Probe, ProbeKind, ProbeResult, Worker};
//!
//! # let listener = TcpListener::bind("127.0.0.1:0")?;
//! # let port = listener.local_addr()?.port();
//! let guest = Guest { address: Some("127.0.0.1".parse()?), agent: None };
//! let probe = Probe::new(Handler::TcpSocket { host: None, port });
//! let mut prober = Prober::new(ProbeKind::Readiness, &probe, &guest)?;
//! let mut worker = Worker::new(ProbeKind::Readiness, &probe)?;
//!
//! // The VM starts. From here on, a thread waits until `poll_at`, or until something happens to the VM.
//! let now = VmInstant::ZERO;
//! worker.vm_started(now);
//! if let Some(attempt) = worker.poll(now) {
//!     // Without any lock: the VM may be paused or reset meanwhile.
//!     let outcome = prober.attempt();
//!     let completed = worker.complete(now, attempt, outcome);
//!     let change = completed.change.expect("the first success");
//!     assert_eq!((change.result, change.cause.to_string().as_str()), (ProbeResult::Success, "1 success"));
//! }
//! assert_eq!(worker.result(), ProbeResult::Success);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod agent;
mod deadline;
mod fault;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
mod resolve;
mod tcp;
mod text;

use std::sync::Arc;
use std::time::Duration;

use crate::address::GuestAddress;
use crate::handlers::agent::exec;
use crate::handlers::deadline::Deadline;
use crate::handlers::http::HttpGet;
use crate::handlers::tcp::TcpSocket;
use crate::outcome::Outcome;
use crate::probe::{Handler, Probe, ProbeKind};
use crate::validation::InvalidProbe;

pub use crate::handlers::agent::GuestAgent;
pub use crate::handlers::resolve::Resolve;

/// Where a guest is reached.
///
/// ```
/// use std::sync::Arc;
/// use vm_watchdog_probes::handlers::{Guest, GuestAgent};
///
/// let agent = Arc::new(GuestAgent::new("/run/vm/qga.sock"));
/// let guest = Guest { address: Some("192.168.122.7".parse()?), agent: Some(agent) };
/// # drop(guest);
/// # Ok::<(), vm_watchdog_probes::InvalidAddress>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Its IP address, which `httpGet` and `tcpSocket` use where they have no `host`.
    pub address: Option<GuestAddress>,
    /// Its agent, which `exec` and `guestAgentPing` use. All probes of a VM share one.
    pub agent: Option<Arc<GuestAgent>>,
}

/// Runs the attempts of one probe.
///
/// ```
/// use std::net::TcpListener;
/// use vm_watchdog_probes::handlers::{Guest, Prober};
/// use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let address = listener.local_addr()?;
/// let guest = Guest { address: Some(address.ip().into()), agent: None };
///
/// let probe = Probe::new(Handler::TcpSocket { host: None, port: address.port() });
/// let mut prober = Prober::new(ProbeKind::Readiness, &probe, &guest)?;
/// assert_eq!(prober.attempt(), Outcome::Success);
///
/// drop(listener);
/// assert!(matches!(prober.attempt(), Outcome::Failure(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Prober {
    timeout: Duration,
    handler: Runner,
}

#[derive(Debug)]
enum Runner {
    HttpGet(Box<HttpGet>),
    TcpSocket(TcpSocket),
    Exec(Arc<GuestAgent>, Vec<String>),
    GuestAgentPing(Arc<GuestAgent>),
}

/// Why a [`Prober`] cannot be made.
///
/// ```
/// use vm_watchdog_probes::handlers::{Guest, Prober};
/// use vm_watchdog_probes::{Handler, Probe, ProbeKind};
///
/// let probe = Probe::new(Handler::GuestAgentPing);
/// let error = Prober::new(ProbeKind::Liveness, &probe, &Guest::default()).unwrap_err();
/// assert_eq!(error.to_string(), "guestAgentPing needs the socket of the guest agent");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProberError {
    /// A field of the probe is not accepted.
    #[error(transparent)]
    Probe(#[from] InvalidProbe),
    /// Neither the probe nor the guest has an address.
    #[error("{handler} needs a host, or the address of the guest")]
    NoAddress {
        /// The name of the handler.
        handler: &'static str,
    },
    /// The guest has no agent.
    #[error("{handler} needs the socket of the guest agent")]
    NoAgent {
        /// The name of the handler.
        handler: &'static str,
    },
}

impl Prober {
    /// A prober of this guest.
    ///
    /// # Errors
    ///
    /// The fields that [`Probe::checked`] does not accept; an address or agent that the handler needs and that is missing.
    pub fn new(kind: ProbeKind, probe: &Probe, guest: &Guest) -> Result<Self, ProberError> {
        let probe = probe.clone().checked(kind)?;
        let handler = probe.handler.name();
        let or_address = |host: Option<String>| {
            let host = host.or_else(|| guest.address.as_ref().map(GuestAddress::to_string));
            host.ok_or(ProberError::NoAddress { handler })
        };
        let agent = || guest.agent.clone().ok_or(ProberError::NoAgent { handler });
        let runner = match probe.handler {
            Handler::HttpGet { scheme, host, port, path, headers } => {
                Runner::HttpGet(Box::new(HttpGet::new(scheme, &or_address(host)?, port, &path, headers)))
            }
            Handler::TcpSocket { host, port } => Runner::TcpSocket(TcpSocket::new(&or_address(host)?, port)),
            Handler::Exec { command } => Runner::Exec(agent()?, command),
            Handler::GuestAgentPing => Runner::GuestAgentPing(agent()?),
        };
        Ok(Self { timeout: Duration::from_secs(probe.timeout_s.into()), handler: runner })
    }

    /// Looks up names by this resolver instead of that of the system.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        match &mut self.handler {
            Runner::HttpGet(get) => get.resolve_by(resolver),
            Runner::TcpSocket(socket) => socket.resolve_by(resolver),
            Runner::Exec(..) | Runner::GuestAgentPing(_) => {}
        }
        self
    }

    /// How long an attempt may take: `timeoutSeconds`.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs one attempt. Blocks for the [`timeout`](Self::timeout) at most, on the clock of the host.
    pub fn attempt(&mut self) -> Outcome {
        let deadline = Deadline::after(self.timeout);
        match &mut self.handler {
            Runner::HttpGet(get) => get.attempt(deadline),
            Runner::TcpSocket(socket) => socket.attempt(deadline),
            Runner::Exec(agent, command) => exec::run(agent, command, deadline),
            Runner::GuestAgentPing(agent) => agent.ping(deadline),
        }
    }
}

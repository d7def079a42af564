//! The QEMU guest agent on its Unix socket: commands and answers are lines of JSON (QEMU's `docs/interop/qemu-ga.rst` and
//! the schema of its commands).

pub mod connection;
pub mod exec;
mod line;

use std::io;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::handlers::agent::connection::Connection;
use crate::handlers::deadline::Deadline;
use crate::handlers::fault::outcome_of;
use crate::outcome::Outcome;

/// The guest agent of one VM, for all its probes.
///
/// QEMU serves one client at a time on the socket, so that probes share a connection and exchange commands in turn; a
/// command that runs for long blocks no other probe. The connection ends with the last attempt that uses it, and other
/// programs can use the agent between attempts. After a timeout or a malformed answer the next command has a new
/// connection, and each connection is synchronized before its first command, so that late answers are not mistaken.
///
/// ```
/// use std::sync::Arc;
/// use vm_watchdog_probes::handlers::{Guest, GuestAgent, Prober};
/// use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind};
///
/// let agent = Arc::new(GuestAgent::new("/nonexistent/qga.sock"));
/// let guest = Guest { address: None, agent: Some(agent) };
/// let mut prober = Prober::new(ProbeKind::Liveness, &Probe::new(Handler::GuestAgentPing), &guest)?;
/// // An agent that is not there is a failure.
/// assert!(matches!(prober.attempt(), Outcome::Failure(_)));
/// # Ok::<(), vm_watchdog_probes::handlers::ProberError>(())
/// ```
#[derive(Debug)]
pub struct GuestAgent {
    path: PathBuf,
    shared: Mutex<Shared>,
    /// Notified when the connection is free.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many attempts are under way.
    attempts: usize,
    in_use: bool,
    /// A connection that is synchronized, and has no answer outstanding.
    connection: Option<Connection>,
}

impl GuestAgent {
    /// The agent behind this socket. The socket need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), shared: Mutex::default(), freed: Condvar::new() }
    }

    /// `guestAgentPing`.
    pub(super) fn ping(&self, deadline: Deadline) -> Outcome {
        let answer = self.attempt(deadline).call("guest-ping", json!({}));
        answer.map_or_else(|error| self.outcome_of("guest agent probe failed", &error), ping_outcome)
    }

    fn attempt(&self, deadline: Deadline) -> AgentAttempt<'_> {
        self.lock().attempts += 1;
        AgentAttempt { agent: self, deadline }
    }

    fn outcome_of(&self, context: &str, error: &io::Error) -> Outcome {
        outcome_of(&format!("{context}: guest agent {}", self.path.display()), error)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the answer to `guest-ping` means.
pub fn ping_outcome(answer: Result<IgnoredAny, String>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Success,
        Err(refusal) => Outcome::Failure(format!("guest agent probe failed: guest-ping: {refusal}")),
    }
}

/// An attempt that uses the agent: the last one closes the connection.
struct AgentAttempt<'a> {
    agent: &'a GuestAgent,
    deadline: Deadline,
}

impl AgentAttempt<'_> {
    /// The agent's answer to a command; its refusal as text.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    fn call<T: DeserializeOwned>(&self, command: &str, arguments: Value) -> io::Result<Result<T, String>> {
        let mut turn = self.take_turn()?;
        let mut connection = match turn.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.agent.path, self.deadline)?,
        };
        let answer = connection.call(command, arguments, self.deadline)?;
        // A connection that has failed is dropped.
        turn.connection = Some(connection);
        Ok(answer)
    }

    fn take_turn(&self) -> io::Result<Turn<'_>> {
        let mut shared = self.agent.lock();
        while shared.in_use {
            let waited = self.agent.freed.wait_timeout(shared, self.deadline.left()?);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        shared.in_use = true;
        let connection = shared.connection.take();
        Ok(Turn { agent: self.agent, connection })
    }
}

impl Drop for AgentAttempt<'_> {
    fn drop(&mut self) {
        let mut shared = self.agent.lock();
        shared.attempts -= 1;
        if shared.attempts == 0 {
            shared.connection = None;
        }
    }
}

/// The use of the connection for one command.
struct Turn<'a> {
    agent: &'a GuestAgent,
    connection: Option<Connection>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut shared = self.agent.lock();
        shared.in_use = false;
        shared.connection = self.connection.take();
        self.agent.freed.notify_one();
    }
}

//! Processes beside the server that do what its sandbox forbids: run the command of the operator, and look up names.
//!
//! A helper is this program, started anew before the sandbox. The server and a helper are at the two ends of a socket. When the server ends,
//! in whatever way, the helper ends what it has started and itself. A helper that ends first cannot be started again.

pub mod commands;
mod frames;
pub mod messages;
mod names;
pub mod process;

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::serve::helper::messages::{Answer, Request, Setup};

/// The command of this program that is a helper.
pub const COMMAND: &str = "helper";
/// How long a helper may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of the server waits for a helper: a little longer than for the commands.
const STOP_TIMEOUT: Duration = commands::STOP_TIMEOUT.saturating_mul(3);
/// The stack of the thread that receives the answers.
const STACK: usize = 256 << 10;

/// A helper, from the side of the server.
#[derive(Debug)]
pub struct Helper {
    /// What it does, for people.
    task: &'static str,
    socket: UnixStream,
    /// Locked while a request is written.
    turn: Mutex<()>,
    /// `None` once a thread waits for its end.
    child: Mutex<Option<Child>>,
    state: Mutex<State>,
    /// Signalled when there is an answer, or the helper has ended.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// The requests under way, and their answers.
    answers: HashMap<u64, Option<Result<Value, String>>>,
    is_stopping: bool,
    /// Why there are no more answers.
    ended: Option<String>,
}

/// Why a helper has not done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// It has tried.
    #[error("{0}")]
    Failed(String),
    /// It has ended.
    #[error("{0}")]
    Ended(String),
}

impl Helper {
    /// Starts a helper, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// The error of the host, or that of a helper that has ended with a message of its own.
    pub fn spawn(setup: &Setup) -> io::Result<Arc<Self>> {
        let task = match setup {
            Setup::Commands { .. } => "runs commands",
            Setup::Names { .. } => "looks up names",
        };
        let (socket, of_helper) = UnixStream::pair()?;
        // The file of this process, also if an upgrade has replaced it.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vm-watchdog").arg(COMMAND).stdin(OwnedFd::from(of_helper)).stdout(Stdio::null());
        // What the service manager tells the server is neither for the helper nor for its commands.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        let child = Mutex::new(Some(command.spawn()?));
        frames::write(&socket, setup)?;
        // From then on, signals for the server do not end it.
        socket.set_read_timeout(Some(START_TIMEOUT))?;
        frames::read::<()>(&socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        socket.set_read_timeout(None)?;
        let (turn, state, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        Ok(Arc::new(Self { task, socket, turn, child, state, changed }))
    }

    /// Receives its answers on a thread of its own, which calls `ended` with the reason if the helper ends unasked.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start a thread.
    pub fn listen(self: &Arc<Self>, ended: impl FnOnce(&str) + Send + 'static) -> io::Result<()> {
        let helper = self.clone();
        let listen = move || {
            let received = helper.receive();
            let reason = helper.wait(received);
            let mut state = helper.state();
            state.ended = Some(reason.clone());
            let is_stopping = state.is_stopping;
            drop(state);
            helper.changed.notify_all();
            if !is_stopping {
                ended(&reason);
            }
        };
        thread::Builder::new().name("helper".into()).stack_size(STACK).spawn(listen)?;
        Ok(())
    }

    /// Asks the helper, and waits for its answer.
    ///
    /// # Errors
    ///
    /// Why it has not done it.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(&self, body: Q) -> Result<A, HelperError> {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.answers.insert(number, None);
        drop(state);
        let sent = {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            frames::write(&self.socket, &Request { number, body })
        };
        let mut state = self.state();
        if let Err(error) = sent {
            state.answers.remove(&number);
            let reason = state.ended.clone();
            return Err(HelperError::Ended(reason.unwrap_or_else(|| self.in_words(&error.to_string()))));
        }
        let has_no_answer = |state: &mut State| {
            state.ended.is_none() && state.answers.get(&number).is_some_and(|answer| answer.is_none())
        };
        state = self.changed.wait_while(state, has_no_answer).unwrap_or_else(PoisonError::into_inner);
        match state.answers.remove(&number).flatten() {
            Some(Ok(value)) => serde_json::from_value(value).map_err(|error| HelperError::Failed(error.to_string())),
            Some(Err(reason)) => Err(HelperError::Failed(reason)),
            None => Err(HelperError::Ended(state.ended.clone().unwrap_or_default())),
        }
    }

    /// Why it has ended, unless it was asked to or runs.
    pub fn failure(&self) -> Option<String> {
        let state = self.state();
        state.ended.clone().filter(|_| !state.is_stopping)
    }

    /// Has the helper end what it has started and itself, and waits for that with a limit.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_stopping = true;
        // It fails if the helper has ended.
        let _ = self.socket.shutdown(Shutdown::Write);
        let runs = |state: &mut State| state.ended.is_none();
        drop(self.changed.wait_timeout_while(state, STOP_TIMEOUT, runs));
    }

    /// Receives answers until there are no more, and returns why.
    fn receive(&self) -> io::Result<()> {
        while let Some(Answer { number, outcome }) = frames::read(&self.socket)? {
            // One that is not under way is left out: it would stay for ever.
            if let Some(answer) = self.state().answers.get_mut(&number) {
                *answer = Some(outcome);
            }
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Waits for the end of the process, and returns in words why there are no more answers.
    fn wait(&self, received: io::Result<()>) -> String {
        if let Err(error) = received {
            // It does not end by itself.
            let _ = self.socket.shutdown(Shutdown::Both);
            return self.in_words(&error.to_string());
        }
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        match child.map(|mut child| child.wait()) {
            Some(Ok(status)) => self.in_words(&status.to_string()),
            Some(Err(error)) => self.in_words(&error.to_string()),
            None => self.in_words("it was not started"),
        }
    }

    fn in_words(&self, reason: &str) -> String {
        format!("the process that {} has ended: {reason}", self.task)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What the server and its helpers say to each other.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};
use vm_watchdog_timeline::Expiry;

/// The first message to a helper, before the server is in its sandbox: all that the helper will ever do. What comes later
/// may be from a server that a client has taken over, and can neither change the command nor name another watchdog.
#[derive(Debug, Serialize, Deserialize)]
pub enum Setup {
    /// Run this command for these watchdogs.
    Commands { command: String, watchdogs: Vec<Subject> },
    /// Look up the addresses of hosts.
    Names { is_sandboxed: bool },
}

/// A watchdog, as a command is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub id: String,
    pub socket: OsString,
}

/// A request to a helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request<T> {
    pub number: u64,
    pub body: T,
}

/// The answer to the request with this number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer<T> {
    pub number: u64,
    pub outcome: Result<T, String>,
}

/// Runs the command.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// The place of the watchdog in the list of [`Setup::Commands`].
    pub watchdog: usize,
    pub expiry: Expiry,
}

/// Looks up the addresses of a host. The answer is a list of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct LookUp {
    pub name: String,
}

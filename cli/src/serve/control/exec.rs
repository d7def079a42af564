//! Actions performed by a command of the operator. A helper runs it, outside the sandbox of the server.

use std::io;
use std::path::Path;
use std::sync::Arc;

use vm_watchdog::{Event, HandlerError};

use crate::serve::helper::Helper;
use crate::serve::helper::messages::{Run, Setup, Subject};

pub use crate::serve::helper::commands::COMMAND_TIMEOUT;

/// The command, and the helper that runs it.
pub struct Exec {
    pub helper: Arc<Helper>,
    watchdogs: Vec<Subject>,
}

impl Exec {
    /// Starts the helper that runs `command` for these watchdogs, and for no others.
    ///
    /// # Errors
    ///
    /// The error of the host.
    pub fn spawn(command: &str, watchdogs: Vec<Subject>) -> io::Result<Self> {
        let setup = Setup::Commands { command: command.to_owned(), watchdogs: watchdogs.clone() };
        Ok(Self { helper: Helper::spawn(&setup)?, watchdogs })
    }

    /// Runs the command and waits for it.
    ///
    /// # Errors
    ///
    /// Why it did not run, or its status if that is not 0.
    pub fn perform(&self, event: &Event, socket: &Path) -> Result<(), HandlerError> {
        let is_it = |watchdog: &Subject| *watchdog.id == *event.id && watchdog.socket == socket.as_os_str();
        let watchdog = self.watchdogs.iter().position(is_it).ok_or("the command has no such watchdog")?;
        Ok(self.helper.ask(Run { watchdog, expiry: event.into() })?)
    }
}

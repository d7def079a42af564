//! The resolver of the probes: a helper, because that of the system does not run in the sandbox.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use vm_watchdog_probes::handlers::Resolve;

use crate::serve::helper::messages::{LookUp, Setup};
use crate::serve::helper::{Helper, HelperError};

/// Looks up names by a helper, if there is one.
#[derive(Clone, Debug)]
pub struct Names(Option<Arc<Helper>>);

impl Names {
    /// Starts the helper if names `are_needed`.
    ///
    /// # Errors
    ///
    /// The error of the host.
    pub fn spawn(are_needed: bool, is_sandboxed: bool) -> io::Result<Self> {
        let helper = are_needed.then(|| Helper::spawn(&Setup::Names { is_sandboxed }));
        Ok(Self(helper.transpose()?))
    }

    /// Receives the addresses from now on.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start a thread.
    pub fn listen(&self) -> io::Result<()> {
        let ended = |reason: &str| log::error!("{reason}: probes that need it have errors");
        self.0.as_ref().map_or(Ok(()), |helper| helper.listen(ended))
    }
}

impl Resolve for Names {
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let unsupported = |reason: String| io::Error::new(io::ErrorKind::Unsupported, reason);
        let helper = self.0.as_ref().ok_or_else(|| unsupported("no process looks up names".to_owned()))?;
        helper.ask(LookUp { name: name.to_owned() }).map_err(|error| match error {
            HelperError::Failed(reason) => io::Error::other(reason),
            HelperError::Ended(reason) => unsupported(reason),
        })
    }
}

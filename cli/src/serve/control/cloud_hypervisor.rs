//! Cloud Hypervisor's HTTP API on its socket: a PUT without a body, and any 2xx is success. One fixed request does not need
//! an HTTP client; `httparse` parses the answer.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_watchdog::{Action, HandlerError};

use crate::serve::control::connect::connect;
use crate::serve::peer::{Owner, Peer};

/// How long a call may take. A reboot answers once the new VM is there.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of an answer is read: its header has to end before.
pub const LONGEST_ANSWER: usize = 16 << 10;
/// How many header lines an answer may have.
const MOST_HEADERS: usize = 32;

/// The API of one Cloud Hypervisor.
pub struct CloudHypervisor {
    path: PathBuf,
    /// The call that ends the VM.
    poweroff: String,
}

impl CloudHypervisor {
    /// The API at this socket. `poweroff` is the call that ends the VM.
    pub fn new(path: PathBuf, poweroff: String) -> Self {
        Self { path, poweroff }
    }

    /// The socket in words, and the process behind it if it can be connected.
    pub fn process(&self) -> Option<(String, Arc<Peer>)> {
        let peer = Peer::of(&connect(&self.path).ok()?);
        Some((format!("Cloud Hypervisor {}", self.path.display()), Arc::new(peer)))
    }

    /// Performs an action. The socket has to belong to `owner`.
    ///
    /// # Errors
    ///
    /// The error of the API, or why it was not asked or did not answer.
    pub fn perform(&self, action: Action, owner: &Owner) -> Result<(), HandlerError> {
        let call = match action {
            Action::Reset => "vm.reboot",
            Action::Shutdown => "vm.power-button",
            Action::Poweroff => &self.poweroff,
            Action::Pause => "vm.pause",
            Action::InjectNmi => "vm.nmi",
            _ => return Err(format!("Cloud Hypervisor has no action {action}").into()),
        };
        let answer = self.put(call, owner);
        let answer = answer.map_err(|error| format!("Cloud Hypervisor {}: {call}: {error}", self.path.display()))?;
        Ok(outcome(call, answer)?)
    }

    /// The status of the answer, None if the connection ends without one.
    fn put(&self, call: &str, owner: &Owner) -> io::Result<Option<u16>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut stream = connect(&self.path)?;
        owner.check(&Peer::of(&stream)).map_err(io::Error::other)?;
        let request =
            format!("PUT /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Answer::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER_TIMEOUT:?}")));
            }
            stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 1024];
            let count = match stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            };
            if let Some(status) = answer.receive(&bytes[..count])? {
                return Ok(Some(status));
            }
        }
    }
}

/// Whether a call was performed: its status, or `None` if the connection has ended without one.
pub fn outcome(call: &str, status: Option<u16>) -> Result<(), String> {
    match status {
        Some(200..300) => Ok(()),
        // After `vmm.shutdown` the process ends. Its vfio-user connection ends too, which drops the retry.
        None => Err(format!("Cloud Hypervisor has closed the connection instead of answering {call}")),
        Some(status) => Err(format!("Cloud Hypervisor refuses {call}: status {status}")),
    }
}

/// The bytes of an answer so far.
#[derive(Default)]
pub struct Answer(Vec<u8>);

impl Answer {
    /// Receives more of the answer, and returns its status once the header is complete.
    ///
    /// # Errors
    ///
    /// It is no HTTP, or its header is too long.
    pub fn receive(&mut self, bytes: &[u8]) -> io::Result<Option<u16>> {
        self.0.extend(bytes);
        let status = status(&self.0)?;
        if status.is_none() && self.0.len() > LONGEST_ANSWER {
            let message = format!("the header of the answer is longer than {LONGEST_ANSWER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(status)
    }
}

/// The status, once the header is complete. The body is not needed.
fn status(answer: &[u8]) -> io::Result<Option<u16>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(_)) => Ok(response.code),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

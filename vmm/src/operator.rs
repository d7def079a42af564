//! The operator's signals: SIGUSR1 pauses the VM, and saves it if there is a file for that; SIGUSR2 resumes it.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use signal_hook::consts::{SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;

/// What the operator requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorRequest {
    /// Pause the VM and save it.
    Pause,
    /// Resume the VM.
    Resume,
}

/// Receives the signals in the event loop of the main thread.
pub struct OperatorSignals {
    /// The socket that each signal writes to.
    sockets: [(UnixStream, OperatorRequest); 2],
    requests: Sender<OperatorRequest>,
}

impl OperatorSignals {
    /// Catches the signals. From now on they become requests.
    pub fn new(requests: Sender<OperatorRequest>) -> io::Result<Self> {
        let sockets = [(catch(SIGUSR1)?, OperatorRequest::Pause), (catch(SIGUSR2)?, OperatorRequest::Resume)];
        Ok(Self { sockets, requests })
    }
}

/// A socket that is readable after this signal.
fn catch(signal: i32) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    pipe::register(signal, sender)?;
    Ok(receiver)
}

impl MutEventSubscriber for OperatorSignals {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        for (socket, request) in &mut self.sockets {
            // Signals that arrive together are one request.
            if socket.as_raw_fd() == events.fd() && matches!(socket.read(&mut [0; 64]), Ok(1..)) {
                // The main loop, which called this function, owns the receiver.
                let _ = self.requests.send(*request);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (socket, request) in &self.sockets {
            if let Err(error) = ops.add(Events::new_raw(socket.as_raw_fd(), EventSet::IN)) {
                log::error!("the signal for {request:?} is ignored: {error}");
            }
        }
    }
}

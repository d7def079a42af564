//! MSI over vfio-user: one message, for which the client has an eventfd.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::eventfd::ClientEventfd;
use crate::signaller::Signaller;

/// The interrupt message of a device as VFIO has it: an eventfd that is signalled once for each message.
///
/// The client reads address and data from the capability in configuration space, and programs its VM's interrupt
/// controller with them. It may connect its eventfd just after the guest has enabled the capability: a message that is
/// sent in between is signalled then.
///
/// A thread of its own writes to the eventfd, because the client can make such a write wait. It starts with the first
/// message. No call waits for it.
#[derive(Debug, Default)]
pub struct Msi {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    signaller: Signaller,
    /// A message was sent while no eventfd was connected.
    is_pending: bool,
}

impl Msi {
    /// Sends the message.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if four threads still wait for clients to read eventfds that they have
    /// replaced; the error of the host if it gives no thread. A later call sends the message.
    pub fn send(&self) -> io::Result<()> {
        let mut state = self.state();
        state.is_pending = true;
        state.sync()
    }

    /// Signals `eventfd` from now on. `None` disconnects the message, and one that is pending is dropped.
    pub(crate) fn connect(&self, eventfd: Option<ClientEventfd>) -> io::Result<()> {
        let mut state = self.state();
        state.is_pending &= eventfd.is_some();
        state.signaller.connect(eventfd);
        state.sync()
    }

    /// Signals without a message. Clients may ask for it as a test.
    pub(crate) fn trigger(&self) -> io::Result<()> {
        self.state().signaller.signal()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sync(&mut self) -> io::Result<()> {
        if self.is_pending && self.signaller.is_connected() {
            self.signaller.signal()?;
            self.is_pending = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd::{await_signals, signals};
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn each_message_is_one_signal() {
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let message = Msi::default();
        message.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        assert_eq!(signals(&client), 0);
        message.send().unwrap();
        message.send().unwrap();
        await_signals(&client, 2);
        message.trigger().unwrap();
        await_signals(&client, 1);
        message.connect(None).unwrap();
        message.trigger().unwrap();
        assert_eq!(signals(&client), 0);
    }

    #[test]
    fn a_message_before_the_eventfd_is_signalled_when_it_is_connected_and_not_after_a_disconnection() {
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let message = Msi::default();
        message.send().unwrap();
        message.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        await_signals(&client, 1);
        message.connect(None).unwrap();
        message.send().unwrap();
        message.connect(None).unwrap();
        message.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        assert_eq!(signals(&client), 0);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(ClientEventfd::new(socket.into()).is_err());
    }
}

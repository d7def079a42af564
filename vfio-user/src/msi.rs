//! MSI over vfio-user: one message, for which the client has an eventfd.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::eventfd::ClientEventfd;

/// The interrupt message of a device as VFIO has it: an eventfd that is signalled once for each message.
///
/// The client reads address and data from the capability in configuration space, and programs its VM's interrupt
/// controller with them. It may connect its eventfd just after the guest has enabled the capability: a message that is
/// sent in between is signalled then.
#[derive(Debug, Default)]
pub struct Msi {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    eventfd: Option<ClientEventfd>,
    /// A message was sent while no eventfd was connected.
    is_pending: bool,
}

impl Msi {
    /// Sends the message.
    ///
    /// # Errors
    ///
    /// The error of the client's eventfd.
    pub fn send(&self) -> Result<(), Errno> {
        let mut state = self.state();
        state.is_pending = true;
        state.sync()
    }

    /// Signals `eventfd` from now on. `None` disconnects the message, and one that is pending is dropped.
    ///
    /// # Errors
    ///
    /// EINVAL if it is no eventfd.
    pub(crate) fn connect(&self, eventfd: Option<ClientEventfd>) -> Result<(), Errno> {
        let mut state = self.state();
        state.is_pending &= eventfd.is_some();
        state.eventfd = eventfd;
        state.sync()
    }

    /// Signals without a message. Clients may ask for it as a test.
    pub(crate) fn trigger(&self) -> Result<(), Errno> {
        self.state().eventfd.as_ref().map_or(Ok(()), ClientEventfd::signal)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sync(&mut self) -> Result<(), Errno> {
        if let Some(eventfd) = self.eventfd.as_ref().filter(|_| self.is_pending) {
            eventfd.signal()?;
            self.is_pending = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd::signals;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn each_message_is_one_signal() {
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let message = Msi::default();
        message.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        assert_eq!(signals(&client), 0);
        message.send().unwrap();
        message.send().unwrap();
        assert_eq!(signals(&client), 2);
        message.trigger().unwrap();
        assert_eq!(signals(&client), 1);
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
        assert_eq!(signals(&client), 1);
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

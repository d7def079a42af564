//! INTx over vfio-user: a level-triggered line that signals an eventfd once, until the client unmasks it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::eventfd::ClientEventfd;

/// The interrupt line of a device as VFIO has it: level triggered and automasked.
///
/// When the line rises the client's eventfd is signalled and the line masked. The client lowers its copy of the line at
/// the guest's next access and unmasks it; if it is still asserted the eventfd is signalled again.
#[derive(Debug, Default)]
pub struct Intx {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The eventfd of the client.
    eventfd: Option<ClientEventfd>,
    masked: bool,
    asserted: bool,
}

impl Intx {
    /// Sets the level of the line.
    ///
    /// # Errors
    ///
    /// The error of the client's eventfd.
    pub fn set_level(&self, high: bool) -> Result<(), Errno> {
        let mut state = self.state();
        state.asserted = high;
        state.sync()
    }

    /// Signals `eventfd` from now on; `None` disconnects the line. The line is no longer masked.
    ///
    /// # Errors
    ///
    /// The error of the client's eventfd.
    pub(crate) fn connect(&self, eventfd: Option<ClientEventfd>) -> Result<(), Errno> {
        let mut state = self.state();
        state.eventfd = eventfd;
        state.masked = false;
        state.sync()
    }

    pub(crate) fn mask(&self) {
        self.state().masked = true;
    }

    pub(crate) fn unmask(&self) -> Result<(), Errno> {
        let mut state = self.state();
        state.masked = false;
        state.sync()
    }

    /// Signals whatever the level is. Clients may ask for it as a test.
    pub(crate) fn trigger(&self) -> Result<(), Errno> {
        self.state().signal()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Signals the eventfd if the line is asserted and not masked, and masks the line.
    fn sync(&mut self) -> Result<(), Errno> {
        if self.asserted && !self.masked && self.eventfd.is_some() {
            self.masked = true;
            return self.signal();
        }
        Ok(())
    }

    fn signal(&self) -> Result<(), Errno> {
        self.eventfd.as_ref().map_or(Ok(()), ClientEventfd::signal)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::eventfd::signals;
    use rustix::event::{EventfdFlags, eventfd};

    /// A connected line, and the client's end.
    fn connected() -> (Intx, OwnedFd) {
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let line = Intx::default();
        line.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        (line, client)
    }

    #[test]
    fn a_line_signals_once_until_it_is_unmasked() {
        let (line, client) = connected();
        line.set_level(true).unwrap();
        line.set_level(true).unwrap();
        assert_eq!(signals(&client), 1);
        line.unmask().unwrap();
        assert_eq!(signals(&client), 1, "it is still asserted");
        line.set_level(false).unwrap();
        line.unmask().unwrap();
        assert_eq!(signals(&client), 0);
        line.set_level(true).unwrap();
        assert_eq!(signals(&client), 1);
    }

    #[test]
    fn a_masked_line_waits_for_the_unmask() {
        let (line, client) = connected();
        line.mask();
        line.set_level(true).unwrap();
        assert_eq!(signals(&client), 0);
        line.unmask().unwrap();
        assert_eq!(signals(&client), 1);
    }

    #[test]
    fn a_line_that_is_asserted_when_the_client_connects_signals_at_once() {
        let line = Intx::default();
        line.set_level(true).unwrap();
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        line.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        assert_eq!(signals(&client), 1);
        line.connect(None).unwrap();
        line.unmask().unwrap();
        line.trigger().unwrap();
        assert_eq!(signals(&client), 0);
    }

    #[test]
    fn other_descriptors_are_refused_and_a_full_eventfd_does_not_block() {
        let line = Intx::default();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(ClientEventfd::new(socket.into()).is_err());

        let blocking = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&blocking, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        line.connect(Some(ClientEventfd::new(blocking).unwrap())).unwrap();
        assert_eq!(line.set_level(true), Ok(()));
    }
}

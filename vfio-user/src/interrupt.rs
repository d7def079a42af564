//! INTx over vfio-user: a level-triggered line that signals an eventfd once, until the client unmasks it.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::eventfd::ClientEventfd;
use crate::signaller::Signaller;

/// The interrupt line of a device as VFIO has it: level triggered and automasked.
///
/// When the line rises the client's eventfd is signalled and the line masked. The client lowers its copy of the line at
/// the guest's next access and unmasks it; if it is still asserted the eventfd is signalled again.
///
/// A thread of its own writes to the eventfd, because the client can make such a write wait. It starts with the first
/// signal. No call waits for it.
#[derive(Debug, Default)]
pub struct Intx {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    signaller: Signaller,
    masked: bool,
    asserted: bool,
}

impl Intx {
    /// Sets the level of the line.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if four threads still wait for clients to read eventfds that they have
    /// replaced; the error of the host if it gives no thread. The line is set, and the eventfd signalled by a later call.
    pub fn set_level(&self, high: bool) -> io::Result<()> {
        let mut state = self.state();
        state.asserted = high;
        state.sync()
    }

    /// Signals `eventfd` from now on; `None` disconnects the line. The line is no longer masked.
    pub(crate) fn connect(&self, eventfd: Option<ClientEventfd>) -> io::Result<()> {
        let mut state = self.state();
        state.signaller.connect(eventfd);
        state.masked = false;
        state.sync()
    }

    pub(crate) fn mask(&self) {
        self.state().masked = true;
    }

    pub(crate) fn unmask(&self) -> io::Result<()> {
        let mut state = self.state();
        state.masked = false;
        state.sync()
    }

    /// Signals whatever the level is. Clients may ask for it as a test.
    pub(crate) fn trigger(&self) -> io::Result<()> {
        self.state().signaller.signal()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Signals the eventfd if the line is asserted and not masked, and masks the line.
    fn sync(&mut self) -> io::Result<()> {
        if self.asserted && !self.masked && self.signaller.is_connected() {
            self.signaller.signal()?;
            self.masked = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::eventfd::{await_signals, signals};
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
        await_signals(&client, 1);
        // It is still asserted.
        line.unmask().unwrap();
        await_signals(&client, 1);
        line.set_level(false).unwrap();
        line.unmask().unwrap();
        line.set_level(true).unwrap();
        await_signals(&client, 1);
    }

    #[test]
    fn a_masked_line_waits_for_the_unmask() {
        let (line, client) = connected();
        line.mask();
        line.set_level(true).unwrap();
        assert_eq!(signals(&client), 0);
        line.unmask().unwrap();
        await_signals(&client, 1);
    }

    #[test]
    fn a_line_that_is_asserted_when_the_client_connects_signals_at_once() {
        let line = Intx::default();
        line.set_level(true).unwrap();
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        line.connect(Some(ClientEventfd::new(client.try_clone().unwrap()).unwrap())).unwrap();
        await_signals(&client, 1);
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
        line.set_level(true).unwrap();
    }
}

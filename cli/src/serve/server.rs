//! The thread that serves one socket: one client at a time, until the server stops.
//!
//! One poll() covers all descriptors of the thread. It closes no descriptor that a client has sent, because that may block:
//! a [`Disposer`] does. Nor does it write to the eventfd of an interrupt: the interrupt has a thread for that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vm_watchdog_vfio_user::{CloseReason, Connection, Disposer, Next, Session, refuse};

use crate::serve::device::WatchdogDevice;
use crate::serve::endpoint::Endpoint;
use crate::serve::peer::Peer;
use crate::serve::socket::Socket;

/// How many surplus clients are connected at the same time.
const MOST_SURPLUS_CLIENTS: usize = 4;
/// How long a surplus client waits for the current client to disconnect, and how long the current one has to agree on the
/// version while another client waits. When a VMM reconnects, its new connection may arrive before the end of the old one,
/// as when it has just forked.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a surplus client has, after that, to send a message that can be refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The delay before the next accept after the host refused one.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);
/// The stack of a serving thread, which has no deep calls and no large variables.
const STACK: usize = 256 << 10;

/// Serves `socket` until `stop` is readable, and then sends to `end`.
///
/// # Errors
///
/// The error of the host if it cannot start a thread.
pub fn spawn(
    endpoint: Arc<Endpoint>,
    socket: Socket,
    disposer: Disposer,
    stop: Arc<OwnedFd>,
    end: Sender<()>,
) -> io::Result<()> {
    let mut server = Server { endpoint, socket, disposer, client: None, surplus: Vec::new(), accept_again: None };
    let name = format!("serve {}", server.endpoint.watchdog.id()).replace('\0', "?");
    thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
        let _end = End(end);
        server.run(&stop);
    })?;
    Ok(())
}

/// Sends when it is dropped, so that the end of the thread is noticed even after a panic.
struct End(Sender<()>);

impl Drop for End {
    fn drop(&mut self) {
        if let Err(error) = self.0.send(()) {
            log::debug!("the end of a serving thread is not awaited: {error}");
        }
    }
}

struct Server {
    endpoint: Arc<Endpoint>,
    socket: Socket,
    disposer: Disposer,
    client: Option<Client>,
    surplus: Vec<SurplusClient>,
    /// When clients are accepted again.
    accept_again: Option<Instant>,
}

/// What poll() has found. The clients are asked in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The server stops.
    Stop,
    /// A client wants to connect.
    Arrival,
    Other,
}

struct Client {
    connection: Connection,
    peer: Arc<Peer>,
    session: Session<WatchdogDevice>,
    since: Instant,
}

/// A client that connects while another one is connected. It takes over when that one disconnects, or is refused.
struct SurplusClient {
    connection: Connection,
    peer: Peer,
    arrived: Instant,
}

impl Server {
    fn run(&mut self, stop: &OwnedFd) {
        let endpoint = self.endpoint.clone();
        loop {
            let found = match self.wait(stop) {
                Ok(Found::Stop) => break,
                Ok(found) => found,
                Err(error) => {
                    log::error!("watchdog {} is no longer served: {error}", self.endpoint.watchdog.id());
                    break;
                }
            };
            let now = Instant::now();
            let _busy = endpoint.progress.serving.begin(now);
            self.accept_again = self.accept_again.filter(|&again| again > now);
            self.serve_client();
            self.endpoint.look_for_restored();
            self.serve_surplus(now);
            if found == Found::Arrival {
                self.accept();
            }
        }
        if let Some(Client { connection, session, .. }) = &mut self.client {
            connection.finish(|message, fds, reply| session.answer(message, fds, reply));
        }
        // Saved before the end of the session resets the device.
        self.endpoint.save_now();
    }

    /// Waits for the next event or deadline.
    fn wait(&self, stop: &OwnedFd) -> io::Result<Found> {
        let now = Instant::now();
        let surplus = self.surplus.iter().map(|client| client.deadline(now));
        let clients = self.client.iter().flat_map(|client| client.deadlines(!self.surplus.is_empty()));
        let timeout = surplus
            .chain(clients)
            .chain(self.accept_again)
            .chain(self.endpoint.restored_due_in().map(|due_in| now + due_in))
            .min()
            .map(|deadline| timespec(deadline.saturating_duration_since(now)));
        let arrivals = if self.accept_again.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.socket.listener, arrivals)];
        let refused = self.surplus.iter().filter(|client| client.is_refused(now));
        let clients = self.client.iter().map(|client| &client.connection);
        for connection in clients.chain(refused.map(|client| &client.connection)) {
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), connection.interest()));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) if !fds[0].revents().is_empty() => Ok(Found::Stop),
            Ok(_) if fds[1].revents().contains(PollFlags::IN) => Ok(Found::Arrival),
            Ok(_) | Err(Errno::INTR) => Ok(Found::Other),
            Err(errno) => Err(errno.into()),
        }
    }

    fn serve_client(&mut self) {
        let Some(Client { connection, session, .. }) = &mut self.client else {
            return;
        };
        match connection.serve(|message, fds, reply| session.answer(message, fds, reply)) {
            None => self.endpoint.observe(),
            Some(reason) => self.end_client(reason),
        }
    }

    fn end_client(&mut self, reason: CloseReason) {
        self.client = None;
        self.endpoint.disconnected(reason);
    }

    fn accept(&mut self) {
        let stream = match self.socket.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
            Err(error) => {
                log::error!("watchdog {}: no client can be accepted: {error}", self.endpoint.watchdog.id());
                self.accept_again = Some(Instant::now() + ACCEPT_DELAY);
                return;
            }
        };
        // The current client may have disconnected since it was last served.
        while self.client.as_ref().is_some_and(|client| client.connection.has_hung_up()) {
            self.serve_client();
            if self.client.as_ref().is_some_and(|client| client.connection.waits_for_disposal()) {
                self.end_client(CloseReason::Left);
            }
        }
        // Its process may be gone although another one, to which it gave its socket, keeps the connection open.
        if self.client.as_ref().is_some_and(|client| client.peer.has_ended()) {
            self.end_client(CloseReason::Left);
        }
        if let Err(error) = self.admit(stream) {
            log::error!("watchdog {}: a client cannot be served: {error}", self.endpoint.watchdog.id());
        }
    }

    fn admit(&mut self, stream: UnixStream) -> io::Result<()> {
        let peer = Peer::of(&stream);
        let connection = Connection::new(stream, self.disposer.clone())?;
        if self.client.is_none() {
            self.begin(connection, peer);
            return Ok(());
        }
        if self.surplus.len() == MOST_SURPLUS_CLIENTS {
            self.surplus.remove(0);
            self.endpoint.refused();
        }
        self.surplus.push(SurplusClient { connection, peer, arrived: Instant::now() });
        Ok(())
    }

    fn begin(&mut self, connection: Connection, peer: Peer) {
        let session = Session::new(self.endpoint.device());
        let peer = Arc::new(peer);
        self.client = Some(Client { connection, peer: peer.clone(), session, since: Instant::now() });
        self.endpoint.connected(peer);
    }

    /// Serves the first surplus client if no other one is connected, and refuses those that have waited too long.
    fn serve_surplus(&mut self, now: Instant) {
        let is_silent = self.client.as_ref().is_some_and(|client| client.is_silent(now));
        if is_silent && !self.surplus.is_empty() {
            self.end_client(CloseReason::Silent);
        }
        if self.client.is_none() && !self.surplus.is_empty() {
            // One that has sent something, if there is one.
            let speaks = |client: &SurplusClient| client.connection.has_something_to_receive();
            let next = self.surplus.iter().position(speaks).unwrap_or(0);
            let SurplusClient { connection, peer, .. } = self.surplus.remove(next);
            self.begin(connection, peer);
        }
        let endpoint = &self.endpoint;
        let is_taken = self.client.as_ref().is_some_and(|client| client.session.is_negotiated());
        self.surplus.retain_mut(|client| {
            if !client.is_refused(now) {
                return true;
            }
            if !is_taken {
                // The current client may turn out to be silent, and this one is next.
                return now < client.deadline(now);
            }
            let closed = client.connection.serve(|message, _, reply| {
                refuse(message, Errno::BUSY, reply);
                Next::Close
            });
            let stays = closed.is_none() && now < client.arrived + HANDOVER_TIMEOUT + REFUSAL_TIMEOUT;
            if !stays {
                endpoint.refused();
            }
            stays
        });
    }
}

impl Client {
    /// Whether it has had the time to agree on the version and has not.
    fn is_silent(&self, now: Instant) -> bool {
        !self.session.is_negotiated() && now >= self.since + HANDOVER_TIMEOUT
    }

    /// When it has to be looked at although it sends nothing.
    fn deadlines(&self, another_waits: bool) -> impl Iterator<Item = Instant> {
        let silence = (another_waits && !self.session.is_negotiated()).then(|| self.since + HANDOVER_TIMEOUT);
        self.connection.deadline().into_iter().chain(silence)
    }
}

impl SurplusClient {
    fn is_refused(&self, now: Instant) -> bool {
        now >= self.arrived + HANDOVER_TIMEOUT
    }

    /// When it has to be handled, even if it sends nothing.
    fn deadline(&self, now: Instant) -> Instant {
        let handover_ends = self.arrived + HANDOVER_TIMEOUT;
        if self.is_refused(now) { handover_ends + REFUSAL_TIMEOUT } else { handover_ends }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

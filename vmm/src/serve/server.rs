//! The thread that serves one socket: one client at a time, for ever, until it is told to stop.
//!
//! Each socket has a thread of its own, so that nothing a client does, a descriptor that blocks included, touches the
//! watchdog of another VM. The thread waits in one place for everything, and for nobody in particular.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vm_watchdog_vmm::vfio_user::{Next, Session, refuse};

use super::connection::{Connection, Standing};
use super::endpoint::Endpoint;
use super::socket::Socket;

/// How many clients that are one too many are dealt with at the same time.
const MOST_LATECOMERS: usize = 4;
/// How long such a client waits for the one before it to go: a VMM that reconnects may be seen to come before it is seen
/// to go, as when it has just forked.
const HANDOVER: Duration = Duration::from_millis(250);
/// How long it has, after that, to say something that can be answered.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// How long no client is accepted after the host could not.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The stack of a serving thread, which has no deep calls and no big variables.
const STACK: usize = 256 << 10;

/// Serves `socket` until `stop` is readable, and then tells `end`.
///
/// # Errors
///
/// The host's error if it gives no thread.
pub fn spawn(endpoint: Arc<Endpoint>, socket: Socket, stop: Arc<OwnedFd>, end: Sender<()>) -> io::Result<()> {
    let mut server = Server { endpoint, socket, client: None, latecomers: Vec::new(), accept_again: None };
    let name = format!("serve {}", server.endpoint.watchdog.id()).replace('\0', "?");
    thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
        let _end = End(end);
        server.run(&stop);
    })?;
    Ok(())
}

/// Tells of the end of a thread when it is dropped, so that a panic is no secret.
struct End(Sender<()>);

impl Drop for End {
    fn drop(&mut self) {
        if let Err(error) = self.0.send(()) {
            log::debug!("nobody waits for the end of a serving thread: {error}");
        }
    }
}

struct Server {
    endpoint: Arc<Endpoint>,
    socket: Socket,
    client: Option<Client>,
    latecomers: Vec<Latecomer>,
    /// When clients are accepted again.
    accept_again: Option<Instant>,
}

struct Client {
    connection: Connection,
    session: Session,
}

/// A client that is one too many: it takes the place of the one before it, or is told so.
struct Latecomer {
    connection: Connection,
    arrived: Instant,
}

impl Server {
    fn run(&mut self, stop: &OwnedFd) {
        loop {
            match self.wait(stop) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    log::error!("watchdog {} is no longer served: {error}", self.endpoint.watchdog.id());
                    break;
                }
            }
            let now = Instant::now();
            self.accept_again = self.accept_again.filter(|&again| again > now);
            self.serve_client();
            self.serve_latecomers(now);
            if self.accept_again.is_none() {
                self.accept();
            }
        }
        if let Some(Client { connection, session }) = &mut self.client {
            connection.finish(|message, fds, reply| session.answer(message, fds, reply));
        }
        // As the guest has left it, and not as the end of its session leaves it.
        self.endpoint.keep();
    }

    /// Waits until something may have happened; true if it is time to stop.
    fn wait(&self, stop: &OwnedFd) -> io::Result<bool> {
        let now = Instant::now();
        let deadlines = self.latecomers.iter().map(|latecomer| latecomer.deadline(now)).chain(self.accept_again);
        let timeout = deadlines.min().map(|deadline| timespec(deadline.saturating_duration_since(now)));
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        if self.accept_again.is_none() {
            fds.push(PollFd::new(&self.socket.listener, PollFlags::IN));
        }
        let refused = self.latecomers.iter().filter(|latecomer| latecomer.is_refused(now));
        let clients = self.client.iter().map(|client| &client.connection);
        for connection in clients.chain(refused.map(|latecomer| &latecomer.connection)) {
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), connection.interest()));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn serve_client(&mut self) {
        let Some(Client { connection, session }) = &mut self.client else {
            return;
        };
        let standing = connection.serve(|message, fds, reply| session.answer(message, fds, reply));
        if standing != Standing::Open {
            self.client = None;
            self.endpoint.disconnected(standing);
            return;
        }
        self.endpoint.observe();
    }

    fn accept(&mut self) {
        let stream = match self.socket.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
            Err(error) => {
                log::error!("watchdog {}: no client can be accepted: {error}", self.endpoint.watchdog.id());
                self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        // The one before may have left between the last look at it and this arrival.
        while self.client.as_ref().is_some_and(|client| client.connection.has_hung_up()) {
            self.serve_client();
        }
        if let Err(error) = self.admit(stream) {
            log::error!("watchdog {}: a client cannot be served: {error}", self.endpoint.watchdog.id());
        }
    }

    fn admit(&mut self, stream: UnixStream) -> io::Result<()> {
        let connection = Connection::new(stream)?;
        if self.client.is_none() {
            self.begin(connection);
            return Ok(());
        }
        if self.latecomers.len() == MOST_LATECOMERS {
            self.latecomers.remove(0);
            self.endpoint.refused();
        }
        self.latecomers.push(Latecomer { connection, arrived: Instant::now() });
        Ok(())
    }

    fn begin(&mut self, connection: Connection) {
        let session = Session::new(self.endpoint.watchdog.clone(), self.endpoint.intx.clone());
        self.client = Some(Client { connection, session });
        self.endpoint.connected();
    }

    /// Lets the first one in if the place is free, and refuses those that have waited for it long enough.
    fn serve_latecomers(&mut self, now: Instant) {
        if self.client.is_none() && !self.latecomers.is_empty() {
            let Latecomer { connection, .. } = self.latecomers.remove(0);
            self.begin(connection);
        }
        let endpoint = &self.endpoint;
        self.latecomers.retain_mut(|latecomer| {
            if !latecomer.is_refused(now) {
                return true;
            }
            let standing = latecomer.connection.serve(|message, _, reply| {
                refuse(message, Errno::BUSY, reply);
                Next::Close
            });
            let stays = standing == Standing::Open && now < latecomer.arrived + HANDOVER + REFUSAL_PATIENCE;
            if !stays {
                endpoint.refused();
            }
            stays
        });
    }
}

impl Latecomer {
    fn is_refused(&self, now: Instant) -> bool {
        now >= self.arrived + HANDOVER
    }

    /// When there is something to do about it, whatever it says.
    fn deadline(&self, now: Instant) -> Instant {
        let handover_ends = self.arrived + HANDOVER;
        if self.is_refused(now) { handover_ends + REFUSAL_PATIENCE } else { handover_ends }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

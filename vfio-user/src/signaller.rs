//! Signals the eventfd of a client from a thread that may block.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use crate::eventfd::ClientEventfd;

/// How many threads of one interrupt may wait in writes to eventfds that clients have replaced.
const MOST_LEFT_BEHIND: usize = 4;
const STACK: usize = 64 << 10;

/// The eventfd of a client, and the thread that writes to it.
///
/// The client shares the counter and the flags of its eventfd. It can fill the counter and take O_NONBLOCK away, and the write
/// then waits until the client reads. The thread starts with the first signal. One that is in a write when the client
/// replaces its eventfd, or disconnects, is left behind with that eventfd, and ends with the write.
#[derive(Debug, Default)]
pub(crate) struct Signaller {
    eventfd: Option<Arc<ClientEventfd>>,
    writer: Option<Arc<Writer>>,
    left_behind: Vec<Weak<Writer>>,
}

/// What the thread shares with its signaller.
#[derive(Debug, Default)]
struct Writer {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    /// The eventfd to signal next, and how often.
    next: Option<(Arc<ClientEventfd>, u64)>,
    is_writing: bool,
    /// Whether the thread ends when it has nothing to write.
    shall_end: bool,
}

impl Signaller {
    /// Signals `eventfd` from now on, and nothing if it is `None`. Signals that are not written are dropped.
    pub fn connect(&mut self, eventfd: Option<ClientEventfd>) {
        if self.writer.as_ref().is_some_and(|writer| !writer.cancel()) {
            self.leave_writer();
        }
        self.eventfd = eventfd.map(Arc::new);
    }

    pub fn is_connected(&self) -> bool {
        self.eventfd.is_some()
    }

    /// Has the eventfd signalled once more, without waiting for that. Does nothing if none is connected.
    ///
    /// # Errors
    ///
    /// Too many threads are left behind, or the host gives no thread.
    pub fn signal(&mut self) -> io::Result<()> {
        let Some(eventfd) = &self.eventfd else {
            return Ok(());
        };
        let writer = match &self.writer {
            Some(writer) => writer,
            None => {
                self.left_behind.retain(|writer| writer.strong_count() > 0);
                if self.left_behind.len() >= MOST_LEFT_BEHIND {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        format!("{MOST_LEFT_BEHIND} threads wait for VMMs to read eventfds that they have replaced"),
                    ));
                }
                self.writer.insert(Writer::start()?)
            }
        };
        writer.signal(eventfd);
        Ok(())
    }

    fn leave_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.left_behind.push(Arc::downgrade(&writer));
            writer.end();
        }
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        self.leave_writer();
    }
}

impl Writer {
    fn start() -> io::Result<Arc<Self>> {
        let writer = Arc::<Self>::default();
        let of_thread = writer.clone();
        thread::Builder::new().name("interrupt".into()).stack_size(STACK).spawn(move || of_thread.run())?;
        Ok(writer)
    }

    fn signal(&self, eventfd: &Arc<ClientEventfd>) {
        let mut orders = self.orders();
        let signals = orders.next.as_ref().map_or(0, |(_, signals)| *signals);
        orders.next = Some((eventfd.clone(), signals.saturating_add(1)));
        self.changed.notify_one();
    }

    /// Drops the signals that are not written. False if some are being written.
    fn cancel(&self) -> bool {
        let mut orders = self.orders();
        orders.next = None;
        !orders.is_writing
    }

    fn end(&self) {
        self.orders().shall_end = true;
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut orders = self.orders();
        loop {
            if let Some((eventfd, signals)) = orders.next.take() {
                orders.is_writing = true;
                drop(orders);
                eventfd.signal(signals);
                // Without the lock, because this may be the last of the eventfd.
                drop(eventfd);
                orders = self.orders();
                orders.is_writing = false;
            } else if orders.shall_end {
                return;
            } else {
                orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::OFlags;

    use super::*;
    use crate::eventfd::await_signals;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// An eventfd of a client, and the client's end of it.
    fn new_eventfd() -> (ClientEventfd, OwnedFd) {
        let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (ClientEventfd::new(client.try_clone().unwrap()).unwrap(), client)
    }

    /// Connects an eventfd that its client fills and makes blocking, and waits until the thread is in the write.
    fn block(signaller: &mut Signaller) -> OwnedFd {
        let (eventfd, client) = new_eventfd();
        rustix::io::write(&client, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&client, OFlags::empty()).unwrap();
        signaller.connect(Some(eventfd));
        signaller.signal().unwrap();
        wait_until(|| signaller.writer.as_ref().unwrap().orders().is_writing);
        client
    }

    fn wait_until(mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn each_signal_is_written_and_one_thread_is_enough() {
        let mut signaller = Signaller::default();
        for _ in 0..3 {
            let (eventfd, client) = new_eventfd();
            signaller.connect(Some(eventfd));
            for _ in 0..100 {
                signaller.signal().unwrap();
            }
            await_signals(&client, 100);
            wait_until(|| !signaller.writer.as_ref().unwrap().orders().is_writing);
        }
        assert_eq!(signaller.left_behind.len(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_blocks_no_call_and_not_the_next_eventfd() {
        let mut signaller = Signaller::default();
        let _full = block(&mut signaller);
        signaller.signal().unwrap();
        let (eventfd, client) = new_eventfd();
        signaller.connect(Some(eventfd));
        signaller.signal().unwrap();
        await_signals(&client, 1);
    }

    #[test]
    fn the_threads_that_are_left_behind_are_bounded_and_end_when_their_clients_read() {
        let mut signaller = Signaller::default();
        let full: Vec<OwnedFd> = (0..MOST_LEFT_BEHIND).map(|_| block(&mut signaller)).collect();
        let (eventfd, client) = new_eventfd();
        signaller.connect(Some(eventfd));
        let refused = signaller.signal().unwrap_err();
        assert_eq!(refused.to_string(), "4 threads wait for VMMs to read eventfds that they have replaced");
        rustix::io::read(&full[0], &mut [0; 8]).unwrap();
        wait_until(|| signaller.signal().is_ok());
        await_signals(&client, 1);
    }

    #[test]
    fn an_eventfd_that_is_disconnected_is_closed_and_a_signaller_that_is_dropped_ends_its_thread() {
        let (eventfd, client) = new_eventfd();
        let mut signaller = Signaller::default();
        signaller.connect(Some(eventfd));
        signaller.signal().unwrap();
        await_signals(&client, 1);
        let eventfd = Arc::downgrade(signaller.eventfd.as_ref().unwrap());
        signaller.connect(None);
        wait_until(|| eventfd.strong_count() == 0);
        assert!(signaller.signal().is_ok(), "nothing is connected");
        let writer = signaller.writer.as_ref().map(Arc::downgrade);
        drop(signaller);
        wait_until(|| writer.as_ref().is_none_or(|writer| writer.strong_count() == 0));
    }
}

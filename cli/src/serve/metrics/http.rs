//! The metrics over HTTP. One fixed path does not need an HTTP server; `httparse` parses the request.
//!
//! One thread serves every scraper and waits for none of them: each has a deadline, and the oldest one makes room when
//! there are too many.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::serve::endpoint::Endpoint;
use crate::serve::metrics::render;

/// How long a scraper may take in all.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many scrapers are connected at the same time.
const MOST_SCRAPERS: usize = 16;
/// The delay before the next accept after the host refused one.
const ACCEPT_DELAY: Duration = Duration::from_secs(2);
/// The longest request that is read.
const LONGEST_REQUEST: usize = 8 << 10;
/// How many header lines it may have.
const MOST_HEADERS: usize = 64;

/// Serves the metrics of `endpoints` on a non-blocking listener, for ever.
///
/// # Errors
///
/// The error of the host if it cannot start a thread.
pub fn spawn(listener: OwnedFd, endpoints: Vec<Arc<Endpoint>>) -> io::Result<()> {
    let mut server = Server { listener, endpoints, scrapers: Vec::new(), accept_again: None };
    thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
    Ok(())
}

struct Server {
    listener: OwnedFd,
    endpoints: Vec<Arc<Endpoint>>,
    /// The oldest first.
    scrapers: Vec<Scraper>,
    /// When scrapers are accepted again.
    accept_again: Option<Instant>,
}

struct Scraper {
    socket: OwnedFd,
    deadline: Instant,
    request: Vec<u8>,
    /// What is left to be sent, once the request is complete.
    answer: Option<Vec<u8>>,
}

/// Whether a scraper is still served.
enum Next {
    Wait,
    Close,
}

impl Server {
    fn run(&mut self) {
        loop {
            if let Err(errno) = self.wait() {
                log::error!("scrapers cannot be waited for: {errno}");
                thread::sleep(ACCEPT_DELAY);
            }
            let now = Instant::now();
            self.accept_again = self.accept_again.filter(|&again| again > now);
            let endpoints = &self.endpoints;
            self.scrapers
                .retain_mut(|scraper| scraper.deadline > now && matches!(scraper.serve(endpoints), Ok(Next::Wait)));
            if self.accept_again.is_none() {
                self.accept(now);
            }
        }
    }

    /// Waits for the next event or deadline.
    fn wait(&self) -> Result<(), Errno> {
        let now = Instant::now();
        let deadlines = self.scrapers.iter().map(|scraper| scraper.deadline).chain(self.accept_again);
        let timeout = deadlines.min().map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = Vec::new();
        if self.accept_again.is_none() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for Scraper { socket, answer, .. } in &self.scrapers {
            fds.push(PollFd::new(socket, if answer.is_some() { PollFlags::OUT } else { PollFlags::IN }));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn accept(&mut self, now: Instant) {
        match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                let deadline = now + SCRAPE_TIMEOUT;
                let mut scraper = Scraper { socket, deadline, request: Vec::new(), answer: None };
                // Its request has often arrived with it. If so, no other scraper can take its place.
                if let Ok(Next::Wait) = scraper.serve(&self.endpoints) {
                    if self.scrapers.len() == MOST_SCRAPERS {
                        self.scrapers.remove(0);
                    }
                    self.scrapers.push(scraper);
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                log::error!("no scraper can be accepted: {errno}");
                self.accept_again = Some(now + ACCEPT_DELAY);
            }
        }
    }
}

impl Scraper {
    /// Receives and sends what is possible without waiting.
    fn serve(&mut self, endpoints: &[Arc<Endpoint>]) -> Result<Next, Errno> {
        if self.answer.is_none() && !self.receive(endpoints)? {
            return Ok(Next::Wait);
        }
        let answer = self.answer.get_or_insert_default();
        while !answer.is_empty() {
            match rustix::net::send(&self.socket, answer, SendFlags::NOSIGNAL) {
                Ok(count) => drop(answer.drain(..count)),
                Err(Errno::AGAIN) => return Ok(Next::Wait),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Next::Close)
    }

    /// Receives the request, and returns whether there is an answer.
    fn receive(&mut self, endpoints: &[Arc<Endpoint>]) -> Result<bool, Errno> {
        loop {
            let mut bytes = [0; 1024];
            let count = match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            self.request.extend(&bytes[..count]);
            let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
            let mut parsed = httparse::Request::new(&mut headers);
            let path = match parsed.parse(&self.request) {
                Ok(httparse::Status::Complete(_)) if parsed.method == Some("GET") => parsed.path,
                Ok(httparse::Status::Partial) if count > 0 && self.request.len() < LONGEST_REQUEST => continue,
                _ => None,
            };
            self.answer = Some(answer(path, endpoints));
            return Ok(true);
        }
    }
}

/// The answer to a GET request for `path`; `None` is another request.
fn answer(path: Option<&str>, endpoints: &[Arc<Endpoint>]) -> Vec<u8> {
    let (status, body) = match path {
        Some("/metrics") => match render(endpoints) {
            Ok(body) => ("200 OK", body),
            Err(error) => ("500 Internal Server Error", error.to_string()),
        },
        Some(_) => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        None => ("400 Bad Request", "only GET /metrics is supported\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        prometheus::TEXT_FORMAT
    );
    (head + &body).into_bytes()
}

//! The metrics, the status and the results of the probes over HTTP. Four fixed paths do not need an HTTP server; `httparse` parses the request.
//!
//! One thread serves every scraper and waits for none of them: each has a deadline, and the oldest one makes room when
//! there are too many.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use vm_watchdog_probes::ProbeKind;

use crate::serve::health::report::report;
use crate::serve::metrics::{Subjects, render};
use crate::serve::status::status;

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
/// The type of an answer for people.
const TEXT: &str = "text/plain; charset=utf-8";
/// The type of an answer for programs.
const JSON: &str = "application/json";

/// Serves the metrics and the status of `subjects`, and the results of their probes, on a non-blocking listener, for ever.
///
/// # Errors
///
/// The error of the host if it cannot start a thread.
pub fn spawn(listener: OwnedFd, subjects: Subjects) -> io::Result<()> {
    let mut server = Server { listener, subjects, scrapers: Vec::new(), accept_again: None };
    thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
    Ok(())
}

struct Server {
    listener: OwnedFd,
    subjects: Subjects,
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
            let subjects = &self.subjects;
            self.scrapers
                .retain_mut(|scraper| scraper.deadline > now && matches!(scraper.serve(subjects), Ok(Next::Wait)));
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
                if let Ok(Next::Wait) = scraper.serve(&self.subjects) {
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
    fn serve(&mut self, subjects: &Subjects) -> Result<Next, Errno> {
        if self.answer.is_none() && !self.receive(subjects)? {
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
    fn receive(&mut self, subjects: &Subjects) -> Result<bool, Errno> {
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
            self.answer = Some(answer(path, subjects));
            return Ok(true);
        }
    }
}

/// The answer to a GET request for `path`; `None` is another request.
fn answer(path: Option<&str>, subjects: &Subjects) -> Vec<u8> {
    let health = |kind| subjects.health.as_ref().and_then(|health| health.probe(kind));
    let json = |(status, body)| (status, JSON, body);
    let (status, content_type, body) = match path {
        Some("/metrics") => match render(subjects) {
            Ok(body) => ("200 OK", prometheus::TEXT_FORMAT, body),
            Err(error) => ("500 Internal Server Error", TEXT, error.to_string()),
        },
        Some("/status") => match serde_json::to_string(&status(subjects)) {
            Ok(body) => ("200 OK", JSON, body + "\n"),
            Err(error) => ("500 Internal Server Error", TEXT, error.to_string()),
        },
        Some("/livez") => json(report(health(ProbeKind::Liveness).as_ref())),
        Some("/readyz") => json(report(health(ProbeKind::Readiness).as_ref())),
        Some(_) => (
            "404 Not Found",
            TEXT,
            "the metrics are at /metrics, the status at /status, the probes at /livez and /readyz\n".to_owned(),
        ),
        None => ("400 Bad Request", TEXT, "only GET is supported\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

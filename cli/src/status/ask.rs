//! Asks many servers for their status at the same time, on one thread.
//!
//! A server is trusted no more than any process of another tenant: each has a time limit in all and a limit of what it may
//! send, and none delays the others.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Deserialize;

use crate::local_socket::connect;
use crate::status::document::{StatusV1, Text, VERSION};

/// How many servers are asked at the same time.
const MOST_AT_ONCE: u64 = 1000;
/// How many files the process has open beside their sockets.
const OTHER_FILES: u64 = 32;
/// The longest answer that is read. That of a VM with 100 watchdogs has half of it.
const LONGEST_ANSWER: usize = 64 << 10;
/// How many header lines an answer may have.
const MOST_HEADERS: usize = 32;
/// How many watchdogs, and how many probes, a VM may have.
const MOST_ITEMS: usize = 100;
/// The delay before the next connect to a server that has many clients.
const CONNECT_DELAY: Duration = Duration::from_millis(20);
const REQUEST: &[u8] = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Why a server has no status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no socket.
    Missing,
    /// The socket is there and no process serves it.
    Gone,
    /// This user may not open it.
    Forbidden,
    /// It has not answered in time.
    Silent(Duration),
    /// It has answered something else.
    Strange(String),
    /// The host refuses.
    Host(String),
}

/// Asks each of these sockets. The answers are in the same order; `None` if `end` became readable before the last one.
pub fn ask(sockets: &[&Path], limit: Duration, end: Option<BorrowedFd<'_>>) -> Option<Vec<Result<StatusV1, Trouble>>> {
    let mut asking = Asking {
        sockets,
        limit,
        most_at_once: most_at_once(),
        next: 0,
        delayed: VecDeque::new(),
        asked: Vec::new(),
        answers: vec![None; sockets.len()],
    };
    while !asking.is_complete() {
        asking.connect(Instant::now());
        if asking.wait(end) {
            return None;
        }
        asking.receive(Instant::now());
    }
    Some(asking.answers.into_iter().flatten().collect())
}

/// How many servers may be asked at the same time, of as many files as the process may have open.
fn most_at_once() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = MOST_AT_ONCE + OTHER_FILES;
    if limit.current.is_some_and(|current| current < wanted) {
        let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        // If the host refuses, fewer are asked at the same time.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum });
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    files.saturating_sub(OTHER_FILES).clamp(1, MOST_AT_ONCE) as usize
}

struct Asking<'a> {
    sockets: &'a [&'a Path],
    limit: Duration,
    most_at_once: usize,
    /// The first socket that was not yet tried.
    next: usize,
    /// Servers with many clients, which are tried again.
    delayed: VecDeque<Delayed>,
    asked: Vec<Asked>,
    answers: Vec<Option<Result<StatusV1, Trouble>>>,
}

struct Delayed {
    index: usize,
    again: Instant,
    deadline: Instant,
}

/// A server that was sent the request.
struct Asked {
    index: usize,
    socket: OwnedFd,
    deadline: Instant,
    is_ready: bool,
    received: Vec<u8>,
}

impl Asking<'_> {
    fn is_complete(&self) -> bool {
        self.next == self.sockets.len() && self.delayed.is_empty() && self.asked.is_empty()
    }

    fn connect(&mut self, now: Instant) {
        for _ in 0..self.delayed.len() {
            let Some(delayed) = self.delayed.pop_front() else { break };
            match delayed {
                Delayed { deadline, .. } if deadline <= now => {
                    self.answers[delayed.index] = Some(Err(Trouble::Silent(self.limit)));
                }
                Delayed { again, .. } if again > now => self.delayed.push_back(delayed),
                Delayed { index, deadline, .. } => self.start(index, now, deadline),
            }
        }
        while self.next < self.sockets.len() && self.asked.len() + self.delayed.len() < self.most_at_once {
            self.next += 1;
            self.start(self.next - 1, now, now + self.limit);
        }
    }

    fn start(&mut self, index: usize, now: Instant, deadline: Instant) {
        let sent = connect(self.sockets[index]).and_then(|socket| {
            // A new socket has room for so few bytes.
            rustix::net::send(&socket, REQUEST, SendFlags::NOSIGNAL)?;
            Ok(socket)
        });
        match sent {
            Ok(socket) => self.asked.push(Asked { index, socket, deadline, is_ready: false, received: Vec::new() }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.delayed.push_back(Delayed { index, again: now + CONNECT_DELAY, deadline });
            }
            Err(error) => self.answers[index] = Some(Err(Trouble::of(&error))),
        }
    }

    /// Waits for an answer or a deadline; true if `end` is readable.
    fn wait(&mut self, end: Option<BorrowedFd<'_>>) -> bool {
        let asked = self.asked.iter().map(|asked| asked.deadline);
        let Some(next) = asked.chain(self.delayed.iter().map(|delayed| delayed.again.min(delayed.deadline))).min()
        else {
            return false;
        };
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds: Vec<_> = self.asked.iter().map(|asked| PollFd::new(&asked.socket, PollFlags::IN)).collect();
        fds.extend(end.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN)));
        // After an error none is ready, and none is waited for beyond its deadline.
        let polled = rustix::event::poll(&mut fds, Some(&timeout)).is_ok();
        let mut ready: Vec<_> = fds.iter().map(|fd| polled && !fd.revents().is_empty()).collect();
        let has_ended = end.is_some() && ready.pop() == Some(true);
        for (asked, is_ready) in self.asked.iter_mut().zip(ready) {
            asked.is_ready = is_ready;
        }
        has_ended
    }

    fn receive(&mut self, now: Instant) {
        let Self { asked, answers, limit, .. } = self;
        asked.retain_mut(|asked| {
            let answer = match if asked.is_ready { asked.receive() } else { Ok(None) } {
                Ok(None) if asked.deadline <= now => Err(Trouble::Silent(*limit)),
                Ok(None) => return true,
                Ok(Some(answer)) => Ok(answer),
                Err(trouble) => Err(trouble),
            };
            answers[asked.index] = Some(answer);
            false
        });
    }
}

impl Asked {
    /// The answer, if it is complete.
    fn receive(&mut self) -> Result<Option<StatusV1>, Trouble> {
        loop {
            let mut bytes = [0; 4096];
            match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return parse(&self.received).map(Some),
                Ok((count, _)) => self.received.extend(&bytes[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Trouble::of(&errno.into())),
            }
            if self.received.len() > LONGEST_ANSWER {
                return Err(Trouble::Strange(format!("its answer is longer than {LONGEST_ANSWER} bytes")));
            }
        }
    }
}

/// The status in a whole answer.
pub fn parse(answer: &[u8]) -> Result<StatusV1, Trouble> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let strange = |message: &str| Trouble::Strange(message.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = response.parse(answer) else {
        return Err(strange(if answer.is_empty() { "it has closed the connection" } else { "it does not speak HTTP" }));
    };
    if let Some(code) = response.code.filter(|code| *code != 200) {
        return Err(Trouble::Strange(format!("it answers with HTTP status {code}")));
    }
    let body = &answer[length..];
    let Version { version } = serde_json::from_slice(body).map_err(|_| strange("its answer is no status"))?;
    if version != VERSION {
        return Err(Trouble::Strange(format!("its status has version {version}, known is {VERSION}")));
    }
    // The message of the parser may quote the answer.
    let status: StatusV1 = serde_json::from_slice(body)
        .map_err(|error| Trouble::Strange(format!("its status: {}", Text::new(&error.to_string()))))?;
    if status.watchdogs.len() > MOST_ITEMS || status.probes.len() > MOST_ITEMS {
        return Err(Trouble::Strange(format!("its status has more than {MOST_ITEMS} watchdogs or probes")));
    }
    Ok(status)
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::ConnectionRefused => Self::Gone,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Strange("it has closed the connection".to_owned())
            }
            _ => Self::Host(error.to_string()),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no such VM"),
            Self::Gone => f.write_str("no server"),
            Self::Forbidden => f.write_str("no permission"),
            Self::Silent(limit) => write!(f, "no answer within {limit:?}"),
            Self::Strange(what) => write!(f, "no status: {what}"),
            Self::Host(error) => write!(f, "cannot be asked: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strange(answer: &[u8]) -> String {
        parse(answer).unwrap_err().to_string()
    }

    #[test]
    fn an_answer_that_is_no_status_is_told_without_its_text() {
        for (answer, what) in [
            (&b""[..], "no status: it has closed the connection"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "no status: it does not speak HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1000", "no status: it does not speak HTTP"),
            (
                b"HTTP/1.1 404 Not Found\r\n\r\nthe metrics are at /metrics",
                "no status: it answers with HTTP status 404",
            ),
            (b"HTTP/1.1 200 OK\r\n\r\n\x1b[2J", "no status: its answer is no status"),
            (b"HTTP/1.1 200 OK\r\n\r\n{\"version\":2}", "no status: its status has version 2, known is 1"),
        ] {
            assert_eq!(strange(answer), what);
        }
        let deep = format!("HTTP/1.1 200 OK\r\n\r\n{{\"version\":1,\"x\":{}", "[".repeat(60_000));
        assert_eq!(strange(deep.as_bytes()), "no status: its answer is no status");
        let escape = b"HTTP/1.1 200 OK\r\n\r\n{\"version\":1,\"paused\":\"\\u001b[2J\"}";
        assert!(!strange(escape).contains('\u{1b}'), "{}", strange(escape));
    }
}

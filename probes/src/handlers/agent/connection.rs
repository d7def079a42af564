//! One connection to the agent.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::handlers::agent::line::{closed, read_line};
use crate::handlers::deadline::{Deadline, DeadlineStream};
use crate::handlers::text::untrusted;

/// How many bytes of a call are read. The agent's answer with the output of a command has up to 43 MiB: twice 16 MiB in
/// Base64.
const BUDGET: usize = 64 << 20;
/// How many answers to other clients are skipped.
const MOST_STALE: usize = 1000;
/// The byte that no JSON has: it ends what came before it.
const DELIMITER: u8 = 0xff;

/// A connection that is synchronized.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<DeadlineStream>,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

impl Connection {
    /// Connects, and waits until the agent has skipped what came before.
    ///
    /// # Errors
    ///
    /// Why there is no agent.
    pub fn open(path: &Path, deadline: Deadline) -> io::Result<Self> {
        let stream = DeadlineStream::new(connect(path, deadline)?, deadline, BUDGET);
        let mut connection = Self { reader: BufReader::new(stream) };
        connection.synchronize()?;
        Ok(connection)
    }

    /// The agent's answer to a command; its refusal as text.
    ///
    /// # Errors
    ///
    /// Why there is no answer. The connection cannot be used any more.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: Deadline,
    ) -> io::Result<Result<T, String>> {
        self.reader.get_mut().renew(deadline);
        self.send(&[], command, arguments)?;
        answer(&mut self.reader, command)
    }

    /// Skips everything up to the answer to a number that no other client has sent.
    fn synchronize(&mut self) -> io::Result<()> {
        // JSON's numbers are exact up to 53 bits.
        let id = RandomState::new().hash_one(()) >> 11;
        self.send(&[DELIMITER], "guest-sync-delimited", json!({ "id": id }))?;
        skip_to(&mut self.reader, id)
    }

    fn send(&mut self, start: &[u8], command: &str, arguments: Value) -> io::Result<()> {
        let mut line = start.to_vec();
        serde_json::to_writer(&mut line, &json!({ "execute": command, "arguments": arguments }))?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)
    }
}

/// Reads the answer to a command; the refusal of the agent as text.
///
/// # Errors
///
/// The error of the reader; [`io::ErrorKind::InvalidData`] for an answer that is malformed or too long.
pub fn answer<T: DeserializeOwned>(reader: &mut impl BufRead, command: &str) -> io::Result<Result<T, String>> {
    let line = read_line(reader)?;
    let malformed = |reason: &str| {
        let message = format!("malformed answer to {command}: {reason}: {}", untrusted(&line));
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    let answer: Answer<T> = serde_json::from_slice(&line).map_err(|error| {
        // The error may quote the answer.
        malformed(&untrusted(error.to_string().as_bytes()))
    })?;
    match answer {
        Answer { error: Some(refusal), .. } => Ok(Err(untrusted(refusal.desc.as_bytes()))),
        Answer { value: Some(value), .. } => Ok(Ok(value)),
        Answer { value: None, error: None } => Err(malformed("neither return nor error")),
    }
}

/// Skips everything up to the answer to `guest-sync-delimited` with this number.
///
/// # Errors
///
/// The error of the reader; [`io::ErrorKind::InvalidData`] if too many other answers come first.
pub fn skip_to(reader: &mut impl BufRead, id: u64) -> io::Result<()> {
    for _ in 0..MOST_STALE {
        if reader.skip_until(DELIMITER)? == 0 {
            return Err(closed());
        }
        let line = match read_line(reader) {
            Ok(line) => line,
            // An answer to another client.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
            Err(error) => return Err(error),
        };
        let answer: Option<Answer<u64>> = serde_json::from_slice(&line).ok();
        if answer.and_then(|answer| answer.value) == Some(id) {
            return Ok(());
        }
    }
    let message = format!("no answer to guest-sync-delimited within {MOST_STALE} answers");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Connects. Waits until the deadline if other clients wait too.
fn connect(path: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        set_socket_timeout(&socket, Timeout::Send, Some(deadline.left()?))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(deadline.timed_out()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

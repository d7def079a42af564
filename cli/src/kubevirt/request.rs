//! How the hook asks the first process of the sidecar for the server: one connection, the arguments of the server as one line
//! of JSON, and one line back, which is empty if the server listens, and says otherwise why it does not.
//!
//! The socket is in a folder that the container with QEMU does not see: a QEMU that its guest controls cannot have
//! programs started here.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vm_watchdog_timeline::bounded;

/// How long the first process may take to start the server. KubeVirt gives the hook a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the hook may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest request, and the longest answer, in bytes.
const MAX_LENGTH: u64 = 64 << 10;

/// Asks for the server, and waits until it listens.
///
/// # Errors
///
/// Why there is no server, in words.
pub fn request(socket: &Path, arguments: &[String]) -> Result<(), String> {
    let answer = ask(socket, arguments).map_err(|error| format!("{}: {error}", socket.display()))?;
    match answer.strip_suffix('\n') {
        Some("") => Ok(()),
        Some(reason) => Err(reason.to_owned()),
        None => Err("no answer".to_owned()),
    }
}

fn ask(socket: &Path, arguments: &[String]) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(format!("{}\n", serde_json::to_string(arguments)?).as_bytes())?;
    line(&stream)
}

/// Takes the request of a connection.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn take(stream: &UnixStream) -> Result<Vec<String>, String> {
    let line = stream.set_read_timeout(Some(REQUEST_TIMEOUT)).and_then(|()| line(stream));
    let line = line.map_err(|error| format!("the request cannot be read: {error}"))?;
    serde_json::from_str(&line).map_err(|error| format!("no request: {}", bounded(&error)))
}

/// Answers the request of a connection.
pub fn answer(mut stream: &UnixStream, outcome: &Result<(), String>) -> io::Result<()> {
    let reason = outcome.as_ref().err().map(|reason| bounded(reason)).unwrap_or_default();
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    stream.write_all(format!("{reason}\n").as_bytes())
}

fn line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LENGTH)).read_line(&mut line)?;
    Ok(line)
}

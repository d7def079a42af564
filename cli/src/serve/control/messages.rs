//! What QEMU sends over QMP: untrusted messages, read with bounds and parsed as far as they matter.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use vm_watchdog_timeline::bounded;

/// How long QEMU may take to greet and to say whether the VM runs. It sends nothing while another client is connected.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message that is read, and the most that is read before a connection is ready. QEMU sends much less.
pub const MOST_BYTES: usize = 64 << 10;

/// An event of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// It runs (true), or is paused (false).
    Runs(bool),
    /// It was reset.
    Reset { reason: Option<String> },
    /// It was asked to shut down.
    Powerdown,
    /// It has shut down.
    Shutdown { reason: Option<String> },
    /// It has written a dump of its memory, or why it has not.
    DumpEnded { outcome: Result<(), String> },
    /// The first watchdog of the VM was connected, or the last one disconnected.
    Client { connected: bool },
    /// The control connection was established, or lost.
    Control { socket: String, connected: bool, reason: Option<String> },
}

/// The messages of QEMU, one a line.
pub struct Messages {
    stream: BufReader<UnixStream>,
    lines: Lines,
    /// When the connection has to be ready, until it is.
    deadline: Option<Instant>,
}

/// Cuts the bytes of QEMU into messages. No more than one of them is in memory.
pub struct Lines {
    line: Vec<u8>,
    /// How many bytes the connection may still send until it is ready.
    setup: Option<usize>,
}

impl Lines {
    /// Those of a new connection.
    pub fn new() -> Self {
        Self { line: Vec::new(), setup: Some(MOST_BYTES) }
    }

    /// From now on each message may be so long.
    pub fn is_ready(&mut self) {
        self.setup = None;
    }

    /// Takes bytes up to the end of a message, and returns how many, and the message if it is whole.
    ///
    /// # Errors
    ///
    /// The message is too long, or no JSON. Nothing can be taken after that.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<(usize, Option<Message>)> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let count = end.unwrap_or(bytes.len());
        if self.line.len() + count > self.setup.unwrap_or(MOST_BYTES) {
            return Err(self.too_long());
        }
        self.line.extend_from_slice(&bytes[..count]);
        if end.is_none() {
            return Ok((count, None));
        }
        if let Some(left) = &mut self.setup {
            *left -= self.line.len();
        }
        let message = Message::parse(&self.line)?;
        self.line.clear();
        Ok((count, Some(message)))
    }

    /// How many bytes of an unfinished message are kept.
    pub fn kept(&self) -> usize {
        self.line.len()
    }

    fn too_long(&self) -> io::Error {
        let message = match self.setup {
            Some(_) => format!("QEMU sends more than {MOST_BYTES} bytes before it has answered query-status"),
            None => format!("QEMU sends a message of more than {MOST_BYTES} bytes"),
        };
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl Messages {
    pub fn new(stream: UnixStream) -> Self {
        let deadline = Some(Instant::now() + SETUP_TIMEOUT);
        Self { stream: BufReader::new(stream), lines: Lines::new(), deadline }
    }

    /// From now on each message may be so long, and may come at any time.
    pub fn is_ready(&mut self) -> io::Result<()> {
        self.lines.is_ready();
        self.deadline = None;
        self.stream.get_ref().set_read_timeout(None)
    }

    /// Waits for the next message.
    pub fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(deadline) = self.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                self.stream.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            }
            let bytes = match self.stream.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(self.too_slow()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                bytes => bytes?,
            };
            if bytes.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by QEMU"));
            }
            let (count, message) = self.lines.take(bytes)?;
            self.stream.consume(count);
            if let Some(message) = message {
                return Ok(message);
            }
        }
    }

    /// The outcome of the command 0. Forwards the events that come before it.
    pub fn answer(&mut self, forward: impl Fn(VmEvent)) -> io::Result<Result<String, String>> {
        loop {
            match self.next()? {
                Message { event: Some(event), .. } => forward(event),
                Message { answer: Some(Answer { id: 0, outcome }), .. } => return Ok(outcome),
                _ => {}
            }
        }
    }

    fn too_slow(&self) -> io::Error {
        let message = match self.lines.setup {
            Some(MOST_BYTES) if self.lines.kept() == 0 => "no greeting: is another client connected to it?".to_owned(),
            _ => format!("QEMU has not answered query-status within {SETUP_TIMEOUT:?}"),
        };
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

/// A message, as far as it matters.
pub struct Message {
    pub is_greeting: bool,
    pub event: Option<VmEvent>,
    pub answer: Option<Answer>,
}

/// The answer to a command.
pub struct Answer {
    pub id: u64,
    /// What the command returns, as text, or why it is refused.
    pub outcome: Result<String, String>,
}

/// The last command, and what has come for it.
#[derive(Default)]
pub struct LastCommand {
    id: u64,
    answer: Option<Answer>,
}

impl LastCommand {
    /// Begins a command, and returns its number.
    pub fn begin(&mut self) -> u64 {
        self.id += 1;
        self.answer = None;
        self.id
    }

    /// Keeps an answer. It may be that to an earlier command.
    pub fn received(&mut self, answer: Answer) {
        self.answer = Some(answer);
    }

    /// What the command returns, or why it is refused; `None` if it is not answered.
    pub fn take_outcome(&mut self) -> Option<Result<String, String>> {
        let id = self.id;
        self.answer.take_if(|answer| answer.id == id).map(|answer| answer.outcome)
    }
}

/// The parts of a message, which are not parsed unless they matter: a tree of their values takes a hundred times as much
/// memory as the text.
#[derive(Default, Deserialize)]
struct Parts<'a> {
    #[serde(borrow, rename = "QMP")]
    greeting: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, rename = "return")]
    returned: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// What the event DUMP_COMPLETED has.
#[derive(Deserialize)]
struct DumpEnd {
    result: DumpResult,
}

#[derive(Deserialize)]
struct DumpResult {
    status: String,
}

/// The text that says why.
#[derive(Deserialize)]
struct Why {
    #[serde(alias = "desc", alias = "error")]
    reason: String,
}

impl Message {
    fn parse(line: &[u8]) -> io::Result<Self> {
        let parts: Parts<'_> = match serde_json::from_slice(line) {
            // A value that is no message is ignored.
            Err(error) if error.is_data() => Parts::default(),
            parts => parts.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
        };
        Ok(Self { is_greeting: parts.greeting.is_some(), event: parts.event(), answer: parts.answer() })
    }
}

impl Parts<'_> {
    fn event(&self) -> Option<VmEvent> {
        let reason = || why(self.data);
        match parse::<String>(self.event)?.as_str() {
            "STOP" => Some(VmEvent::Runs(false)),
            "RESUME" => Some(VmEvent::Runs(true)),
            "POWERDOWN" => Some(VmEvent::Powerdown),
            "RESET" => Some(VmEvent::Reset { reason: reason() }),
            "SHUTDOWN" => Some(VmEvent::Shutdown { reason: reason() }),
            "DUMP_COMPLETED" => Some(VmEvent::DumpEnded { outcome: self.dump_ended()? }),
            _ => None,
        }
    }

    fn dump_ended(&self) -> Option<Result<(), String>> {
        let DumpEnd { result } = parse(self.data)?;
        match result.status.as_str() {
            "completed" => Some(Ok(())),
            _ => Some(Err(why(self.data).unwrap_or_else(|| "no reason given".to_owned()))),
        }
    }

    fn answer(&self) -> Option<Answer> {
        let id = parse(self.id)?;
        let outcome = match self.returned {
            Some(returned) => Ok(returned.get().to_owned()),
            None => Err(why(self.error).unwrap_or_else(|| "no reason given".to_owned())),
        };
        Some(Answer { id, outcome })
    }
}

/// A part of a message, if it is as expected.
fn parse<T: DeserializeOwned>(part: Option<&RawValue>) -> Option<T> {
    serde_json::from_str(part?.get()).ok()
}

/// A reason that QEMU gives, for a line of the log.
fn why(part: Option<&RawValue>) -> Option<String> {
    let Why { reason } = parse(part)?;
    Some(bounded(&reason))
}

//! A program that runs a guest, with time limits: QEMU or another VMM.
//!
//! Standard input and output are the guest's [channel](crate::channel). Standard error is only recorded: it has the
//! program's output and the console of the guest's kernel.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::channel::{Decoder, Message, Piece};

/// A command that starts `program`. The kernel kills the program when the thread that started it ends, even if that
/// thread does not clean up.
pub fn that_dies_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A running program. Dropping this kills it. Every error has the program's output.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: File,
    output: Receiver<Chunk>,
    decoder: Decoder,
    /// Messages that are not yet taken.
    messages: VecDeque<Message>,
    record: String,
    last_command: u32,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The messages of its guest that were not taken.
    pub messages: Vec<Message>,
    /// All output and messages of the program.
    pub record: String,
}

/// Result of a command in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its exit status.
    pub status: i32,
    /// Its output, without trailing white space.
    pub output: String,
}

/// The two ends of a guest's channel.
struct Channel {
    /// Standard input and output of the program.
    theirs: [OwnedFd; 2],
    input: OwnedFd,
    output: OwnedFd,
}

#[derive(Debug)]
enum Chunk {
    Channel(Vec<u8>),
    Console(Vec<u8>),
}

/// Error of a program or of its guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The program cannot be started or written to.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// The limit has passed.
    #[error("{awaited} took more than {limit:?}; the record:\n{record}")]
    TooSlow {
        /// The expected event.
        awaited: String,
        /// The limit.
        limit: Duration,
        /// All output and messages of the program.
        record: String,
    },
    /// The program ended early.
    #[error("ended with {status} before {awaited}; the record:\n{record}")]
    Ended {
        /// The expected event.
        awaited: String,
        /// Its exit status.
        status: ExitStatus,
        /// All output and messages of the program.
        record: String,
    },
    /// The guest sent another message.
    #[error("{message:?} instead of {awaited}; the record:\n{record}")]
    Unexpected {
        /// The expected event.
        awaited: String,
        /// The message.
        message: Message,
        /// All output and messages of the program.
        record: String,
    },
}

impl Process {
    /// Starts `command`, whose standard input and output are a guest's channel.
    pub fn start(command: Command) -> Result<Self, ProcessError> {
        let channel = (|| {
            let (theirs_in, ours_in) = pipe_with(PipeFlags::CLOEXEC)?;
            let (ours_out, theirs_out) = pipe_with(PipeFlags::CLOEXEC)?;
            Ok(Channel { theirs: [theirs_in, theirs_out], input: ours_in, output: ours_out })
        })();
        Self::start_with(command, channel)
    }

    /// The same on a terminal of its own, for a VMM that reads its guest's input only from a terminal.
    pub fn start_on_terminal(command: Command) -> Result<Self, ProcessError> {
        let channel = (|| {
            let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&ours)?;
            unlockpt(&ours)?;
            let name = ptsname(&ours, Vec::new())?;
            // Two openings: a VMM that makes its input non-blocking does not lose output.
            let terminal = || open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
            let theirs = [terminal()?, terminal()?];
            let mut settings = tcgetattr(&theirs[0])?;
            settings.make_raw();
            tcsetattr(&theirs[0], OptionalActions::Now, &settings)?;
            Ok(Channel { theirs, input: ours.try_clone()?, output: ours })
        })();
        Self::start_with(command, channel)
    }

    fn start_with(mut command: Command, channel: io::Result<Channel>) -> Result<Self, ProcessError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let io_error = |source| ProcessError::Io { doing: format!("starting {name}"), source };
        let Channel { theirs: [stdin, stdout], input, output } = channel.map_err(io_error)?;
        let console = pipe_with(PipeFlags::CLOEXEC).map_err(|error| io_error(error.into()))?;
        let (console_reader, console_writer) = console;
        command.stdin(stdin).stdout(stdout).stderr(console_writer);
        let child = command.spawn().map_err(io_error)?;
        // The command owns writing ends of the channel, and the readers see the end only when all of them are closed.
        drop(command);
        let (sender, chunks) = std::sync::mpsc::channel();
        forward(output, sender.clone(), Chunk::Channel);
        forward(console_reader, sender, Chunk::Console);
        let (decoder, messages) = Default::default();
        Ok(Self {
            child,
            input: input.into(),
            output: chunks,
            decoder,
            messages,
            record: String::new(),
            last_command: 0,
        })
    }

    /// The program's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits at most `limit` for the guest to announce that it has booted. Returns the text of the announcement.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<String, ProcessError> {
        let deadline = Instant::now() + limit;
        loop {
            // Skip messages of the previous boot.
            if let Message::Ready(text) = self.next_message("the guest is ready", deadline, limit)? {
                return Ok(text);
            }
        }
    }

    /// Waits at most `limit` for the next message of the guest, whatever it is.
    pub fn wait_for_message(&mut self, limit: Duration) -> Result<Message, ProcessError> {
        self.next_message("a message of the guest", Instant::now() + limit, limit)
    }

    /// Executes a shell command in the guest within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Reply, ProcessError> {
        let awaited = format!("the end of {command:?}");
        let deadline = Instant::now() + limit;
        self.last_command += 1;
        let number = self.last_command;
        let line = format!("run {number} {command}\n");
        self.send(&line)?;
        loop {
            match self.next_message(&awaited, deadline, limit)? {
                Message::Done { number: done, status, output } if done == number => {
                    return Ok(Reply { status, output });
                }
                Message::Damaged => self.send(&line)?,
                Message::Said(_) => {}
                message => return Err(ProcessError::Unexpected { awaited, message, record: self.record.clone() }),
            }
        }
    }

    /// Waits at most `limit` until the program prints `text` on its standard error, and gives the line so far.
    pub fn wait_until_printed(&mut self, text: &str, limit: Duration) -> Result<String, ProcessError> {
        let awaited = format!("{text:?}");
        let deadline = Instant::now() + limit;
        let before = self.record.len();
        loop {
            if let Some(line) = self.record[before..].lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if !self.receive(&awaited, deadline, limit)? {
                return Err(ProcessError::Ended { awaited, status: self.status()?, record: self.record.clone() });
            }
        }
    }

    /// Waits at most `limit` for the program to end.
    pub fn wait(&mut self, limit: Duration) -> Result<Ended, ProcessError> {
        let deadline = Instant::now() + limit;
        while self.receive("its end", deadline, limit)? {}
        let status = self.status()?;
        let record = std::mem::take(&mut self.record);
        Ok(Ended { status, messages: std::mem::take(&mut self.messages).into(), record })
    }

    fn send(&mut self, line: &str) -> Result<(), ProcessError> {
        self.input
            .write_all(line.as_bytes())
            .map_err(|source| ProcessError::Io { doing: format!("sending {line:?}"), source })
    }

    fn next_message(&mut self, awaited: &str, deadline: Instant, limit: Duration) -> Result<Message, ProcessError> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            if !self.receive(awaited, deadline, limit)? {
                let (awaited, status, record) = (awaited.to_owned(), self.status()?, self.record.clone());
                return Err(ProcessError::Ended { awaited, status, record });
            }
        }
    }

    /// Waits for more output. Returns false at its end.
    fn receive(&mut self, awaited: &str, deadline: Instant, limit: Duration) -> Result<bool, ProcessError> {
        let pieces = match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Chunk::Channel(bytes)) => self.decoder.feed(&bytes),
            // Serial consoles end lines with CR LF.
            Ok(Chunk::Console(bytes)) => vec![Piece::Text(String::from_utf8_lossy(&bytes).replace('\r', ""))],
            Err(RecvTimeoutError::Disconnected) => {
                let rest = self.decoder.finish();
                self.take(rest);
                return Ok(false);
            }
            Err(RecvTimeoutError::Timeout) => {
                let rest = self.decoder.clone().finish();
                self.take(rest);
                let (awaited, record) = (awaited.to_owned(), self.record.clone());
                return Err(ProcessError::TooSlow { awaited, limit, record });
            }
        };
        self.take(pieces);
        Ok(true)
    }

    fn take(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.record += &text,
                Piece::Message(message) => {
                    self.record += &format!("<{message:?}>\n");
                    self.messages.push_back(message);
                }
            }
        }
    }

    fn status(&mut self) -> Result<ExitStatus, ProcessError> {
        self.child.wait().map_err(|source| ProcessError::Io { doing: "waiting for the end".to_owned(), source })
    }
}

fn forward(reader: OwnedFd, sender: Sender<Chunk>, wrap: fn(Vec<u8>) -> Chunk) {
    thread::spawn(move || {
        let mut reader = File::from(reader);
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut chunk) {
            if sender.send(wrap(chunk[..length].to_vec())).is_err() {
                return;
            }
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::GUEST;

    const LIMIT: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Process {
        Process::start(command(script)).unwrap()
    }

    fn on_a_terminal(script: &str) -> Process {
        Process::start_on_terminal(command(script)).unwrap()
    }

    fn command(script: &str) -> Command {
        let mut command = that_dies_with_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    /// A stand-in for a guest: it announces its boot, executes two commands, and ends with status 3. It adds `shift` to
    /// the numbers of the commands in its replies.
    fn guest(shift: u32) -> Process {
        shell(&format!(
            "{GUEST}
            echo ready for this | frame
            for turn in 1 2; do
                read -r mark number command
                printf '[    7.658403] a kernel speaks' >&2
                {{ echo \"done $((number + {shift})) $turn\"; eval \"$command\"; }} | frame
                echo said aside | frame
            done
            exit 3"
        ))
    }

    #[test]
    fn a_guest_boots_executes_commands_and_ends() {
        let mut process = guest(0);
        assert_eq!(process.wait_until_ready(LIMIT).unwrap(), "for this");
        let reply = process.run("echo one; echo two", LIMIT).unwrap();
        assert_eq!(reply, Reply { status: 1, output: "one\ntwo".to_owned() });
        assert_eq!(process.run("true", LIMIT).unwrap(), Reply { status: 2, output: String::new() });
        let ended = process.wait(LIMIT).unwrap();
        assert_eq!((ended.status.code(), ended.messages), (Some(3), vec![Message::Said("aside".to_owned())]));
        assert!(ended.record.contains("a kernel speaks"), "{}", ended.record);
    }

    #[test]
    fn a_program_that_reads_only_from_a_terminal_has_one_that_changes_nothing() {
        let mut process = on_a_terminal(&format!(
            "[ -t 0 ] && [ -t 1 ] || exit 4
            {GUEST}
            echo ready 0 | frame
            read -r mark number command; {{ echo \"done $number 0\"; echo \"$command\"; }} | frame"
        ));
        process.wait_until_ready(LIMIT).unwrap();
        // A control character would be an action of a terminal, and an echo would be in the record.
        let reply = process.run("echo \u{4}\u{15}", LIMIT).unwrap();
        assert_eq!(reply.output, "echo \u{4}\u{15}");
        let record = process.wait(LIMIT).unwrap().record;
        assert!(!record.contains("run 1"), "{record:?}");
    }

    #[test]
    fn a_guest_waits_for_a_channel_that_its_kernel_adds_late() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().display();
        let mut process = on_a_terminal(&format!(
            "{GUEST}
            terminal=$(tty)
            (sleep 0.2; ln -s \"$terminal\" '{folder}/port7') &
            obey '{folder}/port*' 42"
        ));
        assert_eq!(process.wait_until_ready(LIMIT).unwrap(), "42");
    }

    #[test]
    fn text_is_awaited_that_was_not_printed_before() {
        let mut process = shell("echo up at 1 >&2; read line; echo down >&2; echo up at 2 >&2; read line");
        assert_eq!(process.wait_until_printed("up", LIMIT).unwrap(), "up at 1");
        process.send("go on\n").unwrap();
        assert_eq!(process.wait_until_printed("up", LIMIT).unwrap(), "up at 2");
        let error = process.wait_until_printed("up", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }

    #[test]
    fn messages_are_taken_one_by_one() {
        let mut process = shell(&format!("{GUEST}\necho said aside | frame; echo ready 0 | frame; read line"));
        assert_eq!(process.wait_for_message(LIMIT).unwrap(), Message::Said("aside".to_owned()));
        assert_eq!(process.wait_for_message(LIMIT).unwrap(), Message::Ready("0".to_owned()));
        let error = process.wait_for_message(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }

    #[test]
    fn a_reply_to_another_command_is_an_error() {
        let mut process = guest(1);
        process.wait_until_ready(LIMIT).unwrap();
        let error = process.run("true", LIMIT).unwrap_err();
        assert!(matches!(error, ProcessError::Unexpected { .. }), "{error}");
    }

    #[test]
    fn a_command_that_arrives_damaged_is_sent_again() {
        let mut process = shell(&format!(
            "{GUEST}
            echo ready 0 | frame
            read line; echo again | frame
            read -r mark number command; echo \"done $number 0\" | frame"
        ));
        process.wait_until_ready(LIMIT).unwrap();
        assert_eq!(process.run("true", LIMIT).unwrap(), Reply { status: 0, output: String::new() });
    }

    #[test]
    fn a_reboot_instead_of_a_reply_is_an_error() {
        let mut process = shell(&format!("{GUEST}\necho ready 0 | frame; read line; echo ready 32 | frame; read line"));
        process.wait_until_ready(LIMIT).unwrap();
        let error = process.run("true", LIMIT).unwrap_err();
        let again = Message::Ready("32".to_owned());
        assert!(matches!(&error, ProcessError::Unexpected { message, .. } if *message == again), "{error}");
    }

    #[test]
    fn the_error_of_an_early_end_has_the_record() {
        let error = shell("echo oops >&2; printf half").wait_until_ready(LIMIT).unwrap_err();
        assert!(
            matches!(&error, ProcessError::Ended { record, .. } if record.contains("oops\n") && record.contains("half")),
            "{error}"
        );
    }

    #[test]
    fn a_wait_ends_at_its_limit() {
        let error = shell("exec sleep 1000").wait(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }
}

//! A program with a console and a hard time limit: a QEMU, or a VMM of ours.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

/// A command that starts `program` in such a way that it is killed when the thread that started it ends, even if that
/// thread had no time to clean up.
pub fn that_dies_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A running program. It is killed when this is dropped, and what it has printed is in every error.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    printed: String,
    read_up_to: usize,
    limit: Duration,
    deadline: Instant,
}

/// Why a program did not do what was expected of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// The program could not be started or written to.
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It took too long.
    #[error("not within {limit:?}: {awaited}; it printed:\n{printed}")]
    TooSlow {
        /// What did not happen.
        awaited: String,
        /// The limit of the whole run.
        limit: Duration,
        /// Everything it printed.
        printed: String,
    },
    /// It ended too early.
    #[error("ended with {status} before {awaited}; it printed:\n{printed}")]
    Ended {
        /// What did not happen.
        awaited: String,
        /// How it ended.
        status: ExitStatus,
        /// Everything it printed.
        printed: String,
    },
}

impl Process {
    /// Starts `command`, whose console is its standard input and output. From now on it has `limit` to end.
    pub fn start(mut command: Command, limit: Duration) -> Result<Self, ProcessError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let io_error = |source| ProcessError::Io { doing: format!("starting {name}"), source };
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| io_error(error.into()))?;
        let errors = writer.try_clone().map_err(io_error)?;
        let mut child = command.stdin(Stdio::piped()).stdout(writer).stderr(errors).spawn().map_err(io_error)?;
        // The command holds the other end of the pipe, and the end of the output is only seen when nobody does.
        drop(command);
        let input = child.stdin.take();
        let deadline = Instant::now() + limit;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut reader = File::from(reader);
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut chunk) {
                if sender.send(chunk[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, output, printed: String::new(), read_up_to: 0, limit, deadline })
    }

    /// Types a line.
    pub fn send_line(&mut self, line: &str) -> Result<(), ProcessError> {
        let input = self.input.as_mut().expect("held until dropped");
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(|source| ProcessError::Io { doing: format!("typing {line:?}"), source })
    }

    /// Waits for a text after the last one waited for. Returns what was printed from there on, the text included.
    pub fn wait_for(&mut self, text: &str) -> Result<String, ProcessError> {
        let start = self.read_up_to;
        loop {
            if let Some(at) = self.printed[start..].find(text) {
                self.read_up_to = start + at + text.len();
                return Ok(self.printed[start..self.read_up_to].to_owned());
            }
            if !self.receive(text)? {
                let status = self.status()?;
                let (awaited, printed) = (format!("printing {text:?}"), self.printed.clone());
                return Err(ProcessError::Ended { awaited, status, printed });
            }
        }
    }

    /// Waits for the end. Returns how it ended, and everything it printed.
    pub fn wait(mut self) -> Result<(ExitStatus, String), ProcessError> {
        while self.receive("its end")? {}
        Ok((self.status()?, std::mem::take(&mut self.printed)))
    }

    /// Waits for more output; false at its end.
    fn receive(&mut self, awaited: &str) -> Result<bool, ProcessError> {
        match self.output.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => {
                let _ = write!(self.printed, "{}", String::from_utf8_lossy(&chunk));
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => Err(ProcessError::TooSlow {
                awaited: awaited.to_owned(),
                limit: self.limit,
                printed: self.printed.clone(),
            }),
        }
    }

    fn status(&mut self) -> Result<ExitStatus, ProcessError> {
        self.child.wait().map_err(|source| ProcessError::Io { doing: "waiting for the end".to_owned(), source })
    }
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

    fn shell(script: &str, limit: Duration) -> Process {
        let mut command = that_dies_with_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        Process::start(command, limit).unwrap()
    }

    #[test]
    fn a_dialogue() {
        let mut process = shell("echo ready; read word; echo got $word; exit 3", Duration::from_secs(10));
        process.wait_for("ready\n").unwrap();
        process.send_line("this").unwrap();
        assert_eq!(process.wait_for("this\n").unwrap(), "got this\n");
        let (status, printed) = process.wait().unwrap();
        assert_eq!((status.code(), printed.as_str()), (Some(3), "ready\ngot this\n"));
    }

    #[test]
    fn an_early_end_shows_the_output() {
        let error = shell("echo oops >&2", Duration::from_secs(10)).wait_for("ready").unwrap_err();
        assert!(matches!(&error, ProcessError::Ended { printed, .. } if printed == "oops\n"), "{error}");
    }

    #[test]
    fn the_limit_is_hard() {
        let error = shell("exec sleep 1000", Duration::from_millis(100)).wait().unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }
}

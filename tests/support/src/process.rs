//! A program with a console and a hard time limit: a QEMU, or a VMM of ours.

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
    #[error("{awaited} took more than {limit:?}; it printed:\n{printed}")]
    TooSlow {
        /// What did not happen.
        awaited: String,
        /// How long it could have taken.
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
    /// Starts `command`, whose console is its standard input and output.
    pub fn start(mut command: Command) -> Result<Self, ProcessError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let io_error = |source| ProcessError::Io { doing: format!("starting {name}"), source };
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| io_error(error.into()))?;
        let errors = writer.try_clone().map_err(io_error)?;
        let mut child = command.stdin(Stdio::piped()).stdout(writer).stderr(errors).spawn().map_err(io_error)?;
        // The command holds the other end of the pipe, and the end of the output is only seen when nobody does.
        drop(command);
        let input = child.stdin.take();
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
        Ok(Self { child, input, output, printed: String::new(), read_up_to: 0 })
    }

    /// Types a line.
    pub fn send_line(&mut self, line: &str) -> Result<(), ProcessError> {
        let input = self.input.as_mut().expect("held until dropped");
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(|source| ProcessError::Io { doing: format!("typing {line:?}"), source })
    }

    /// Waits at most `limit` for a text after the last one waited for. Returns what was printed from there on, the text
    /// included.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String, ProcessError> {
        let awaited = format!("printing {text:?}");
        let deadline = Instant::now() + limit;
        let start = self.read_up_to;
        loop {
            if let Some(at) = self.printed[start..].find(text) {
                self.read_up_to = start + at + text.len();
                return Ok(self.printed[start..self.read_up_to].to_owned());
            }
            if !self.receive(&awaited, deadline, limit)? {
                let (status, printed) = (self.status()?, self.printed.clone());
                return Err(ProcessError::Ended { awaited, status, printed });
            }
        }
    }

    /// Waits at most `limit` for the end. Returns how it ended, and everything it printed.
    pub fn wait(mut self, limit: Duration) -> Result<(ExitStatus, String), ProcessError> {
        let deadline = Instant::now() + limit;
        while self.receive("its end", deadline, limit)? {}
        Ok((self.status()?, std::mem::take(&mut self.printed)))
    }

    /// Waits for more output; false at its end.
    fn receive(&mut self, awaited: &str, deadline: Instant, limit: Duration) -> Result<bool, ProcessError> {
        match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(chunk) => {
                // Serial consoles end lines with CR LF.
                self.printed.extend(String::from_utf8_lossy(&chunk).chars().filter(|&character| character != '\r'));
                Ok(true)
            }
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                let (awaited, printed) = (awaited.to_owned(), self.printed.clone());
                Err(ProcessError::TooSlow { awaited, limit, printed })
            }
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

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Process {
        let mut command = that_dies_with_us(Path::new("/bin/sh"));
        command.args(["-c", script]);
        Process::start(command).unwrap()
    }

    #[test]
    fn a_dialogue() {
        let mut process = shell("echo ready; read word; echo got $word; exit 3");
        process.wait_for("ready\n", LIMIT).unwrap();
        process.send_line("this").unwrap();
        assert_eq!(process.wait_for("this\n", LIMIT).unwrap(), "got this\n");
        let (status, printed) = process.wait(LIMIT).unwrap();
        assert_eq!((status.code(), printed.as_str()), (Some(3), "ready\ngot this\n"));
    }

    #[test]
    fn an_early_end_shows_the_output() {
        let error = shell("echo oops >&2").wait_for("ready", LIMIT).unwrap_err();
        assert!(matches!(&error, ProcessError::Ended { printed, .. } if printed == "oops\n"), "{error}");
    }

    #[test]
    fn the_limit_is_hard() {
        let error = shell("exec sleep 1000").wait(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }
}

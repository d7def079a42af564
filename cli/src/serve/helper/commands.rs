//! Runs the command of the operator, in the helper. Each one runs in a process group of its own and ends with the helper.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Serialize;
use vm_watchdog_timeline::Expiry;

use crate::exit;
use crate::serve::helper::messages::Subject;

/// How long a command may run.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of the helper waits after SIGTERM for the commands to end, and again after SIGKILL.
pub const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// The command, and those that are running, so that none of them outlives the helper.
#[derive(Debug)]
pub struct Commands {
    command: String,
    watchdogs: Vec<Subject>,
    state: Mutex<State>,
    /// Signalled when a command has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The process groups of the commands. Their leaders have not been reaped, so the ids are still theirs.
    running: Vec<Pid>,
    is_stopping: bool,
}

/// A command that is running, or has not been reaped.
struct Running {
    child: Child,
    group: Pid,
    pidfd: OwnedFd,
}

/// The event on the command's standard input.
#[derive(Serialize)]
struct Input<'a> {
    id: &'a str,
    socket: String,
    #[serde(flatten)]
    expiry: Expiry,
}

impl Commands {
    /// Runs `command` for these watchdogs.
    pub fn new(command: String, watchdogs: Vec<Subject>) -> Self {
        Self { command, watchdogs, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Runs the command in a shell and waits for it.
    ///
    /// # Errors
    ///
    /// Why it did not run, or its status if that is not 0.
    pub fn run(&self, watchdog: usize, expiry: Expiry) -> Result<(), String> {
        let watchdog = self.watchdogs.get(watchdog).ok_or("there is no such watchdog")?;
        let mut shell = shell(&self.command, watchdog, expiry).map_err(|error| error.to_string())?;
        let mut running = self.start(&mut shell)?;
        let has_ended = running.has_ended_within(COMMAND_TIMEOUT);
        if !has_ended {
            signal(running.group, Signal::KILL);
        }
        let status = self.finish(&mut running).map_err(|error| error.to_string())?;
        match status {
            _ if !has_ended => Err(format!("the command has not ended within {COMMAND_TIMEOUT:?} and was killed")),
            status if status.success() => Ok(()),
            status => Err(format!("the command failed: {status}")),
        }
    }

    /// Ends the running commands with their process groups, and starts no more.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_stopping = true;
        for request in [Signal::TERM, Signal::KILL] {
            state.running.iter().for_each(|&group| signal(group, request));
            let are_running = |state: &mut State| !state.running.is_empty();
            let waited = self.ended.wait_timeout_while(state, STOP_TIMEOUT, are_running);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts a command in a process group of its own.
    fn start(&self, shell: &mut Command) -> Result<Running, String> {
        // Locked, so that no command starts while `stop` ends the others.
        let mut state = self.state();
        if state.is_stopping {
            return Err("the server is about to end".into());
        }
        let mut child =
            shell.process_group(0).spawn().map_err(|error| format!("the command cannot be run: {error}"))?;
        let group = Pid::from_child(&child);
        match rustix::process::pidfd_open(group, PidfdFlags::empty()) {
            Ok(pidfd) => {
                state.running.push(group);
                Ok(Running { child, group, pidfd })
            }
            Err(errno) => {
                signal(group, Signal::KILL);
                // It was killed, and is waited for so that it leaves no entry in the table of processes.
                let _ = child.wait();
                Err(format!("the command cannot be waited for: {errno}"))
            }
        }
    }

    /// Waits for the end of a command and reaps it.
    fn finish(&self, running: &mut Running) -> io::Result<ExitStatus> {
        // Without the lock, because a process in an uninterruptible call does not end.
        while !running.has_ended_within(COMMAND_TIMEOUT) {}
        let mut state = self.state();
        if state.is_stopping {
            // The command has ended, but a process that it started may have ignored SIGTERM.
            signal(running.group, Signal::KILL);
        }
        let status = running.child.wait();
        state.running.retain(|&group| group != running.group);
        self.ended.notify_all();
        status
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `command` in a shell that is given the event.
fn shell(command: &str, watchdog: &Subject, expiry: Expiry) -> io::Result<Command> {
    let Subject { id, socket } = watchdog;
    let input = Input { id, socket: socket.to_string_lossy().into_owned(), expiry };
    let Expiry { stage, action, attempt, deadline_ns, observed_ns, lateness_ns } = &input.expiry;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .env("WATCHDOG_ID", input.id)
        .env("WATCHDOG_SOCKET", socket)
        .env("WATCHDOG_STAGE", stage.to_string())
        .env("WATCHDOG_ACTION", action.as_str())
        .env("WATCHDOG_ATTEMPT", attempt.to_string())
        .env("WATCHDOG_DEADLINE_NS", deadline_ns.to_string())
        .env("WATCHDOG_OBSERVED_NS", observed_ns.to_string())
        .env("WATCHDOG_LATENESS_NS", lateness_ns.to_string())
        .stdin(stdin(&input)?)
        // Standard output of the server is for its events.
        .stdout(io::stderr());
    Ok(shell)
}

/// The event, in a file: writing to a pipe could block until the command reads.
fn stdin(input: &Input<'_>) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("event", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&file, input)?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file)
}

impl Running {
    /// Waits for its end, up to `limit`.
    fn has_ended_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                ended => return ended.is_ok_and(|count| count > 0),
            }
        }
    }
}

/// Signals every process of a group.
fn signal(group: Pid, signal: Signal) {
    if let Err(error) = rustix::process::kill_process_group(group, signal) {
        exit::report(&format!("the command of an action cannot be signalled: {error}"));
    }
}

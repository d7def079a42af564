//! A command of the operator's as the one who acts.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Serialize;
use vm_watchdog::{Action, Event, HandlerError, Stage};

/// How long a command may run.
const LIMIT: Duration = Duration::from_secs(30);

/// The event on the command's standard input.
#[derive(Serialize)]
struct Input<'a> {
    id: &'a str,
    socket: String,
    stage: Stage,
    action: Action,
    attempt: u32,
    deadline_ns: u64,
    observed_ns: u64,
    lateness_ns: u64,
}

/// Runs `command` in a shell and waits for it.
pub fn run(command: &str, event: &Event, socket: &Path) -> Result<(), HandlerError> {
    let input = Input {
        id: &event.id,
        socket: socket.display().to_string(),
        stage: event.stage,
        action: event.action,
        attempt: event.attempt,
        deadline_ns: event.deadline.as_nanos(),
        observed_ns: event.observed.as_nanos(),
        lateness_ns: u64::try_from(event.lateness().as_nanos()).unwrap_or(u64::MAX),
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("WATCHDOG_ID", input.id)
        .env("WATCHDOG_SOCKET", socket)
        .env("WATCHDOG_STAGE", input.stage.to_string())
        .env("WATCHDOG_ACTION", input.action.as_str())
        .env("WATCHDOG_ATTEMPT", input.attempt.to_string())
        .env("WATCHDOG_DEADLINE_NS", input.deadline_ns.to_string())
        .env("WATCHDOG_OBSERVED_NS", input.observed_ns.to_string())
        .env("WATCHDOG_LATENESS_NS", input.lateness_ns.to_string())
        .stdin(stdin(&input)?)
        // Standard output has the events of this process.
        .stdout(io::stderr())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("the command cannot be run: {error}"))?;
    let status = match wait(&mut child) {
        Ok(true) => child.wait()?,
        outcome => {
            kill(&mut child);
            outcome?;
            return Err(format!("the command has not ended within {LIMIT:?} and was killed").into());
        }
    };
    if status.success() { Ok(()) } else { Err(format!("the command failed: {status}").into()) }
}

/// The event to read, in a file: a pipe may be too small for it, and then waits for a command that does not read.
fn stdin(input: &Input<'_>) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("event", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&file, input)?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file)
}

/// Waits for the command; false if it takes too long.
fn wait(child: &mut Child) -> io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(pid(child)?, PidfdFlags::empty())?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Ends the command with all that it has started.
fn kill(child: &mut Child) {
    let killed = pid(child).map(|pid| rustix::process::kill_process_group(pid, Signal::KILL));
    if let Err(error) = killed {
        log::error!("the command of an action cannot be killed: {error}");
    }
    // It has been killed, so this does not take long.
    let _ = child.wait();
}

fn pid(child: &Child) -> io::Result<Pid> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the command has no process id"))
}

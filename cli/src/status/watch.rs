//! `vm-watchdog status --watch`: draws the table again and again, in place on a terminal, until a signal.
//!
//! A frame is one write that begins at the top left corner and erases what is left of the frame before it, so that nothing
//! flickers. The terminal is in no special state between two frames, and the last one stays on it.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::status::row::Vm;
use crate::status::table::{lines, summary};
use crate::status::{LIMIT, StatusArguments, json_line, terminal_size};

const TOP_LEFT: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// Shows the VMs every `interval` until SIGINT or SIGTERM, or until its output is closed.
///
/// # Errors
///
/// The folder cannot be read, or the host refuses.
pub fn run(arguments: &StatusArguments, interval: Duration) -> io::Result<ExitCode> {
    let (end, signal) = UnixStream::pair()?;
    for number in [SIGINT, SIGTERM] {
        pipe::register(number, signal.try_clone()?)?;
    }
    let is_terminal = io::stdout().is_terminal() && !arguments.json;
    loop {
        let next = Instant::now() + interval;
        // A server that does not answer delays no frame.
        let Some(vms) = arguments.look(LIMIT.min(interval), Some(end.as_fd()))? else { break };
        let text = if is_terminal { frame(arguments, &vms, interval) } else { block(arguments, &vms) };
        let mut stdout = io::stdout();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            break;
        }
        if wait(&end, next)? {
            break;
        }
    }
    if is_terminal {
        // The line of ctrl-C.
        let _ = io::stdout().write_all(b"\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until `next`; true if the end comes before.
fn wait(end: &UnixStream, next: Instant) -> io::Result<bool> {
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The screen.
fn frame(arguments: &StatusArguments, vms: &[Vm], interval: Duration) -> String {
    let look = arguments.appearance();
    let mut all = vec![format!("{}, every {interval:?}", summary(vms)), String::new()];
    all.extend(lines(vms, look));
    // The cursor needs the last line.
    let height = terminal_size().map_or(usize::MAX, |(height, _)| height).saturating_sub(1).max(1);
    if all.len() > height {
        let hidden = all.len() - (height - 1);
        all.truncate(height - 1);
        all.push(format!("… {hidden} more lines"));
    }
    let body: String = all.iter().map(|line| format!("{line}{ERASE_LINE}\n")).collect();
    format!("{TOP_LEFT}{body}{ERASE_BELOW}")
}

/// What a program reads.
fn block(arguments: &StatusArguments, vms: &[Vm]) -> String {
    if arguments.json {
        return json_line(vms);
    }
    lines(vms, arguments.appearance()).join("\n") + "\n\n"
}

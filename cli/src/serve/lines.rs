//! Where events are written: an output that never blocks a watchdog, and that counts what it loses.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use vm_watchdog::VmClock;
use vm_watchdog_timeline::{Format, to_line};

use crate::serve::events::{Entry, ServerEvent};
use crate::serve::locked_file::open_regular;

/// How many lines wait for the writer. Further lines are counted, and lost.
const QUEUE_LENGTH: usize = 1024;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The permissions of a new events file.
const MODE: u32 = 0o640;

/// Queues lines for a thread that writes them, so that a slow reader or disk blocks no watchdog.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Line>,
    /// How many lines did not fit since the last one that did.
    lost: u64,
    /// Whether the writer shall open its file anew.
    reopen: bool,
    /// Whether the writer has a line in hand.
    is_writing: bool,
    /// Whether no more lines come.
    is_ending: bool,
}

struct Line {
    /// How many lines before it are lost.
    lost: u64,
    bytes: Vec<u8>,
}

/// The thread's side.
pub struct Writer {
    shared: Arc<Shared>,
    /// The file, if it is not standard output.
    path: Option<PathBuf>,
    out: File,
    format: Format,
    clock: VmClock,
    /// Whether the output ends within a line.
    is_torn: bool,
    /// How many lines are lost since the last one that was written.
    lost: u64,
}

/// Opens the file at `path` for appending, or standard output. Lines wait until the writer has started.
///
/// # Errors
///
/// The file cannot be opened or is no regular file, or the host refuses.
pub fn open(path: Option<PathBuf>, format: Format) -> io::Result<(Lines, Writer)> {
    let (out, is_torn) = match &path {
        Some(path) => open_file(path)?,
        None => (File::from(io::stdout().as_fd().try_clone_to_owned()?), false),
    };
    let shared = Arc::<Shared>::default();
    let lines = Lines { shared: shared.clone() };
    Ok((lines, Writer { shared, path, out, format, clock: VmClock::monotonic(), is_torn, lost: 0 }))
}

/// Opens a file for appending, and returns whether it ends within a line.
fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let file = open_regular(OpenOptions::new().read(true).append(true).create(true).mode(MODE), path)?;
    let mut last = [b'\n'];
    if let Some(at) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok((file, last != [b'\n']))
}

impl Lines {
    /// Opens the file anew before the next line, for programs that rotate logs. Does nothing to standard output.
    pub fn reopen(&self) {
        self.shared.queue().reopen = true;
        self.shared.changed.notify_all();
    }

    /// Waits up to a second until the queued lines are written.
    pub fn finish(self) {
        let mut queue = self.shared.queue();
        queue.is_ending = true;
        self.shared.changed.notify_all();
        let has_lines = |queue: &mut Queue| queue.is_writing || queue.lost > 0 || !queue.waiting.is_empty();
        drop(self.shared.changed.wait_timeout_while(queue, FLUSH_TIMEOUT, has_lines));
    }
}

impl Write for Lines {
    /// Queues a line, or counts it as lost.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.shared.queue();
        if queue.waiting.len() < QUEUE_LENGTH {
            let lost = std::mem::take(&mut queue.lost);
            queue.waiting.push_back(Line { lost, bytes: line.to_vec() });
            self.shared.changed.notify_all();
        } else {
            queue.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Writes lines from now on, on a thread of its own.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start a thread.
    pub fn start(mut self) -> io::Result<()> {
        thread::Builder::new().name("events".into()).spawn(move || self.run())?;
        Ok(())
    }

    fn run(&mut self) {
        let shared = self.shared.clone();
        let mut queue = shared.queue();
        loop {
            queue.is_writing = true;
            if std::mem::take(&mut queue.reopen) {
                drop(queue);
                self.reopen();
            } else if let Some(Line { lost, bytes }) = queue.waiting.pop_front() {
                drop(queue);
                self.lost += lost;
                if self.write_line(&bytes).is_err() {
                    self.lost += 1;
                }
            } else if queue.is_ending && queue.lost > 0 {
                self.lost += std::mem::take(&mut queue.lost);
                drop(queue);
                // If the output is closed or full, there is no place left to report that.
                let _ = self.write_lost();
            } else {
                queue.is_writing = false;
                shared.changed.notify_all();
                queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue = shared.queue();
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else {
            return;
        };
        match open_file(path) {
            Ok((out, is_torn)) => (self.out, self.is_torn) = (out, is_torn),
            Err(error) => log::error!("events file {} is not opened anew: {error}", path.display()),
        }
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.write_lost()?;
        self.write_all(line)
    }

    /// Ends a line that is not complete, and says how many lines are lost.
    fn write_lost(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        if self.lost > 0 {
            let lost = Entry::of_server(ServerEvent::Lost { events: self.lost });
            self.write_all(to_line(self.format, &lost, self.clock.now(), 0).as_bytes())?;
            self.lost = 0;
        }
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(count) if count > 0 => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process has made standard output non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rustix::event::poll(&mut [PollFd::new(&self.out, PollFlags::OUT)], None)?;
                }
                outcome => {
                    self.is_torn |= rest.len() < bytes.len();
                    return outcome.and(Err(io::ErrorKind::WriteZero.into()));
                }
            }
        }
        Ok(())
    }
}

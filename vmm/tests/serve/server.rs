//! The server as a process, and what it tells.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;

/// Long enough for any thread to run, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running server in a folder of its own.
pub struct Server {
    child: Child,
    events: Receiver<Value>,
    /// Where its sockets are.
    pub folder: TempDir,
}

/// A server to be started.
pub struct Builder {
    folder: TempDir,
    command: Command,
}

impl Builder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
        command.current_dir(&folder).args(["serve", "--events=json"]).stdout(Stdio::piped()).stdin(Stdio::null());
        // The sockets of a service manager that runs the tests are not for the server.
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
        Self { folder, command }
    }

    /// Further options, as in a shell without quotes.
    pub fn options(mut self, line: &str) -> Self {
        self.command.args(line.split_whitespace());
        self
    }

    pub fn option(mut self, option: &str, value: &str) -> Self {
        self.command.arg(option).arg(value);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The folder that the server runs in.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it and waits until all its sockets listen.
    pub fn start(self) -> Server {
        self.start_and(|_| {})
    }

    /// Starts it, looks at what it tells before its sockets listen, and waits until they do.
    pub fn start_and(mut self, first: impl FnOnce(&Server)) -> Server {
        let mut child = self.command.spawn().unwrap();
        let (sender, events) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines() {
                let event = serde_json::from_str(&line.unwrap()).expect("a line of JSON");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let sockets = self.command.get_args().filter(|argument| *argument == "--socket").count();
        let server = Server { child, events, folder: self.folder };
        first(&server);
        for _ in 0..sockets {
            server.expect("listening");
        }
        server
    }

    /// Starts it where it cannot work, and gives its status and what it said.
    pub fn fail(mut self) -> (i32, String) {
        let mut child = self.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let status = Server { child, events: channel().1, folder: self.folder }.end();
        let mut message = String::new();
        stderr.read_to_string(&mut message).unwrap();
        (status.code().expect("an exit status"), message)
    }
}

impl Server {
    /// A server with one watchdog, whose socket is `s`, and no action.
    pub fn harmless() -> Self {
        Builder::new().options("--socket s --watchdog i6300esb,action=none").start()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client that has said nothing yet.
    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(self.path("s")).unwrap()
    }

    /// A client that has agreed on the version.
    pub fn client(&self) -> Client {
        self.client_of("s")
    }

    pub fn client_of(&self, socket: &str) -> Client {
        let mut client = Client::connect(&self.path(socket));
        client.negotiate();
        client
    }

    /// Waits for an event of this name, and skips others.
    pub fn expect(&self, name: &str) -> Value {
        self.expect_where(name, |_| true)
    }

    /// Waits for an event of this name that is the one.
    pub fn expect_where(&self, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut skipped = Vec::new();
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) if event["event"] == name && is_it(&event) => return event,
                Ok(other) => skipped.push(other),
                Err(RecvTimeoutError::Timeout) => panic!("no event {name} within {PATIENCE:?}, but {skipped:#?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the server has ended: no event {name}, but {skipped:#?}")
                }
            }
        }
    }

    /// Sees that no event of this name comes for a while.
    pub fn expect_none(&self, name: &str, quiet: Duration) {
        let deadline = Instant::now() + quiet;
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            assert_ne!(event["event"], name, "{event}");
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it have so many files open, or as many as it started with.
    pub fn limit_files(&self, limit: Option<u64>) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: limit.or(maximum), maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// Ends it with a signal.
    pub fn signal(&mut self, signal: rustix::process::Signal) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.end()
    }

    /// Waits for its end.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it and gives its folder to the next one.
    pub fn replaced_by(self, options: &str) -> Server {
        self.replaced_by_and(options, |_| {})
    }

    /// The same, with a look at what the next one tells first.
    pub fn replaced_by_and(mut self, options: &str, first: impl FnOnce(&Server)) -> Server {
        self.signal(rustix::process::Signal::KILL);
        let empty = tempfile::tempdir().unwrap();
        let folder = std::mem::replace(&mut self.folder, empty);
        drop(self);
        let mut builder = Builder::new();
        builder.command.current_dir(&folder);
        builder.folder = folder;
        builder.options(options).start_and(first)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

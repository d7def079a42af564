//! The server as a process, and its events.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;

/// The limit of a wait for another thread or process, also on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the end of a test waits for its server to end, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server in a folder of its own.
pub struct Server {
    child: Child,
    events: Receiver<Value>,
    /// Events that [`Server::await_control`] received before the one that it waits for.
    kept: RefCell<VecDeque<Value>>,
    /// Where its sockets are.
    pub folder: TempDir,
}

/// A server to be started.
pub struct Builder {
    folder: TempDir,
    command: Command,
}

impl Builder {
    /// The program that cargo has built, or the one that the variable names, such as one for another processor.
    pub fn new() -> Self {
        let named = std::env::var_os("VM_WATCHDOG_PROGRAM");
        Self::of(Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_vm-watchdog").into())))
    }

    /// A server whose system calls strace writes to `trace.TID` in the server's folder.
    pub fn traced(calls: &str) -> Self {
        let mut strace = strace(calls);
        strace.arg(env!("CARGO_BIN_EXE_vm-watchdog"));
        Self::of(strace)
    }

    /// A traced server in which each of these system calls begins so much later.
    pub fn delayed(calls: &str, delay: Duration) -> Self {
        let mut strace = strace(calls);
        strace.arg("-e").arg(format!("inject={calls}:delay_enter={}", delay.as_micros()));
        strace.arg(env!("CARGO_BIN_EXE_vm-watchdog"));
        Self::of(strace)
    }

    /// A server whose host refuses these system calls.
    pub fn refused(calls: &str, errno: &str) -> Self {
        let mut strace = strace(calls);
        strace.arg("-e").arg(format!("inject={calls}:error={errno}"));
        strace.arg(env!("CARGO_BIN_EXE_vm-watchdog"));
        Self::of(strace)
    }

    fn of(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
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

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Returns the reading end of its standard error, too.
    pub fn with_stderr(mut self) -> (Self, UnixStream) {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_read_timeout(Some(TIMEOUT)).unwrap();
        self.command.stderr(OwnedFd::from(writer));
        (self, reader)
    }

    /// The folder that the server runs in.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it and waits until all its sockets listen.
    pub fn start(self) -> Server {
        self.start_and(|_| {})
    }

    /// Starts it, checks its events before its sockets listen, and waits until they do.
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
        let server = Server { child, events, kept: RefCell::default(), folder: self.folder };
        first(&server);
        for _ in 0..sockets {
            server.expect("listening");
        }
        server
    }

    /// Starts it without waiting, because its events do not go to standard output.
    pub fn start_silent(mut self) -> Server {
        let child = self.command.stdout(Stdio::null()).spawn().unwrap();
        Server { child, events: channel().1, kept: RefCell::default(), folder: self.folder }
    }

    /// Starts it with options that are an error, and returns its status and its message.
    pub fn fail(mut self) -> (i32, String) {
        let mut child = self.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let status = Server { child, events: channel().1, kept: RefCell::default(), folder: self.folder }.end();
        let mut message = String::new();
        stderr.read_to_string(&mut message).unwrap();
        (status.code().expect("an exit status"), message)
    }
}

fn strace(calls: &str) -> Command {
    let mut strace = Command::new("strace");
    // The server stays our child, and each of its threads has a file of its own.
    strace.args(["--daemonize", "--quiet=attach,personality", "-ff", "-y", "-o", "trace", "-e"]);
    strace.arg(format!("trace={calls}"));
    strace
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

    /// A client that has sent nothing yet.
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

    /// Waits for an event of this name that matches.
    pub fn expect_where(&self, name: &str, matches: impl Fn(&Value) -> bool) -> Value {
        self.find(name, matches).1
    }

    /// Waits for an event of this name, which must come before any event called `too_early`.
    pub fn expect_before(&self, name: &str, too_early: &str) -> Value {
        let (skipped, event) = self.find(name, |_| true);
        assert!(
            skipped.iter().all(|skipped| skipped["event"] != too_early),
            "{too_early} before {event}: {skipped:#?}"
        );
        event
    }

    /// Waits until the control socket of the VM is connected, and keeps other events for later calls.
    pub fn await_control(&self) {
        let (skipped, _) = self.find("control", |event| event["connected"] == true);
        self.kept.borrow_mut().extend(skipped);
    }

    /// An event, and those before it.
    pub fn find(&self, name: &str, matches: impl Fn(&Value) -> bool) -> (Vec<Value>, Value) {
        self.find_within(TIMEOUT, name, matches)
    }

    /// The same with another limit.
    pub fn find_within(&self, limit: Duration, name: &str, matches: impl Fn(&Value) -> bool) -> (Vec<Value>, Value) {
        let deadline = Instant::now() + limit;
        let mut skipped = Vec::new();
        loop {
            match self.next_event(deadline) {
                Ok(event) if event["event"] == name && matches(&event) => return (skipped, event),
                Ok(other) => skipped.push(other),
                Err(RecvTimeoutError::Timeout) => panic!("no event {name} within {limit:?}, but {skipped:#?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the server has ended: no event {name}, but {skipped:#?}")
                }
            }
        }
    }

    /// Checks that no event of this name arrives for a while.
    pub fn expect_none(&self, name: &str, quiet: Duration) {
        let deadline = Instant::now() + quiet;
        while let Ok(event) = self.next_event(deadline) {
            assert_ne!(event["event"], name, "{event}");
        }
    }

    fn next_event(&self, deadline: Instant) -> Result<Value, RecvTimeoutError> {
        match self.kept.borrow_mut().pop_front() {
            Some(event) => Ok(event),
            None => self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until so many of its threads with this name are in one of these system calls.
    pub fn wait_for_threads(&self, count: usize, name: &str, calls: &[&str]) {
        let deadline = Instant::now() + TIMEOUT;
        // A thread may end meanwhile.
        let is_in_call = |thread: &Path| {
            let call = fs::read_to_string(thread.join("syscall")).unwrap_or_default();
            fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name)
                && call.split_whitespace().next().is_some_and(|number| calls.contains(&number))
        };
        let threads =
            || fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().map(|thread| thread.unwrap().path());
        while threads().filter(|thread| is_in_call(thread)).count() != count {
            assert!(Instant::now() < deadline, "not {count} threads {name} are in {calls:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Limits its open files; `None` is the limit at its start.
    pub fn limit_files(&self, limit: Option<u64>) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: limit.or(maximum), maximum };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// Limits the length of its files; `None` is no limit.
    pub fn limit_file_length(&self, limit: Option<u64>) {
        let limit = Rlimit { current: limit, maximum: None };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).unwrap();
    }

    /// Sends a signal that does not end it.
    pub fn send_signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it with a signal.
    pub fn signal(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.end()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
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

    /// Kills it and starts the next one in its folder.
    pub fn replaced_by(self, options: &str) -> Server {
        self.replaced_by_and(options, |_| {})
    }

    /// The same, and checks the first events of the next one.
    pub fn replaced_by_and(mut self, options: &str, first: impl FnOnce(&Server)) -> Server {
        self.signal(Signal::KILL);
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
        // SIGTERM first, so that it ends the commands that it has started.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The system calls of each thread of a traced server that has ended.
pub fn traces(server: &Server) -> Vec<String> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let files = fs::read_dir(server.folder.path()).unwrap().map(|file| file.unwrap());
        let traces = files.filter(|file| file.file_name().to_str().unwrap().starts_with("trace."));
        let traces: Vec<_> = traces.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
        // strace may write the end of a thread after the server has ended.
        if !traces.is_empty() && traces.iter().all(|trace| trace.trim_end().ends_with("+++")) {
            return traces;
        }
        assert!(Instant::now() < deadline, "strace does not end: {traces:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

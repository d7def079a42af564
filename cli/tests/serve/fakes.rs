//! Fakes of the control sockets of VMMs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use crate::server::{Server, TIMEOUT};

/// A QEMU that listens on a QMP socket and records the commands.
pub struct FakeQmp {
    listener: UnixListener,
}

/// One connection to it, past the greeting.
pub struct QmpClient {
    stream: UnixStream,
    commands: Receiver<Value>,
}

impl FakeQmp {
    pub fn listen(path: &Path) -> Self {
        Self { listener: UnixListener::bind(path).unwrap() }
    }

    /// Waits for the server to connect, greets it, says whether the VM runs, and waits until the server is ready to act.
    ///
    /// There is no other way to a [`QmpClient`], so no test lets a watchdog expire for QMP before that by accident.
    pub fn accept(&self, server: &Server, running: bool) -> QmpClient {
        let client = self.accept_unseen(running);
        server.await_control();
        client
    }

    /// The same for a server whose events the test does not receive.
    pub fn accept_unseen(&self, running: bool) -> QmpClient {
        let stream = self.accept_silently();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut client = QmpClient { commands: reader(stream.try_clone().unwrap()), stream };
        client.say(json!({"QMP": {"version": {"qemu": {"major": 11}}, "capabilities": ["oob"]}}));
        client.answer("qmp_capabilities", json!({}));
        // An event before the answer is processed, and an unknown event is ignored.
        client.event("NIC_RX_FILTER_CHANGED");
        let status = if running { "running" } else { "paused" };
        client.answer("query-status", json!({"status": status, "running": running}));
        client
    }

    /// Accepts and sends nothing, as while another client is connected.
    pub fn accept_silently(&self) -> UnixStream {
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&timeout));
        assert_eq!(ready, Ok(1), "no connection");
        self.listener.accept().unwrap().0
    }
}

fn reader(stream: UnixStream) -> Receiver<Value> {
    let (sender, commands): (Sender<Value>, _) = channel();
    stream.set_read_timeout(None).unwrap();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let command = serde_json::from_str(&line).expect("a command");
            if sender.send(command).is_err() {
                return;
            }
        }
    });
    commands
}

impl QmpClient {
    pub fn say(&mut self, message: Value) {
        self.stream.write_all(format!("{message}\r\n").as_bytes()).unwrap();
    }

    pub fn event(&mut self, name: &str) {
        let timestamp = json!({"seconds": 1, "microseconds": 2});
        self.say(json!({"event": name, "timestamp": timestamp, "data": {"reason": "host-qmp"}}));
    }

    /// Pauses the VM, and returns the time on its paused clock.
    pub fn pause(&mut self, server: &Server) -> u64 {
        self.event("STOP");
        server.expect("paused")["vm_time_ns"].as_u64().unwrap()
    }

    /// Resumes the VM.
    pub fn resume(&mut self, server: &Server) {
        self.event("RESUME");
        server.expect("resumed");
    }

    /// The time of the VM: any event that QEMU reports is written with it. This one is about a VM that has shut down.
    pub fn vm_time(&mut self, server: &Server) -> u64 {
        self.event("SHUTDOWN");
        server.expect_where("vm", |event| event["name"] == "shutdown")["vm_time_ns"].as_u64().unwrap()
    }

    /// The next command, with a timeout.
    pub fn command(&mut self) -> Value {
        self.commands.recv_timeout(TIMEOUT).expect("a command")
    }

    /// The next command, if it comes soon enough.
    pub fn command_within(&mut self, limit: Duration) -> Option<Value> {
        self.commands.recv_timeout(limit).ok()
    }

    /// No command comes for a while.
    pub fn no_command(&mut self, quiet: Duration) {
        if let Ok(command) = self.commands.recv_timeout(quiet) {
            panic!("{command}");
        }
    }

    /// Waits for this command and answers it. Returns its arguments.
    pub fn answer(&mut self, name: &str, answer: Value) -> Value {
        let command = self.command();
        assert_eq!(command["execute"], name, "{command}");
        self.say(json!({"return": answer, "id": command["id"]}));
        command["arguments"].clone()
    }

    pub fn refuse(&mut self, name: &str, reason: &str) {
        let command = self.command();
        assert_eq!(command["execute"], name, "{command}");
        self.say(json!({"error": {"class": "GenericError", "desc": reason}, "id": command["id"]}));
    }
}

/// A Cloud Hypervisor that answers each call with the next of these, and records the calls.
pub fn cloud_hypervisor(path: &Path, answers: Vec<&'static str>) -> Receiver<String> {
    let listener = UnixListener::bind(path).unwrap();
    let (sender, calls) = channel();
    thread::spawn(move || {
        for answer in answers {
            // The server also connects to see which process is there, and sends nothing.
            let (mut stream, request) = std::iter::repeat_with(|| listener.accept().unwrap().0)
                .map(|mut stream| (request(&mut stream), stream))
                .find_map(|(request, stream)| Some((stream, request?)))
                .unwrap();
            let request = String::from_utf8(request).unwrap();
            // In pieces, like a slow server.
            for piece in answer.as_bytes().chunks(7) {
                // The server may have closed the connection before.
                if stream.write_all(piece).is_err() {
                    break;
                }
            }
            if sender.send(request.lines().next().unwrap().to_owned()).is_err() {
                return;
            }
        }
    });
    calls
}

/// The header of a request; `None` if there is none.
fn request(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            assert!(request.is_empty(), "half a request");
            return None;
        }
        request.push(byte[0]);
    }
    Some(request)
}

impl Drop for QmpClient {
    fn drop(&mut self) {
        // The thread that reads has the socket open, too. It may be closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

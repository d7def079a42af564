//! `vm-watchdog status` as a process, with real servers, dead ones and hostile ones.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod client;
#[path = "../serve/fakes.rs"]
#[allow(dead_code, reason = "the tests of actions use the rest")]
mod fakes;
mod hostile;
mod real;
mod screen;
#[path = "../serve/server.rs"]
#[allow(dead_code, reason = "the tests of the protocol use the rest")]
mod server;
mod table;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

/// What the command has written, and its status.
#[derive(Debug)]
struct Run {
    status: Option<i32>,
    output: String,
    messages: String,
}

impl Run {
    fn json(&self) -> Value {
        assert_eq!(self.messages, "");
        serde_json::from_str(&self.output).unwrap()
    }
}

/// The command for a folder of VMs, on no terminal, with lines of 80 columns.
fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
    command.arg("status").arg("--folder").arg(folder).env("COLUMNS", "80").env("TERM", "xterm");
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn status(folder: &Path, arguments: &[&str]) -> Run {
    run(command(folder).args(arguments))
}

fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: output.status.code(), output: text(output.stdout), messages: text(output.stderr) }
}

/// The listening socket of a VM.
fn listen(folder: &Path, name: &str) -> UnixListener {
    fs::create_dir(folder.join(name)).unwrap();
    UnixListener::bind(folder.join(name).join("metrics")).unwrap()
}

/// A server that answers every request with these bytes.
fn answering(folder: &Path, name: &str, answer: Vec<u8>) {
    let listener = listen(folder, name);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1000];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /status HTTP/1.1\r\n"));
            // The command may have given up.
            let _ = stream.write_all(&answer);
        }
    });
}

/// A server with this status.
fn with_status(folder: &Path, name: &str, status: &Value) {
    answering(folder, name, format!("HTTP/1.1 200 OK\r\n\r\n{status}\n").into_bytes());
}

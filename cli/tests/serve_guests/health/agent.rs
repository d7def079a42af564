//! A client of the guest's agent, to see what the agent does without a server.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A connection to the guest's agent.
pub struct Agent {
    stream: BufReader<UnixStream>,
}

impl Agent {
    /// Connects and synchronizes, or fails if the agent does not answer within `limit`.
    pub fn connect(socket: &Path, limit: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        let mut agent = Self { stream: BufReader::new(stream) };
        // The agent drops what it has of a line of an earlier client, and complains.
        agent.stream.get_mut().write_all(b"\xFF")?;
        let id = std::process::id();
        agent.send("guest-sync-delimited", &json!({ "id": id }))?;
        agent.stream.read_until(0xFF, &mut Vec::new())?;
        assert_eq!(agent.receive()?["return"], id);
        Ok(agent)
    }

    /// Sends a command and gives its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.send(command, arguments).unwrap();
        let answer = self.receive().unwrap();
        answer.get("return").unwrap_or_else(|| panic!("{command}: {answer}")).clone()
    }

    /// Runs a program in the guest and gives its exit status.
    pub fn run(&mut self, program: &str, arguments: &[&str]) -> i64 {
        let arguments = json!({ "path": program, "arg": arguments, "capture-output": true });
        let process = self.execute("guest-exec", &arguments);
        loop {
            let status = self.execute("guest-exec-status", &process);
            if status["exited"] == true {
                return status["exitcode"].as_i64().unwrap_or_else(|| panic!("no status: {status}"));
            }
        }
    }

    fn send(&mut self, command: &str, arguments: &Value) -> io::Result<()> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{message}\n").as_bytes())
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|error| io::Error::other(format!("{error}: {line:?}")))
    }
}

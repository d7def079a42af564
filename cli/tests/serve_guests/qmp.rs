//! The operator: a second QMP connection, which belongs to the test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A QMP connection.
pub struct Operator {
    stream: BufReader<UnixStream>,
}

impl Operator {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut operator = Self { stream: BufReader::new(stream) };
        assert!(operator.next()["QMP"].is_object());
        operator.execute("qmp_capabilities");
        operator
    }

    /// Sends a command that must succeed, and gives its answer.
    pub fn execute(&mut self, command: &str) -> Value {
        self.execute_with(command, &json!({}))
    }

    /// The same with arguments.
    pub fn execute_with(&mut self, command: &str, arguments: &Value) -> Value {
        let message = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{message}\n").as_bytes()).unwrap();
        loop {
            let message = self.next();
            if message.get("event").is_none() {
                assert!(message.get("error").is_none(), "{command}: {message}");
                return message["return"].clone();
            }
        }
    }

    /// QEMU's name for the state of the VM.
    pub fn status(&mut self) -> String {
        self.execute("query-status")["status"].as_str().unwrap().to_owned()
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

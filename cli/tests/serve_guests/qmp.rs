//! The operator: a second QMP connection, which belongs to the test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take for anything.
const LIMIT: Duration = Duration::from_secs(60);

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

    /// Gives the VM a disk for its snapshots.
    pub fn add_disk(&mut self, path: &Path) {
        File::create(path).unwrap();
        self.execute_with("blockdev-add", &json!({"driver": "file", "node-name": "file", "filename": path}));
        let disk = json!({"driver": "qcow2", "file": "file", "size": 1 << 20});
        self.run_job("blockdev-create", json!({"options": disk}));
        self.execute_with("blockdev-add", &json!({"driver": "qcow2", "node-name": "disk", "file": "file"}));
    }

    /// Saves the VM to the disk, or loads it.
    pub fn snapshot(&mut self, command: &str) {
        self.run_job(command, json!({"tag": "one", "vmstate": "disk", "devices": ["disk"]}));
    }

    /// Runs a job to its end.
    fn run_job(&mut self, command: &str, mut arguments: Value) {
        arguments["job-id"] = json!("job");
        self.execute_with(command, &arguments);
        let ended = self.wait_for("query-jobs", |jobs| jobs[0]["status"] == "concluded");
        assert_eq!(ended[0].get("error"), None, "{command}: {ended}");
        self.execute_with("job-dismiss", &json!({"id": "job"}));
    }

    /// Asks until the answer is as expected.
    pub fn wait_for(&mut self, question: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.execute(question);
            if is_it(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{question}: {answer}");
            sleep(Duration::from_millis(50));
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

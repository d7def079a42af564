//! A hostile QEMU: what it sends over QMP.
//!
//! A command counts as performed only if QEMU has answered it, by its number, with a `return`; such an answer is not
//! lost. No more than 64 KiB of the bytes are kept, and reasons are short and have no control characters.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/qmp
//! cargo +nightly fuzz run qmp fuzz/corpus/qmp fuzz/seeds/qmp -- -max_total_time=30
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use vm_watchdog_cli::fuzzing::messages::{LastCommand, Lines, MOST_BYTES, VmEvent};

const EVENTS: [&str; 8] =
    ["STOP", "RESUME", "POWERDOWN", "RESET", "SHUTDOWN", "DUMP_COMPLETED", "MIGRATION", "DEVICE_DELETED"];
const DATA: [&str; 6] = [
    r#"{"guest":true,"reason":"guest-reset"}"#,
    r#"{"result":{"status":"completed"},"error":"none"}"#,
    r#"{"result":{"status":"failed"},"error":"dump: \u001b[2J no space"}"#,
    r#"{"result":{}}"#,
    "null",
    "7",
];
const RESULTS: [&str; 8] = [
    r#""return":{}"#,
    r#""return":{"running":true,"status":"running"}"#,
    r#""return":null"#,
    r#""error":{"class":"GenericError","desc":"no"}"#,
    r#""error":{}"#,
    r#""return":[],"error":{"desc":"both"}"#,
    r#""return":1,"return":2"#,
    r#""nothing":0"#,
];

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// The server sends a command.
    Command,
    /// The connection is ready.
    Ready,
    Bytes(&'a [u8]),
    /// The same bytes many times.
    Flood(u16, &'a [u8]),
    Answer {
        id: Id,
        result: u8,
    },
    Event {
        event: u8,
        data: u8,
    },
    NewLine,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Id {
    OfCommand,
    Other(u8),
    Text,
    Float,
}

#[derive(Default)]
struct Harness {
    command: LastCommand,
    id: u64,
    is_waiting: bool,
    /// The line that has not ended.
    line: Vec<u8>,
    /// The lines since the command.
    since: Vec<Vec<u8>>,
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let (mut harness, mut lines) = (Harness::default(), Lines::new());
    for step in &steps {
        let bytes = match step {
            Step::Command => {
                harness.id = harness.command.begin();
                harness.is_waiting = true;
                harness.since.clear();
                continue;
            }
            Step::Ready => {
                lines.is_ready();
                continue;
            }
            Step::Bytes(bytes) => bytes.to_vec(),
            Step::Flood(times, bytes) => bytes.repeat(usize::from(*times).min(200_000 / bytes.len().max(1))),
            Step::Answer { id, result } => {
                let id = match id {
                    Id::OfCommand => harness.id.to_string(),
                    Id::Other(id) => id.to_string(),
                    Id::Text => format!("\"{}\"", harness.id),
                    Id::Float => format!("{}.0", harness.id),
                };
                format!("{{\"id\":{id},{}}}\n", RESULTS[usize::from(*result) % RESULTS.len()]).into_bytes()
            }
            Step::Event { event, data } => {
                let (event, data) = (EVENTS[usize::from(*event) % 8], DATA[usize::from(*data) % DATA.len()]);
                format!("{{\"event\":\"{event}\",\"data\":{data},\"timestamp\":{{}}}}\n").into_bytes()
            }
            Step::NewLine => b"\n".to_vec(),
        };
        if !harness.receive(&mut lines, &bytes) {
            return;
        }
        // A plain answer to the command that is outstanding.
        if let Step::Answer { id: Id::OfCommand, result: 0 } = step {
            if harness.since.last().is_some_and(|line| *line == bytes) && harness.is_waiting {
                panic!("the answer to command {} was lost", harness.id);
            }
        }
    }
});

impl Harness {
    /// Receives bytes as the thread that reads QMP does; false if the connection ends.
    fn receive(&mut self, lines: &mut Lines, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (count, message) = match lines.take(bytes) {
                Ok(taken) => taken,
                Err(error) => {
                    assert!(error.to_string().len() < 500, "{error}");
                    return false;
                }
            };
            assert!(lines.kept() <= MOST_BYTES);
            assert!((1..=bytes.len()).contains(&count));
            self.line.extend(&bytes[..count]);
            bytes = &bytes[count..];
            let Some(message) = message else { continue };
            assert_eq!(self.line.last(), Some(&b'\n'));
            self.since.push(std::mem::take(&mut self.line));
            if let Some(event) = &message.event {
                self.check_event(event);
            } else if let Some(answer) = message.answer {
                self.command.received(answer);
            }
            self.check_outcome();
        }
        true
    }

    fn check_outcome(&mut self) {
        // Nothing waits for another answer to a command that was answered.
        if !self.is_waiting {
            return;
        }
        let Some(outcome) = self.command.take_outcome() else { return };
        self.is_waiting = false;
        // The same line, by another parser.
        let line = self.since.last().expect("the line of the answer");
        let value: Value = serde_json::from_slice(line).expect("JSON");
        assert_eq!(value["id"], json!(self.id), "{value}");
        match outcome {
            Ok(returned) => {
                let returned: Value = serde_json::from_str(&returned).expect("JSON");
                assert!(!returned.is_null() && value["return"] == returned, "{value}");
            }
            Err(reason) => {
                assert!(value["return"].is_null(), "{value}");
                check_text(&reason);
            }
        }
    }

    fn check_event(&self, event: &VmEvent) {
        let line = self.since.last().expect("the line of the event");
        let value: Value = serde_json::from_slice(line).expect("JSON");
        let name = match event {
            VmEvent::Runs(true) => "RESUME",
            VmEvent::Runs(false) => "STOP",
            VmEvent::Powerdown => "POWERDOWN",
            VmEvent::Reset { reason } => {
                reason.iter().for_each(|reason| check_text(reason));
                "RESET"
            }
            VmEvent::Shutdown { reason } => {
                reason.iter().for_each(|reason| check_text(reason));
                "SHUTDOWN"
            }
            VmEvent::DumpEnded { outcome } => {
                let is_complete = value["data"]["result"]["status"] == "completed";
                assert_eq!(outcome.is_ok(), is_complete, "{value}");
                outcome.as_ref().err().into_iter().for_each(|reason| check_text(reason));
                "DUMP_COMPLETED"
            }
            other => panic!("no event of QEMU: {other:?}"),
        };
        assert_eq!(value["event"], name);
    }
}

fn check_text(text: &str) {
    assert!(text.chars().count() <= 200 && !text.contains(char::is_control), "{text:?}");
}

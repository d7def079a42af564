//! A hostile guest agent: its answers to `guest-sync-delimited`, `guest-ping` and `guest-exec-status`.
//!
//! A probe passes only if the answer says so: a `return` without an error, and for `exec` the end of the command with exit
//! code 0. Lines of any length are read in bounded memory, and messages are short and have no control characters.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/guest_agent
//! cargo +nightly fuzz run guest_agent fuzz/corpus/guest_agent fuzz/seeds/guest_agent -- -max_total_time=30
//! ```

#![no_main]

use std::io::{BufRead, BufReader};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use vm_watchdog_probes::Outcome;
use vm_watchdog_probes::handlers::fuzzing::{exec_end, ping, synchronize};

const FRAGMENTS: [&str; 24] = [
    "{\"return\": ",
    "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}",
    "\"error\":",
    "\"return\":",
    "{\"exited\": true, \"exitcode\": 0",
    "{\"exited\": true, \"exitcode\": 1",
    "{\"exited\": false",
    ", \"signal\": 9",
    ", \"out-data\": \"",
    ", \"err-data\": \"",
    "aGVsbG8K",
    "\\u0041",
    "\\",
    "\"",
    "}",
    "{}",
    "null",
    ",",
    "7",
    "\n",
    "[",
    "true",
    "-1",
    "1e3",
];

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Fragment(u8),
    Repeated(u8, u32),
    Bytes(&'a [u8]),
    Delimiter,
    Id,
}

#[derive(Arbitrary, Debug)]
enum Question {
    Synchronize,
    Ping,
    ExecEnd,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    question: Question,
    id: u32,
    /// How many bytes come at a time.
    cut: u8,
    pieces: Vec<Piece<'a>>,
}

fuzz_target!(|input: Input<'_>| {
    let mut bytes = Vec::new();
    for piece in &input.pieces {
        let fragment = |index: u8| FRAGMENTS[usize::from(index) % FRAGMENTS.len()].as_bytes();
        match piece {
            Piece::Fragment(index) => bytes.extend(fragment(*index)),
            Piece::Repeated(index, times) => {
                let times = (*times % (200 << 10)) as usize / fragment(*index).len();
                bytes.extend(fragment(*index).repeat(times));
            }
            Piece::Bytes(piece) => bytes.extend(*piece),
            Piece::Delimiter => bytes.push(0xFF),
            Piece::Id => bytes.extend(input.id.to_string().into_bytes()),
        }
        if bytes.len() > 1 << 20 {
            break;
        }
    }
    let mut reader = BufReader::with_capacity(usize::from(input.cut) * 32 + 1, bytes.as_slice());
    let outcome = match input.question {
        Question::Ping => ping(&mut reader),
        Question::ExecEnd => exec_end(&mut reader),
        Question::Synchronize => {
            return match synchronize(&mut reader, input.id.into()) {
                Ok(()) => check_synchronized(&bytes, &mut reader, input.id.into()),
                Err(error) => check_message(&error.to_string()),
            };
        }
    };
    match outcome {
        Outcome::Success => check_success(&bytes, &input.question),
        Outcome::Failure(message) => check_message(&message),
        other => panic!("a guest causes no other outcome: {other}"),
    }
});

/// What was read ends with a delimiter and the answer to the number.
fn check_synchronized(bytes: &[u8], rest: &mut impl BufRead, id: u64) {
    let mut left = Vec::new();
    rest.read_to_end(&mut left).expect("a slice");
    let read = &bytes[..bytes.len() - left.len()];
    let at = read.iter().rposition(|byte| *byte == 0xFF).expect("a delimiter");
    let line = &read[at + 1..];
    assert_eq!(line.last(), Some(&b'\n'));
    if let Ok(value) = serde_json::from_slice::<Value>(line) {
        assert_eq!(value["return"], id, "{value}");
    }
}

/// The answer, by another parser, unless strings of it were cut.
fn check_success(bytes: &[u8], question: &Question) {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.len() > 8 << 10 {
        return;
    }
    let value: Value = serde_json::from_slice(line).expect("JSON");
    // A struct may be written as a list of its fields.
    let (returned, error) = match &value {
        Value::Array(fields) => {
            (fields.first().cloned().unwrap_or_default(), fields.get(1).cloned().unwrap_or_default())
        }
        value => (value["return"].clone(), value["error"].clone()),
    };
    assert!(!returned.is_null() && error.is_null(), "{value}");
    if let Question::ExecEnd = question {
        let (exited, code) = match &returned {
            Value::Array(fields) => (fields[0].clone(), fields[1].clone()),
            returned => (returned["exited"].clone(), returned["exitcode"].clone()),
        };
        assert!(exited == true && code == 0, "{value}");
    }
}

fn check_message(message: &str) {
    assert!(message.len() < 2000 && !message.contains(char::is_control), "{message:?}");
}

//! Guest agents of a hostile guest.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use crate::support::{Agent, assert_fails, assert_fails_by_itself};

/// Sends this without an end before any answer.
fn flood(bytes: &[u8]) -> Agent {
    let bytes = bytes.repeat((64 << 10) / bytes.len() + 1);
    Agent::new(move |mut stream| while stream.write_all(&bytes).is_ok() {})
}

/// Answers correctly to the synchronization, and to the command with this line.
fn answering(line: Vec<u8>) -> Agent {
    let line = String::from_utf8(line).expect("UTF-8");
    Agent::answering(move |_| line.clone())
}

#[test]
fn floods_instead_of_the_synchronization_are_limited() {
    for bytes in [b"x".as_slice(), b"a line\n", b"\xff", b"\xff\n", b"\xff{\"return\":1}\n", b"\xff[", b"\0", b"\xff\""]
    {
        let outcome = flood(bytes).ping();
        assert_fails_by_itself(&outcome);
    }
}

#[test]
fn malformed_answers_fail_with_their_start() {
    let deep = [b"[".repeat(60_000), b"]".repeat(4_000)].concat();
    let rows = [
        (b"garbage".to_vec(), "malformed answer to guest-ping: expected value at line 1 column 1: garbage"),
        (b"".to_vec(), "malformed answer to guest-ping"),
        (b"{}".to_vec(), "neither return nor error: {}"),
        (b"{\"return\": null}".to_vec(), "neither return nor error"),
        (b"{\"error\": 5}".to_vec(), "malformed answer to guest-ping: invalid type"),
        (b"{\"return\": {}, \"return\": {}}".to_vec(), "duplicate field"),
        (deep, "malformed answer to guest-ping"),
        (b"{\"return\": [1,1,1]".repeat(20_000), "an answer is longer than 65536 bytes"),
        ("{\"x\u{1b}[2J".as_bytes().to_vec(), "{\"x\u{fffd}[2J"),
    ];
    for (line, message) in rows {
        let outcome = answering(line.clone()).ping();
        assert_fails(&outcome, message);
        assert!(outcome.message().is_some_and(|text| text.len() < 1000 && !text.contains(char::is_control)));
    }
}

#[test]
fn the_text_of_a_refusal_is_cut() {
    let refusal = format!("{{\"error\": {{\"desc\": \"{}\"}}}}", "\\u0007x".repeat(100_000));
    let outcome = answering(refusal.into_bytes()).ping();
    assert!(outcome.message().is_some_and(|text| text.chars().count() < 300 && !text.contains('\u{7}')), "{outcome:?}");
}

#[test]
fn wrong_types_in_the_answers_to_exec_fail() {
    for answer in [
        r#"{"return": {}}"#,
        &format!(r#"{{"return": {}}}"#, "[".repeat(60_000)),
        &format!(r#"{{"return": {{"pid": {}}}}}"#, "[".repeat(60_000)),
        &format!(r#"{{"return": {{"pid": {}7{}}}}}"#, r#"{"a":"#.repeat(5000), "}".repeat(5000)),
        r#"{"return": {"pid": "7"}}"#,
        // The parser's message would have the whole string.
        &format!(r#"{{"return": "{}"}}"#, "x".repeat(8000)),
        r#"{"return": {"pid": 99999999999999999999}}"#,
        r#"{"return": {"pid": 7, "exited": "yes"}}"#,
        r#"{"return": {"pid": 7, "exited": true, "exitcode": 0.5}}"#,
        r#"{"return": {"pid": 7, "exited": true, "exitcode": 0, "out-data": 5}}"#,
    ] {
        assert_fails(&answering(answer.into()).exec(&["true"]), "malformed answer to guest-exec");
    }
}

#[test]
fn an_answer_without_an_end_is_limited() {
    let agent = Agent::new(|mut stream| {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).expect("a request");
        let request: serde_json::Value = serde_json::from_slice(&bytes[1..count]).expect("JSON");
        let sync = [b"\xff".as_slice(), format!("{{\"return\":{}}}\n", request["arguments"]["id"]).as_bytes()].concat();
        let _ = stream.write_all(&sync);
        let _ = stream.write_all(b"{\"return\": \"");
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let outcome = agent.ping();
    assert_fails_by_itself(&outcome);
}

#[test]
fn slow_bytes_do_not_extend_the_attempt() {
    let agent = Agent::new(|mut stream| {
        while stream.write_all(b"\xff").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    agent.ping_times_out();
}

#[test]
fn an_agent_that_closes_the_connection_fails() {
    let agent = Agent::new(drop);
    let outcome = agent.ping();
    assert_fails_by_itself(&outcome);
}

#[test]
fn an_agent_that_does_not_read_is_not_waited_for() {
    let agent = Agent::new(|stream| {
        thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    let long = "x".repeat(8 << 20);
    agent.exec_times_out(&["echo", &long]);
}

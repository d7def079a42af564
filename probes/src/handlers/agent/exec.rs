//! `exec`: a command that the agent runs in the guest.

use std::io;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::json;

use crate::handlers::agent::{AgentAttempt, GuestAgent};
use crate::handlers::deadline::Deadline;
use crate::handlers::text::untrusted;
use crate::outcome::Outcome;

/// The first delay before the agent is asked whether the command has ended; each one is twice the one before.
const FIRST_DELAY: Duration = Duration::from_millis(10);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

/// The answer to `guest-exec-status`.
#[derive(Deserialize)]
pub struct Status {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    #[serde(rename = "out-data")]
    output: Option<String>,
    #[serde(rename = "err-data")]
    errors: Option<String>,
}

/// Runs a command; the exit code 0 passes. The agent cannot end a command: one that takes too long continues in the guest.
pub fn run(agent: &GuestAgent, command: &[String], deadline: Deadline) -> Outcome {
    let answer = status(&agent.attempt(deadline), command, deadline);
    answer.map_or_else(|error| agent.outcome_of("exec probe failed", &error), outcome)
}

/// What the last answer of the agent means.
pub fn outcome(answer: Result<Status, String>) -> Outcome {
    match answer {
        Ok(Status { exited: true, exitcode: Some(0), .. }) => Outcome::Success,
        Ok(status) => Outcome::Failure(format!("exec probe failed: {}", end(&status))),
        Err(refusal) => Outcome::Failure(format!("exec probe failed: the guest agent does not run it: {refusal}")),
    }
}

/// How the command has ended; the refusal of the agent as text.
fn status(attempt: &AgentAttempt<'_>, command: &[String], deadline: Deadline) -> io::Result<Result<Status, String>> {
    let arguments = json!({ "path": command[0], "arg": command[1..], "capture-output": true });
    let pid = match attempt.call::<Started>("guest-exec", arguments)? {
        Ok(started) => started.pid,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut delay = FIRST_DELAY;
    loop {
        thread::sleep(delay.min(deadline.left()?));
        match attempt.call::<Status>("guest-exec-status", json!({ "pid": pid }))? {
            Ok(status) if !status.exited => delay = LONGEST_DELAY.min(delay * 2),
            result => return Ok(result),
        }
    }
}

/// How a command has failed, and the start of what it wrote.
fn end(status: &Status) -> String {
    let end = match (status.exitcode, status.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    };
    let texts = [&status.errors, &status.output].into_iter().flatten();
    let text =
        texts.map(|data| untrusted(&BASE64_STANDARD.decode(data).unwrap_or_default())).find(|text| !text.is_empty());
    text.map_or(end.clone(), |text| format!("{end}: {text}"))
}

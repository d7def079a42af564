//! The answer to `GET /status`, which `vm-watchdog serve` writes and `vm-watchdog status` reads. docs/monitoring.md describes it.
//!
//! The reader trusts the writer no more than any process of another tenant: [`Text`] holds no character that a terminal acts
//! on, and every number is an unsigned one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use unicode_width::UnicodeWidthChar;

/// The version of [`StatusV1`]. Fields may be added to a version; a reader ignores those that it does not know.
pub const VERSION: u32 = 1;
/// How many characters a text has.
const TEXT_LENGTH: usize = 200;

/// A server, its VM and its watchdogs as of now. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusV1 {
    /// [`VERSION`].
    pub version: u32,
    /// The name of the VM, if the server was given one.
    pub name: Option<Text>,
    /// The version of the server's program.
    pub server_version: Text,
    /// How long the server has run.
    pub uptime_ms: u64,
    /// What performs actions, in words.
    pub actions_by: Text,
    /// Whether QMP is connected; `None` without `--qmp`.
    pub qmp_connected: Option<bool>,
    /// Whether the clock of the VM stands still.
    pub paused: bool,
    pub watchdogs: Vec<WatchdogStatus>,
    /// Those that the VM has of liveness and readiness, in this order.
    pub probes: Vec<ProbeStatus>,
}

/// A watchdog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchdogStatus {
    pub id: Text,
    pub socket: Text,
    /// Whether a VMM is connected.
    pub connected: bool,
    /// Whether the guest has it running, or timed out and not disarmed.
    pub armed: bool,
    /// Whether the guest believes in a protection that it does not have.
    pub unprotected: bool,
    /// WDT_TIMEOUT: whether the last reset came from the watchdog.
    pub timed_out: bool,
    /// From a heartbeat to the timeout; `None` while disarmed.
    pub period_ms: Option<u64>,
    /// Until the timeout if the guest does nothing; `None` while nothing counts: disarmed, or timed out and not fed since.
    pub time_left_ms: Option<u64>,
    pub heartbeats: u64,
    /// The age of the last heartbeat in the VM's time; `None` before the first.
    pub last_heartbeat_ms: Option<u64>,
    pub timeouts: u64,
    pub last_action: Option<ActionStatus>,
}

/// A liveness or readiness probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// liveness or readiness.
    pub probe: Text,
    /// success or failure.
    pub result: Text,
    /// Why the result is this one; `None` before the first change.
    pub reason: Option<Text>,
    /// What follows from a failure; `None` for readiness.
    pub last_action: Option<ActionStatus>,
}

/// The last action since the server started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionStatus {
    pub action: Text,
    /// pretimeout, timeout or escalation.
    pub stage: Text,
    pub outcome: ActionOutcome,
    /// Why it has failed.
    pub reason: Option<Text>,
    /// How long ago that was, in the host's time.
    pub age_ms: u64,
}

/// What has become of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionOutcome {
    /// It is being performed.
    Started,
    Performed,
    /// It has failed at least once, and has not been performed since.
    Failed,
    /// The rate of the actions delays it.
    Delayed,
    /// One of another version.
    #[serde(other)]
    Unknown,
}

/// Text without control characters or characters without a width, of at most 200 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Text(String);

impl Text {
    /// Replaces what a terminal acts on, and cuts what is too long.
    pub fn new(text: &str) -> Self {
        let mut characters = text.chars();
        let mut clean: String = characters.by_ref().take(TEXT_LENGTH).map(visible).collect();
        if characters.next().is_some() {
            clean.pop();
            clean.push('…');
        }
        Self(clean)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn visible(character: char) -> char {
    if is_visible(character) { character } else { '\u{FFFD}' }
}

/// Whether a terminal shows the character as one, and does nothing else.
pub fn is_visible(character: char) -> bool {
    // Line separators have a width, and some terminals act on them.
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    !is_separator && character.width().is_some_and(|width| width > 0)
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

/// Whole milliseconds, as in the document.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_nothing_that_a_terminal_acts_on() {
        for (text, clean) in [
            ("web-01", "web-01"),
            ("größe 大", "größe 大"),
            ("\x1b[2Jx\r\n\x07\x7f\u{9b}31m", "\u{FFFD}[2Jx\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}31m"),
            ("a\u{202E}b\u{200B}c\u{2066}d\u{2028}", "a\u{FFFD}b\u{FFFD}c\u{FFFD}d\u{FFFD}"),
            ("o\u{301}\u{301}", "o\u{FFFD}\u{FFFD}"),
        ] {
            assert_eq!(Text::new(text).as_str(), clean, "{text:?}");
        }
        assert_eq!(Text::new(&"x".repeat(200)).as_str(), "x".repeat(200));
        assert_eq!(Text::new(&"x".repeat(201)).as_str(), "x".repeat(199) + "…");
        let text: Text = serde_json::from_str(r#""\u001b[2J""#).unwrap();
        assert_eq!(text.as_str(), "\u{FFFD}[2J");
    }
}

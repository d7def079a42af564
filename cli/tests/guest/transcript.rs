//! The record of a run: what the guest said, and the timeline of our VMM.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::Value;
use vm_watchdog_test_support::channel::Message;

/// A finished run.
#[derive(Debug)]
pub struct Transcript {
    /// The exit status of the VMM; none if it had to be killed.
    pub status: Option<i32>,
    /// How long it took, by the clock of the test.
    pub took: Duration,
    /// The guest's console, with whatever else the VMM printed: shown when a test fails.
    console: String,
    messages: Vec<Message>,
    /// The VMM's timeline (`--events json`); empty for QEMU.
    pub events: Vec<Value>,
}

impl Transcript {
    /// Reads the timeline.
    pub fn new(
        status: Option<i32>,
        took: Duration,
        console: String,
        messages: Vec<Message>,
        events: &str,
    ) -> Result<Self, String> {
        let parse = |line: &str| serde_json::from_str(line).map_err(|error| format!("event {line:?}: {error}"));
        let events = events.lines().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { status, took, console, messages, events })
    }

    /// What the guest's scenario said.
    pub fn said_by_guest(&self) -> Vec<&str> {
        self.messages.iter().filter_map(Message::said).collect()
    }

    /// The events of this name, in order.
    pub fn events(&self, name: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["event"] == name).collect()
    }

    /// The only event of this name.
    ///
    /// # Panics
    ///
    /// If there is none or more than one.
    pub fn only(&self, name: &str) -> &Value {
        let events = self.events(name);
        assert_eq!(events.len(), 1, "there should be one event {name:?}");
        events[0]
    }

    /// The only expiry of the timeout.
    ///
    /// # Panics
    ///
    /// If there is none or more than one.
    pub fn timeout(&self) -> &Value {
        let mut timeouts = self.events("expiry");
        timeouts.retain(|expiry| expiry["stage"] == "timeout");
        assert_eq!(timeouts.len(), 1, "the watchdog should time out once");
        timeouts[0]
    }

    /// A time in an event, by the VM's clock.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub fn time(event: &Value, field: &str) -> Duration {
        Duration::from_nanos(event[field].as_u64().unwrap_or_else(|| panic!("{field} in {event}")))
    }

    /// Runs assertions. If one fails, shows the whole run beside it.
    pub fn check(&self, assertions: impl FnOnce()) -> Result<(), String> {
        catch_unwind(AssertUnwindSafe(assertions)).map_err(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("an assertion failed");
            let events: Vec<String> = self.events.iter().map(Value::to_string).collect();
            let (status, console, events) = (self.status, &self.console, events.join("\n"));
            let messages = &self.messages;
            format!(
                "{message}\nexit status: {status:?}\nmessages: {messages:#?}\nconsole:\n{console}\nevents:\n{events}"
            )
        })
    }
}

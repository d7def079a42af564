//! A client of the QEMU Machine Protocol: commands, and the events in between.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use serde_json::{Value, json};

use crate::wait::{WAIT_LIMIT, connect};

/// A connection that threads can share.
pub struct Qmp {
    exchange: Mutex<Exchange>,
    events: Mutex<Receiver<String>>,
}

struct Exchange {
    stream: UnixStream,
    replies: Receiver<Value>,
}

impl Qmp {
    /// Connects to QEMU's `-qmp unix:...`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = connect(socket)?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let (to_replies, replies) = channel();
        let (to_events, events) = channel();
        thread::spawn(move || {
            for message in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok()) {
                // Ignore a closed channel: QEMU blocks if its output is not read.
                let _ = match message["event"].as_str() {
                    Some(event) => to_events.send(event.to_owned()).is_ok(),
                    None if message.get("QMP").is_some() => true,
                    None => to_replies.send(message).is_ok(),
                };
            }
        });
        let qmp = Self { exchange: Mutex::new(Exchange { stream, replies }), events: Mutex::new(events) };
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Executes a command without arguments, and returns its result.
    pub fn execute(&self, command: &str) -> io::Result<Value> {
        let mut exchange = self.exchange.lock().unwrap();
        writeln!(exchange.stream, "{}", json!({ "execute": command }))?;
        let reply = exchange.replies.recv_timeout(WAIT_LIMIT);
        let mut reply = reply.map_err(|error| io::Error::other(format!("QMP {command}: {error}")))?;
        match reply.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(io::Error::other(format!("QMP {command}: {}", reply["error"]["desc"]))),
        }
    }

    /// The run state of the VM, such as `running` or `paused`.
    pub fn status(&self) -> io::Result<String> {
        Ok(self.execute("query-status")?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for the event `name`, ignoring others.
    pub fn wait_for_event(&self, name: &str) -> io::Result<()> {
        let events = self.events.lock().unwrap();
        while events.recv_timeout(WAIT_LIMIT).map_err(io::Error::other)? != name {}
        Ok(())
    }

    /// Waits until QEMU has ended.
    pub fn wait_for_end(&self) -> io::Result<()> {
        let events = self.events.lock().unwrap();
        loop {
            match events.recv_timeout(WAIT_LIMIT) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

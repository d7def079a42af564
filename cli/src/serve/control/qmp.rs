//! QEMU's machine protocol (QMP): one connection for the events of the VM and for the actions.
//!
//! A thread reads the connection, and reconnects when it is lost, because the events say when the VM is paused. A handler
//! writes its command from its own thread and waits until the reader has received the answer.
//!
//! This is a client of our own because it needs ten commands, a timeout for each, and bounds for everything that an
//! untrusted QEMU sends.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use vm_watchdog::{Action, Event, HandlerError};

use crate::serve::control::connect::connect;
use crate::serve::control::dumps::Dumps;
use crate::serve::control::messages::{LastCommand, Message, Messages, VmEvent};
use crate::serve::peer::{Owner, Peer};

/// How long QEMU may take to answer a command.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The first delay before reconnecting; it doubles with each failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// A QMP connection.
pub struct Qmp {
    path: PathBuf,
    /// Where the dumps of the VM go, if there may be any.
    dumps: Option<Dumps>,
    /// Locked during a command: there is one at a time.
    command: Mutex<()>,
    link: Mutex<Link>,
    /// The process behind the socket, while it is connected. It does not change while the link has a stream. Not under the
    /// lock of the link, which is held while a command is written.
    process: Mutex<Option<Arc<Peer>>>,
    /// Signalled when an answer was received, or the connection was lost.
    answered: Condvar,
}

/// The state of the connection.
struct Link {
    stream: Option<UnixStream>,
    /// Why there is no connection.
    why_not: String,
    command: LastCommand,
}

/// Is notified of the events of a VM.
pub trait VmListener: Send + Sync {
    /// Called for each event, by the thread that reads QMP, so it must not wait for a handler.
    fn vm_event(&self, event: VmEvent);
}

/// What commands return, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Returned {
    /// Of `query-status`.
    running: Option<bool>,
    /// Of `query-status` and `query-dump`.
    status: Option<String>,
    /// Of `query-memory-size-summary`, in bytes: what the guest started with, and what was plugged in since.
    base_memory: Option<u64>,
    plugged_memory: Option<u64>,
}

/// One of those that `query-chardev` returns.
#[derive(Deserialize)]
struct CharacterDevice {
    label: String,
}

/// Why a connection ended.
type Lost = Box<dyn std::error::Error + Send + Sync>;

impl Qmp {
    pub fn new(path: PathBuf, dumps: Option<Dumps>) -> Arc<Self> {
        let link = Link { stream: None, why_not: "not tried yet".to_owned(), command: LastCommand::default() };
        let (command, answered, process) = (Mutex::default(), Condvar::new(), Mutex::default());
        Arc::new(Self { path, dumps, command, link: Mutex::new(link), process, answered })
    }

    /// Connects, and reconnects when the connection is lost, on a thread of its own. Notifies `listener` of events.
    ///
    /// # Errors
    ///
    /// The error of the host if it cannot start a thread.
    pub fn listen(self: &Arc<Self>, listener: Arc<dyn VmListener>) -> io::Result<()> {
        let qmp = self.clone();
        thread::Builder::new().name("qmp".into()).spawn(move || qmp.keep_connected(&*listener))?;
        Ok(())
    }

    /// Whether QMP is connected.
    pub fn is_connected(&self) -> bool {
        self.link().stream.is_some()
    }

    /// The socket in words, and the process behind it if it is connected.
    pub fn process(&self) -> Option<(String, Arc<Peer>)> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some((self.to_string(), process))
    }

    fn set_process(&self, process: Option<Peer>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process.map(Arc::new);
    }

    /// Performs an action. The socket has to belong to `owner`.
    ///
    /// # Errors
    ///
    /// The error of QEMU, or why it was not asked or did not answer.
    pub fn perform(&self, event: &Event, owner: &Owner) -> Result<(), HandlerError> {
        let command = match event.action {
            Action::Reset => "system_reset",
            Action::Shutdown => "system_powerdown",
            Action::Poweroff => "quit",
            Action::Pause => "stop",
            Action::InjectNmi => "inject-nmi",
            Action::Dump => return self.dump(&event.id, owner),
            action => return Err(format!("QEMU has no action {action}").into()),
        };
        self.execute(command, None, owner).map(drop)
    }

    /// Has QEMU write the guest's memory to a file, within the limits for that.
    fn dump(&self, id: &str, owner: &Owner) -> Result<(), HandlerError> {
        let dumps = self.dumps.as_ref().ok_or("no --dump-folder was given")?;
        let _turn = dumps.turn();
        if self.is_of_libvirt(owner)? {
            return Err("this QEMU belongs to libvirt, whose daemon (9.0) crashes at a dump that it has not begun: \
                        use --exec 'virsh dump --memory-only ...'"
                .into());
        }
        match self.execute("query-dump", None, owner)?.status.as_deref() {
            Some("active") => return Err("QEMU is writing an earlier dump".into()),
            // Its event came while QMP was not connected.
            Some("failed") => drop(dumps.failed()),
            _ => dumps.completed(),
        }
        let memory = self.execute("query-memory-size-summary", None, owner)?.memory();
        let memory = memory.ok_or("QEMU does not say how much memory the guest has")?;
        let path = dumps.begin(id, memory)?.display().to_string();
        // Detached, because writing the memory of a large guest takes longer than the timeout.
        let arguments = json!({ "paging": false, "protocol": format!("file:{path}"), "detach": true });
        let begun = self.execute("dump-guest-memory", Some(arguments), owner);
        if begun.is_err() {
            dumps.failed();
        }
        begun.map(drop)
    }

    /// Whether libvirt has started this QEMU: it gives its own monitor this name.
    fn is_of_libvirt(&self, owner: &Owner) -> Result<bool, HandlerError> {
        let devices = self.ask("query-chardev", None, owner)?;
        let devices: Vec<CharacterDevice> = serde_json::from_str(&devices).unwrap_or_default();
        Ok(devices.iter().any(|device| device.label == "charmonitor"))
    }

    /// QEMU has written a dump, or has failed to.
    pub fn dump_ended(&self, outcome: Result<(), String>) {
        let Some(dumps) = &self.dumps else {
            return;
        };
        match outcome {
            Ok(()) => dumps.completed(),
            Err(reason) => {
                if let Some(path) = dumps.failed() {
                    log::error!("QEMU has not written the dump {}, which is removed: {reason}", path.display());
                }
            }
        }
    }

    /// Sends a command and waits for what it returns, as far as it matters here.
    fn execute(&self, command: &str, arguments: Option<Value>, owner: &Owner) -> Result<Returned, HandlerError> {
        Ok(serde_json::from_str(&self.ask(command, arguments, owner)?).unwrap_or_default())
    }

    /// Sends a command and waits for what it returns, which is JSON. The socket has to belong to `owner`.
    ///
    /// # Errors
    ///
    /// As [`perform`](Self::perform).
    pub fn ask(&self, command: &str, arguments: Option<Value>, owner: &Owner) -> Result<String, HandlerError> {
        let _command = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        let mut link = self.link();
        let sent = self.check(owner).and_then(|()| link.send(command, arguments));
        sent.map_err(|error| format!("{self}: {error}"))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(outcome) = link.command.take_outcome() {
                return outcome.map_err(|error| format!("QEMU refuses {command}: {error}").into());
            }
            if link.stream.is_none() {
                // After `quit` QEMU ends. Its vfio-user connection ends too, which drops the retry.
                return Err(link.why_not.clone().into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("QEMU has not answered {command} within {ANSWER_TIMEOUT:?}").into());
            }
            link = self.answered.wait_timeout(link, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Checks the process of the connection, if there is one.
    fn check(&self, owner: &Owner) -> Result<(), HandlerError> {
        Ok(self.process().map_or(Ok(()), |(_, process)| owner.check(&process))?)
    }

    fn keep_connected(&self, listener: &dyn VmListener) {
        let socket = self.to_string();
        let mut delay = FIRST_DELAY;
        let mut reported = None;
        loop {
            let lost = match self.read_events(listener, &socket, &mut delay) {
                Ok(never) => match never {},
                Err(lost) => lost.to_string(),
            };
            let was_connected = {
                let mut link = self.link();
                link.why_not = format!("{socket}: {lost}");
                link.stream.take().is_some()
            };
            self.set_process(None);
            self.answered.notify_all();
            if was_connected || reported.as_ref() != Some(&lost) {
                let reason = Some(lost.clone());
                listener.vm_event(VmEvent::Control { socket: socket.clone(), connected: false, reason });
                reported = Some(lost);
            }
            // Without QMP a resume would not be noticed, and a watchdog with a paused clock never expires. So the VM counts
            // as running; the next connection corrects that.
            listener.vm_event(VmEvent::Runs(true));
            thread::sleep(delay);
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    /// Connects, and reads until the connection ends.
    fn read_events(
        &self,
        listener: &dyn VmListener,
        socket: &str,
        delay: &mut Duration,
    ) -> Result<std::convert::Infallible, Lost> {
        let stream = connect(&self.path)?;
        self.set_process(Some(Peer::of(&stream)));
        let mut messages = Messages::new(stream.try_clone()?);

        messages.next()?.is_greeting.then_some(()).ok_or("no greeting, so it is no QMP socket")?;
        write_command(&stream, 0, "qmp_capabilities", None)?;
        let forward = |event| listener.vm_event(event);
        messages.answer(forward)?.map_err(|error| format!("qmp_capabilities: {error}"))?;
        write_command(&stream, 0, "query-status", None)?;
        let status = messages.answer(forward)?.map_err(|error| format!("query-status: {error}"))?;
        let status: Returned = serde_json::from_str(&status).unwrap_or_default();
        let running = status.running.ok_or("query-status: no answer")?;

        messages.is_ready()?;
        self.link().stream = Some(stream);
        *delay = FIRST_DELAY;
        listener.vm_event(VmEvent::Control { socket: socket.to_owned(), connected: true, reason: None });
        listener.vm_event(VmEvent::Runs(running));
        loop {
            let Message { event, answer, .. } = messages.next()?;
            if let Some(event) = event {
                listener.vm_event(event);
            } else if let Some(answer) = answer {
                self.link().command.received(answer);
                self.answered.notify_all();
            }
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QMP {}", self.path.display())
    }
}

impl Link {
    fn send(&mut self, command: &str, arguments: Option<Value>) -> Result<(), HandlerError> {
        let stream = self.stream.as_ref().ok_or_else(|| self.why_not.clone())?;
        write_command(stream, self.command.begin(), command, arguments)?;
        Ok(())
    }
}

impl Returned {
    fn memory(&self) -> Option<u64> {
        Some(self.base_memory?.saturating_add(self.plugged_memory.unwrap_or(0)))
    }
}

fn write_command(mut stream: &UnixStream, id: u64, command: &str, arguments: Option<Value>) -> io::Result<()> {
    let mut message = json!({ "execute": command, "id": id });
    if let Some(arguments) = arguments {
        message["arguments"] = arguments;
    }
    stream.write_all(format!("{message}\n").as_bytes())
}

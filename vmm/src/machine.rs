//! The running machine: performs the actions of the watchdogs and the requests of the guest and the operator.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vm_watchdog::{Action, AnyWatchdog, Event, VmClock};
use vm_watchdog_timeline::GuestExpiry;

use crate::builtin::assembler::BuiltInImage;
use crate::core_dump;
use crate::devices::request::GuestRequest;
use crate::error::BootError;
use crate::exit::ExitStatus;
use crate::inbox::{Inbox, Message};
use crate::kvm::entry::EntryPoint;
use crate::linux::LinuxGuest;
use crate::memory::{self, GuestMemory};
use crate::operator::OperatorRequest;
use crate::snapshot::SnapshotWriter;
use crate::timeline::{Cause, Entry, Timeline};
use crate::vcpu::VcpuThread;

/// A guest that resets itself repeatedly does so at most once in this time.
const RESET_INTERVAL: Duration = Duration::from_millis(100);
/// How long a handler or an interrupt line may take before a snapshot is refused.
const QUIESCE_LIMIT: Duration = Duration::from_secs(5);

/// What is loaded into guest memory at a boot.
pub enum Guest {
    /// Nothing: the table of a built-in guest is played.
    Played,
    /// The table of a built-in guest as machine code.
    BuiltIn(BuiltInImage),
    /// A kernel.
    Linux(LinuxGuest),
}

impl Guest {
    /// Loads the guest into memory that reads zero.
    pub fn load(&mut self, memory: &GuestMemory) -> Result<Option<EntryPoint>, BootError> {
        match self {
            Self::Played => Ok(None),
            Self::BuiltIn(image) => image.load(memory).map(Some).map_err(|error| BootError::Load(error.to_string())),
            Self::Linux(guest) => guest.load(memory).map(Some),
        }
    }
}

/// The machine.
pub struct Machine {
    /// The thread that runs the guest.
    pub vcpu: VcpuThread,
    /// Guest memory.
    pub memory: GuestMemory,
    /// What is loaded at a boot.
    pub guest: Guest,
    /// The clock of the VM, paused with the guest.
    pub clock: VmClock,
    /// The watchdogs, for what they have counted.
    pub watchdogs: Vec<AnyWatchdog>,
    /// What happened.
    pub timeline: Arc<Timeline>,
    /// Where the action `dump` writes.
    pub dump_file: PathBuf,
    /// Messages of the watchdogs, the vCPU and the operator.
    pub inbox: Inbox,
    /// How often the machine was reset, and when last.
    pub resets: (u64, Option<Instant>),
    /// Saves the VM at the operator's signal, if there is a file for it.
    pub snapshot: Option<SnapshotWriter>,
}

impl Machine {
    /// Lets the guest run, unless it is paused.
    pub fn start(&self) -> Result<(), BootError> {
        self.vcpu.call(|vcpu| vcpu.running = true)
    }

    /// Handles the messages in the inbox. A status means that the run is over.
    pub fn serve(&mut self) -> Result<Option<ExitStatus>, BootError> {
        let mut save = false;
        loop {
            let over = self.serve_vm()?;
            if over.is_some() {
                return Ok(over);
            }
            // The VM is paused, and the messages that were queued before are handled.
            if std::mem::take(&mut save) {
                self.save()?;
            }
            match self.inbox.next_operator_request() {
                None => return Ok(None),
                Some(OperatorRequest::Pause) => {
                    self.pause()?;
                    save = true;
                }
                Some(OperatorRequest::Resume) => self.resume()?,
            }
        }
    }

    fn serve_vm(&mut self) -> Result<Option<ExitStatus>, BootError> {
        while let Some(message) = self.inbox.next() {
            let over = match message {
                Message::Watchdog(event) => self.perform(&event)?,
                Message::Guest(request) => self.handle(request)?,
                Message::Failed(error) => return Err(error),
            };
            if over.is_some() {
                return Ok(over);
            }
        }
        Ok(None)
    }

    fn handle(&mut self, request: GuestRequest) -> Result<Option<ExitStatus>, BootError> {
        match request {
            GuestRequest::PowerOff => Ok(Some(ExitStatus::GuestPoweredOff)),
            GuestRequest::Reset => self.reset(Cause::Guest).map(|()| None),
            GuestRequest::Unexpected(step) => {
                self.timeline.record(Entry::Guest { message: format!("step {step} did not see what it expects") });
                Ok(Some(ExitStatus::Unexpected))
            }
        }
    }

    fn perform(&mut self, event: &Event) -> Result<Option<ExitStatus>, BootError> {
        self.record_expiry(event);
        match event.action {
            Action::Reset => self.reset(Cause::Watchdog)?,
            Action::Shutdown => {
                self.vcpu.call(|vcpu| vcpu.devices.power.press_button())?;
                self.timeline.record(Entry::PowerButton);
            }
            Action::Poweroff => return Ok(Some(ExitStatus::WatchdogPoweredOff)),
            Action::Pause => self.pause()?,
            Action::InjectNmi => match self.vcpu.call(|vcpu| vcpu.processor.inject_nmi())? {
                Ok(()) => self.timeline.record(Entry::Nmi),
                Err(error) => self.failed(event.action.as_str(), &error),
            },
            Action::Dump => self.dump()?,
            Action::None | Action::Debug => {}
            other => self.failed(other.as_str(), &"this VMM does not have it"),
        }
        Ok(None)
    }

    /// Reboots in place. The library keeps what the guest reads to see that its watchdog was the cause.
    fn reset(&mut self, cause: Cause) -> Result<(), BootError> {
        self.stop()?;
        let (resets, last) = self.resets;
        if let (Cause::Guest, Some(last)) = (cause, last) {
            sleep(RESET_INTERVAL.saturating_sub(last.elapsed()));
        }
        self.inbox.clear();
        memory::clear(&self.memory).map_err(BootError::host("clear guest memory"))?;
        self.guest.load(&self.memory)?;
        self.vcpu.call(|vcpu| {
            vcpu.devices.reset();
            vcpu.processor.reset()
        })??;
        self.resets = (resets.saturating_add(1), Some(Instant::now()));
        self.timeline.record(Entry::Reset { cause, resets: self.resets.0 });
        self.start()
    }

    /// Pauses the guest and its clock until the operator resumes them.
    fn pause(&self) -> Result<(), BootError> {
        if !self.clock.is_paused() {
            self.pause_vm()?;
            self.timeline.record(Entry::Paused);
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), BootError> {
        if self.clock.is_paused() {
            self.timeline.record(Entry::Resumed);
            self.resume_vm()?;
        }
        Ok(())
    }

    fn pause_vm(&self) -> Result<(), BootError> {
        self.vcpu.call(|vcpu| vcpu.paused = true)?;
        self.clock.pause();
        Ok(())
    }

    /// Waits until no watchdog is in a call into this VMM. The VM is paused.
    fn quiesce(&self) -> io::Result<()> {
        let is_quiet = self.clock.quiesce(QUIESCE_LIMIT);
        is_quiet.then_some(()).ok_or_else(|| io::Error::other("a watchdog is still in a call"))
    }

    fn resume_vm(&self) -> Result<(), BootError> {
        self.clock.resume();
        self.vcpu.call(|vcpu| vcpu.paused = false)
    }

    /// Saves the VM, which is paused, if there is a file for it. A failure leaves it paused.
    fn save(&self) -> Result<(), BootError> {
        let Some(writer) = &self.snapshot else {
            return Ok(());
        };
        let (processor, pci_address) = self.vcpu.call(|vcpu| (vcpu.processor.save(), vcpu.devices.pci.address()))?;
        let quiet = self.quiesce();
        let saved = quiet.and(processor.map_err(io::Error::other)).and_then(|processor| {
            let memory = if matches!(self.guest, Guest::Played) { None } else { Some(&self.memory) };
            writer.write(memory, processor, pci_address, &self.watchdogs)
        });
        match saved {
            Ok(()) => self.timeline.record(Entry::Saved { path: writer.path.display().to_string() }),
            Err(error) => self.failed("save", &format!("{}: {error}", writer.path.display())),
        }
        Ok(())
    }

    /// Writes guest memory to a file, with the guest and its clock paused.
    fn dump(&self) -> Result<(), BootError> {
        let was_paused = self.clock.is_paused();
        self.pause_vm()?;
        let registers = self.vcpu.call(|vcpu| vcpu.processor.registers())?;
        let dumped = match (&self.guest, registers) {
            (Guest::Played, _) => Err("a guest that is played in-process has no memory".to_owned()),
            (_, Err(error)) => Err(error.to_string()),
            (_, Ok(registers)) => core_dump::write(&self.dump_file, &self.memory, registers.as_ref())
                .map_err(|error| format!("{}: {error}", self.dump_file.display())),
        };
        match dumped {
            Ok(bytes) => self.timeline.record(Entry::Dump { path: self.dump_file.display().to_string(), bytes }),
            Err(reason) => self.failed(Action::Dump.as_str(), &reason),
        }
        if was_paused { Ok(()) } else { self.resume_vm() }
    }

    fn stop(&self) -> Result<(), BootError> {
        self.vcpu.call(|vcpu| vcpu.running = false)
    }

    fn failed(&self, action: &str, reason: &dyn std::fmt::Display) {
        self.timeline.record(Entry::ActionFailed { action: action.to_owned(), reason: reason.to_string() });
    }

    fn record_expiry(&self, event: &Event) {
        let stats = self.watchdogs.iter().find(|watchdog| *watchdog.id() == *event.id).map(AnyWatchdog::stats);
        let stats = stats.unwrap_or_default();
        self.timeline
            .record(Entry::Expiry { id: event.id.to_string(), expiry: GuestExpiry::new(event, stats.heartbeats) });
    }
}

//! A VM in a file: a built-in guest, its processor and memory, and its watchdogs, as one JSON object.
//!
//! The file is not trusted. [`Snapshot::read`] checks all that can be checked before a VM exists; an error names the field,
//! and nothing has been started.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vm_watchdog::i6300esb::{I6300esb, I6300esbStateV1};
use vm_watchdog::{Event, StateError, VmClock, VmInstant, Watchdog, WatchdogConfig, WatchdogState};

use crate::builtin::table::BuiltInGuest;
use crate::error::BootError;
use crate::memory::GuestMemory;
use crate::memory_size::MemorySize;
use crate::options::BootOptions;
use crate::processor::ProcessorState;
use crate::watchdog_options;

const VERSION: u32 = 1;
const PAGE: u64 = 0x1000;

/// What is in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotV1 {
    #[serde(deserialize_with = "version_1")]
    version: u32,
    guest: BuiltInGuest,
    vm_time_ns: u64,
    memory_bytes: MemorySize,
    memory: Vec<Page>,
    pci_address: u32,
    watchdogs: Vec<SavedWatchdog>,
    processor: ProcessorState,
}

/// The bytes of a page up to the last that is not zero.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    address: u64,
    bytes: Vec<u8>,
}

/// A watchdog: its configuration and its state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedWatchdog {
    config: WatchdogConfig,
    state: WatchdogState<I6300esbStateV1>,
}

/// What is needed to save a VM.
pub struct SnapshotWriter {
    /// The file.
    pub path: PathBuf,
    /// The guest.
    pub guest: BuiltInGuest,
    /// How much memory it has.
    pub memory_size: MemorySize,
    /// How its watchdogs were built.
    pub configs: Vec<WatchdogConfig>,
}

impl SnapshotWriter {
    /// Saves a paused VM. The file is complete or, after an error, unchanged.
    pub fn write(
        &self,
        memory: Option<&GuestMemory>,
        processor: ProcessorState,
        pci_address: u32,
        watchdogs: &[Watchdog<I6300esb>],
    ) -> io::Result<()> {
        let saved = |(config, watchdog): (&WatchdogConfig, &Watchdog<I6300esb>)| SavedWatchdog {
            config: config.clone(),
            state: watchdog.save(),
        };
        let snapshot = SnapshotV1 {
            version: VERSION,
            guest: self.guest,
            vm_time_ns: watchdogs.first().map_or(0, |watchdog| watchdog.clock().now().as_nanos()),
            memory_bytes: self.memory_size,
            memory: memory.map(pages).transpose()?.unwrap_or_default(),
            pci_address,
            watchdogs: self.configs.iter().zip(watchdogs).map(saved).collect(),
            processor,
        };
        let mut unfinished = self.path.clone().into_os_string();
        unfinished.push(".unfinished");
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(&snapshot)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)
    }
}

/// The pages that do not read zero.
fn pages(memory: &GuestMemory) -> io::Result<Vec<Page>> {
    let mut pages = Vec::new();
    let mut bytes = vec![0; PAGE as usize];
    for region in memory.iter() {
        for address in (0..region.len()).step_by(PAGE as usize).map(|offset| region.start_addr().raw_value() + offset) {
            memory.read_slice(&mut bytes, GuestAddress(address)).map_err(io::Error::other)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                pages.push(Page { address, bytes: bytes[..=last].to_vec() });
            }
        }
    }
    Ok(pages)
}

/// A saved VM that can be restored.
pub struct Snapshot {
    path: PathBuf,
    content: SnapshotV1,
}

impl Snapshot {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, BootError> {
        let invalid = |reason| BootError::Snapshot { path: path.to_owned(), reason };
        let text = fs::read(path).map_err(|error| invalid(error.to_string()))?;
        let content = parse(&text).map_err(invalid)?;
        let snapshot = Self { path: path.to_owned(), content };
        if i64::try_from(snapshot.content.vm_time_ns).is_err() {
            let reason = format!("{}, accepted is at most {}", snapshot.content.vm_time_ns, i64::MAX);
            return Err(snapshot.invalid("vm_time_ns", &reason));
        }
        watchdog_options::check(&snapshot.configs()).map_err(|error| snapshot.invalid("watchdogs", &error))?;
        for (index, config) in snapshot.configs().iter().enumerate() {
            let trial =
                Watchdog::builder("", I6300esb::new(watchdog_options::i6300esb(config)?)).clock(VmClock::manual().0);
            let trial = trial.build(|_: &Event| Ok(()))?;
            snapshot.restore_watchdog(index, |state| trial.restore(state))?;
        }
        Ok(snapshot)
    }

    /// The path of the file, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The options, with guest, memory and watchdogs of the saved VM.
    pub fn adopt(&self, options: BootOptions) -> BootOptions {
        let SnapshotV1 { guest, memory_bytes, .. } = self.content;
        BootOptions { watchdogs: self.configs(), built_in: guest, memory: memory_bytes, ..options }
    }

    /// Whether its processor is a vCPU of KVM.
    pub fn needs_kvm(&self) -> bool {
        matches!(self.content.processor, ProcessorState::Kvm(_))
    }

    /// The clock of the VM, paused at the time at which the VM was saved.
    pub fn clock(&self) -> VmClock {
        let clock = VmClock::monotonic_from(VmInstant::from_nanos(self.content.vm_time_ns));
        clock.pause();
        clock
    }

    /// The state of the processor.
    pub fn processor(&self) -> &ProcessorState {
        &self.content.processor
    }

    /// The address register of the PCI bus.
    pub fn pci_address(&self) -> u32 {
        self.content.pci_address
    }

    /// Writes the saved pages into memory.
    pub fn fill(&self, memory: &GuestMemory) -> Result<(), BootError> {
        for (index, Page { address, bytes }) in self.content.memory.iter().enumerate() {
            let written = memory.write_slice(bytes, GuestAddress(*address));
            written.map_err(|error| self.invalid(&format!("memory[{index}].address"), &error))?;
        }
        Ok(())
    }

    /// Restores the state of a watchdog with `restore`.
    pub fn restore_watchdog(
        &self,
        index: usize,
        restore: impl FnOnce(&WatchdogState<I6300esbStateV1>) -> Result<(), StateError>,
    ) -> Result<(), BootError> {
        let restored = restore(&self.content.watchdogs[index].state);
        restored.map_err(|error| self.invalid(&format!("watchdogs[{index}].state"), &error))
    }

    /// The error for a field with an impossible value.
    pub fn invalid(&self, field: &str, reason: &dyn std::fmt::Display) -> BootError {
        BootError::Snapshot { path: self.path.clone(), reason: format!("{field}: {reason}") }
    }

    fn configs(&self) -> Vec<WatchdogConfig> {
        self.content.watchdogs.iter().map(|saved| saved.config.clone()).collect()
    }
}

/// Parses; an error names its field.
fn parse(text: &[u8]) -> Result<SnapshotV1, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let content =
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| match error.path().to_string() {
            path if path == "." => error.into_inner().to_string(),
            path => format!("{path}: {}", error.into_inner()),
        })?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(content)
}

/// Refuses another version before its unknown fields are refused.
fn version_1<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        other => Err(serde::de::Error::custom(format!("{other}, accepted is {VERSION}"))),
    }
}

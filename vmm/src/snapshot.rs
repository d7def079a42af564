//! A VM in a file: a built-in guest, its processor and memory, and its watchdogs, as one JSON object.
//!
//! The file is not trusted. [`Snapshot::read`] checks all that can be checked before a VM exists; an error names the field,
//! and nothing has been started.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vm_watchdog::i6300esb::I6300esb;
use vm_watchdog::wdat::Wdat;
use vm_watchdog::{
    AnyWatchdog, AnyWatchdogState, DeviceConfig, Event, Model, VmClock, VmInstant, Watchdog, WatchdogConfig,
};
use vm_watchdog_timeline::bounded;

use crate::builtin::table::BuiltInGuest;
use crate::error::BootError;
use crate::memory::GuestMemory;
use crate::memory_size::MemorySize;
use crate::options::BootOptions;
use crate::processor::ProcessorState;
use crate::watchdog_options;

/// Version 1 had watchdogs of one model only, whose states did not name it.
const VERSION: u32 = 2;
const PAGE: u64 = 0x1000;

/// What is in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotV2 {
    #[serde(deserialize_with = "version_2")]
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
    state: AnyWatchdogState,
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
        watchdogs: &[AnyWatchdog],
    ) -> io::Result<()> {
        let saved = |(config, watchdog): (&WatchdogConfig, &AnyWatchdog)| SavedWatchdog {
            config: config.clone(),
            state: watchdog.save(),
        };
        let snapshot = SnapshotV2 {
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
    content: SnapshotV2,
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
            snapshot.restore_watchdog(index, &trial(config)?)?;
        }
        Ok(snapshot)
    }

    /// The path of the file, for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The options, with guest, memory and watchdogs of the saved VM.
    pub fn adopt(&self, options: BootOptions) -> BootOptions {
        let SnapshotV2 { guest, memory_bytes, .. } = self.content;
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

    /// Restores the state of a watchdog.
    pub fn restore_watchdog(&self, index: usize, watchdog: &AnyWatchdog) -> Result<(), BootError> {
        let restored = watchdog.restore(&self.content.watchdogs[index].state);
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

/// A watchdog that no guest has, for trying its state.
fn trial(config: &WatchdogConfig) -> Result<AnyWatchdog, BootError> {
    fn of<M: Model + Send + 'static>(device: M) -> Result<AnyWatchdog, BootError> {
        Ok(Watchdog::builder("", device).clock(VmClock::manual().0).build(|_: &Event| Ok(()))?.into())
    }
    match config.device() {
        DeviceConfig::I6300esb(device) => of(I6300esb::new(device)),
        DeviceConfig::Wdat(device) => of(Wdat::new(device)),
        _ => Err(watchdog_options::no_such_model(config)),
    }
}

/// Parses; an error names its field.
fn parse(text: &[u8]) -> Result<SnapshotV2, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let content =
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| match error.path().to_string() {
            path if path == "." => bounded(error.inner()),
            path => format!("{}: {}", bounded(&path), bounded(error.inner())),
        })?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(content)
}

/// Refuses another version before its unknown fields are refused.
fn version_2<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        other => Err(serde::de::Error::custom(format!("{other}, accepted is {VERSION}"))),
    }
}

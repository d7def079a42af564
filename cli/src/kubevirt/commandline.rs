//! The options of QEMU for the watchdog, and how they are told from others.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::kubevirt::domain::{Domain, SLOTS};
use crate::kubevirt::error::{HookError, quoted};

/// The name of the device in QEMU, by which it is found again.
const ID: &str = "vm-watchdog";
/// Slots of the first bus, the first choice first. libvirt, KubeVirt and QEMU give slots to other devices from below, also
/// after the hook; 1a, 1b, 1d, 1e and 1f are places of the parts of the q35 chipset.
const CHOICES: std::ops::RangeInclusive<usize> = 2..=0x1c;
const CHIPSET: [usize; 2] = [0x1a, 0x1b];

/// Options of QEMU for a watchdog, whose sockets are in this folder.
#[derive(Debug)]
pub struct Options {
    folder: PathBuf,
    bus: &'static str,
}

impl Options {
    /// The options for a domain.
    ///
    /// # Errors
    ///
    /// The machine or the processor of the domain has no place for the device.
    pub fn of(domain: &Domain<'_>, folder: &Path) -> Result<Self, HookError> {
        let wrong = |message| HookError::domain(domain.xml, domain.attributes_at, message);
        if let Some(architecture) = domain.architecture.as_deref() {
            if !["x86_64", "aarch64"].contains(&architecture) {
                let accepted = "accepted are x86_64 and aarch64";
                return Err(wrong(format!("os/type/@arch: {}: {accepted} for i6300esb", quoted(architecture))));
            }
        }
        let machine = domain.machine.as_deref().unwrap_or_default();
        let is = |name: &str| machine == name || machine.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        let bus = if is("q35") || is("pc-q35") || is("virt") {
            "pcie.0"
        } else if is("pc") {
            "pci.0"
        } else {
            let accepted = "accepted are q35, virt and pc";
            return Err(wrong(format!("os/type/@machine: {}: {accepted}, also with a version", quoted(machine))));
        };
        Ok(Self { folder: folder.to_owned(), bus })
    }

    /// The words for the command line, with the device in a slot.
    pub fn words(&self, slot: usize) -> [String; 4] {
        let device = json!({
            "driver": "vfio-user-pci",
            "id": ID,
            "bus": self.bus,
            "addr": format!("{slot:#04x}"),
            "socket": { "type": "unix", "path": self.folder.join("watchdog") },
        });
        ["-qmp".to_owned(), self.qmp(), "-device".to_owned(), device.to_string()]
    }

    fn qmp(&self) -> String {
        format!("unix:{},server=on,wait=off", self.folder.join("qmp").display())
    }

    /// Whether two words are ours, of an earlier call.
    pub fn are_ours(&self, option: &str, value: &str) -> bool {
        match option {
            "-qmp" => value == self.qmp(),
            "-device" => device(value).is_some_and(|device| device["id"] == ID && device["driver"] == "vfio-user-pci"),
            _ => false,
        }
    }

    /// The slot of a `-device`, if it is on the first bus.
    pub fn slot(&self, option: &str, value: &str) -> Option<usize> {
        let device = (option == "-device").then(|| device(value)).flatten()?;
        let is_here = device["bus"].is_null() || device["bus"] == self.bus;
        let slot = device["addr"].as_str().filter(|_| is_here)?.split('.').next()?;
        usize::from_str_radix(slot.trim_start_matches("0x"), 16).ok().filter(|slot| *slot < SLOTS)
    }
}

/// The slot for the device: the one that it had, or the best free one.
pub fn choose(used: &[bool; SLOTS], earlier: Option<usize>) -> Option<usize> {
    let is_free = |slot: &usize| !used[*slot];
    earlier.filter(is_free).or_else(|| CHOICES.rev().filter(|slot| !CHIPSET.contains(slot)).find(is_free))
}

/// The value of a `-device`, which QEMU takes as JSON or as a list of keys.
fn device(value: &str) -> Option<Value> {
    if value.starts_with('{') {
        return serde_json::from_str(value).ok().filter(Value::is_object);
    }
    let fields = value.split(',').filter_map(|field| field.split_once('='));
    Some(fields.map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<serde_json::Map<_, _>>().into())
}

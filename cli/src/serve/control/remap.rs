//! Maps the registers of a watchdog again in a QEMU that has restored its guest without that.
//!
//! QEMU 11.1 does not save the PCI registers of a device of another process, and has no command to write them. It has one to
//! write x86 I/O ports, and with these the registers are written as firmware does it (PCI configuration mechanism 1). The
//! VM is stopped meanwhile, and the guest's own address in that mechanism is put back.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vm_watchdog::HandlerError;
use vm_watchdog::i6300esb::{BAR0_SIZE, DEVICE_ID, MEMORY_ENABLE, VENDOR_ID};
use vm_watchdog_timeline::bounded;

use crate::serve::control::qmp::Qmp;
use crate::serve::peer::Owner;

/// The I/O ports of configuration mechanism 1, and the bit that enables it (PCI 3.0, section 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xCF8;
const CONFIG_DATA: u16 = 0xCFC;
const CONFIG_ENABLE: u32 = 1 << 31;
/// Registers of configuration space.
const COMMAND: u32 = 0x04;
const BAR0: u32 = 0x10;

/// A bus in the answer to `query-pci`.
#[derive(Deserialize)]
struct Bus {
    devices: Vec<Function>,
}

/// A function on it.
#[derive(Deserialize)]
struct Function {
    bus: u32,
    slot: u32,
    function: u32,
    id: Id,
    regions: Vec<Region>,
    pci_bridge: Option<Bridge>,
}

#[derive(Deserialize)]
struct Id {
    vendor: u16,
    device: u16,
}

/// The address is negative if the region is not mapped.
#[derive(Deserialize)]
struct Region {
    bar: u32,
    address: i64,
    size: i64,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Bridge {
    devices: Option<Vec<Function>>,
}

#[derive(Deserialize)]
struct Target {
    arch: String,
}

#[derive(Deserialize)]
struct Status {
    running: bool,
}

/// A QEMU, and the process that it has to be.
struct Qemu<'a> {
    qmp: &'a Qmp,
    owner: &'a Owner,
}

/// Maps BAR0 of the only watchdog that is not mapped at `address`. The QMP socket has to belong to `owner`.
///
/// # Errors
///
/// It does not belong to it; QEMU does not answer or refuses; it is no x86 machine; the VM does not run; there is not exactly one such watchdog; or
/// another device is at the address.
pub fn remap(qmp: &Qmp, owner: &Owner, address: u32) -> Result<(), HandlerError> {
    let qemu = Qemu { qmp, owner };
    let Target { arch } = qemu.query("query-target")?;
    if !matches!(arch.as_str(), "x86_64" | "i386") {
        return Err(format!("QEMU has no command for that on {arch}").into());
    }
    let buses: Vec<Bus> = qemu.query("query-pci")?;
    let function = unmapped_watchdog(buses, address)?;
    let Status { running } = qemu.query("query-status")?;
    if !running {
        return Err("the VM does not run".into());
    }
    qemu.ask("stop", None)?;
    let outcome = qemu.write_registers(function, address);
    // Also after an error.
    qemu.ask("cont", None)?;
    outcome
}

impl Qemu<'_> {
    fn write_registers(&self, function: u32, address: u32) -> Result<(), HandlerError> {
        let guests_address = self.input('w', CONFIG_ADDRESS)?;
        let outcome = (|| {
            self.output('w', CONFIG_ADDRESS, function | BAR0)?;
            self.output('w', CONFIG_DATA, address)?;
            self.output('w', CONFIG_ADDRESS, function | COMMAND)?;
            let command = self.input('h', CONFIG_DATA)?;
            self.output('h', CONFIG_DATA, command | u32::from(MEMORY_ENABLE))
        })();
        self.output('w', CONFIG_ADDRESS, guests_address)?;
        outcome
    }

    /// Reads an I/O port: `h` is two bytes, `w` is four.
    fn input(&self, size: char, port: u16) -> Result<u32, HandlerError> {
        let answer = self.monitor(&format!("i /{size} {port:#x}"))?;
        let value = answer.rsplit_once("= 0x").and_then(|(_, value)| u32::from_str_radix(value.trim(), 16).ok());
        value.ok_or_else(|| format!("QEMU has not read port {port:#x}").into())
    }

    fn output(&self, size: char, port: u16, value: u32) -> Result<(), HandlerError> {
        match self.monitor(&format!("o /{size} {port:#x} {value:#x}"))?.trim() {
            "" => Ok(()),
            _ => Err(format!("QEMU has not written port {port:#x}").into()),
        }
    }

    /// A command of the human monitor.
    fn monitor(&self, line: &str) -> Result<String, HandlerError> {
        parsed(&self.ask("human-monitor-command", Some(json!({ "command-line": line })))?)
    }

    fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, HandlerError> {
        parsed(&self.ask(command, None)?)
    }

    fn ask(&self, command: &str, arguments: Option<Value>) -> Result<String, HandlerError> {
        self.qmp.ask(command, arguments, self.owner)
    }
}

fn parsed<T: DeserializeOwned>(answer: &str) -> Result<T, HandlerError> {
    serde_json::from_str(answer).map_err(|error| format!("an answer of QEMU: {}", bounded(&error)).into())
}

/// The only watchdog that is not mapped, as configuration mechanism 1 addresses it.
fn unmapped_watchdog(buses: Vec<Bus>, address: u32) -> Result<u32, HandlerError> {
    let mut functions: Vec<_> = buses.into_iter().flat_map(|bus| bus.devices).collect();
    let mut watchdogs = Vec::new();
    while let Some(Function { bus, slot, function, id, regions, pci_bridge }) = functions.pop() {
        functions.extend(pci_bridge.and_then(|bridge| bridge.devices).into_iter().flatten());
        let is_here = |region: &Region| {
            let (begin, end) = (i64::from(address), i64::from(address) + i64::from(BAR0_SIZE));
            region.kind == "memory" && region.address < end && begin < region.address.saturating_add(region.size)
        };
        if regions.iter().any(|region| region.address >= 0 && is_here(region)) {
            return Err(format!("another device is at {address:#x}").into());
        }
        let is_unmapped = regions.iter().any(|region| region.bar == 0 && region.address < 0);
        if (id.vendor, id.device) == (VENDOR_ID, DEVICE_ID) && is_unmapped {
            watchdogs.push(CONFIG_ENABLE | (bus & 0xFF) << 16 | (slot & 0x1F) << 11 | (function & 0x7) << 8);
        }
    }
    match watchdogs[..] {
        [watchdog] => Ok(watchdog),
        _ => Err(format!("{} watchdogs of the VM are not mapped, accepted is one", watchdogs.len()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(slot: u32, device: u32, address: i64) -> Value {
        let region = json!({"bar": 0, "address": address, "size": 16, "type": "memory", "prefetch": false});
        json!({"bus": 0, "slot": slot, "function": 0, "id": {"vendor": 0x8086, "device": device}, "regions": [region]})
    }

    fn found(functions: &[Value]) -> Result<u32, String> {
        let buses = serde_json::from_value(json!([{"bus": 0, "devices": functions}])).unwrap();
        unmapped_watchdog(buses, 0xFEBF_1000).map_err(|error| error.to_string())
    }

    #[test]
    fn the_only_watchdog_that_is_not_mapped_is_found_also_behind_a_bridge() {
        let other = function(1, 0x1237, -1);
        assert_eq!(found(&[other.clone(), function(4, 0x25AB, -1), function(5, 0x25AB, 0xFEBF_2000)]), Ok(0x8000_2000));
        let mut bridge = function(2, 0x0001, 0xFEB0_0000);
        let mut behind = function(4, 0x25AB, -1);
        behind["bus"] = json!(3);
        bridge["pci_bridge"] = json!({"bus": {"number": 0}, "devices": [behind]});
        assert_eq!(found(&[other, bridge]), Ok(0x8003_2000));
    }

    #[test]
    fn several_watchdogs_and_a_taken_address_are_refused() {
        let [four, five] = [4, 5].map(|slot| function(slot, 0x25AB, -1));
        assert_eq!(found(&[]).unwrap_err(), "0 watchdogs of the VM are not mapped, accepted is one");
        assert_eq!(found(&[four.clone(), five]).unwrap_err(), "2 watchdogs of the VM are not mapped, accepted is one");
        for taken in [0xFEBF_1000, 0xFEBF_100F, 0xFEBF_0FF1] {
            let error = found(&[four.clone(), function(6, 0x10D3, taken)]).unwrap_err();
            assert_eq!(error, "another device is at 0xfebf1000");
        }
        for free in [0xFEBF_0FF0, 0xFEBF_1010, i64::MAX] {
            assert!(found(&[four.clone(), function(6, 0x10D3, free)]).is_ok());
        }
    }

    #[test]
    fn an_answer_that_is_not_understood_is_quoted_in_part() {
        let error = parsed::<u32>(&json!("\u{1b}[2J".repeat(1_000)).to_string()).unwrap_err().to_string();
        assert!(error.starts_with("an answer of QEMU: invalid type: string"), "{error}");
        assert!(error.chars().count() < 250 && !error.contains(char::is_control), "{error:?}");
    }
}

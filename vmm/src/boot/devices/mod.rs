//! Everything a guest can reach by port and memory accesses, whatever runs its instructions.

pub mod pci;
pub mod serial;
pub mod test_ports;
pub mod watchdog;

use pci::PciBus;
use serial::Console;
use test_ports::TestPorts;

/// The keyboard controller's command port; its one command here is the CPU reset that Linux calls `reboot=k`.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xFE;

/// The data port of the real-time clock. There is none, but all ones would mean an update that never ends, for which
/// Linux waits many seconds; so it reads zero.
const CLOCK_DATA: u16 = 0x71;

/// The register that ACPI will call PM1a control. SLP_EN with sleep type 0 powers the machine off; it is in the upper
/// byte, which may be written alone.
const POWER_CONTROL: u16 = 0x604;
const POWER_CONTROL_HIGH: u16 = POWER_CONTROL + 1;
const POWER_OFF: u8 = 1 << 5;

/// What a guest asks of the VMM with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Reset the machine.
    Reset,
    /// Power the machine off.
    PowerOff,
    /// The built-in guest gives up: this step of its table did not see what it expects.
    Unexpected(u32),
}

/// The devices of the machine.
pub struct Devices {
    /// PCI bus 0.
    pub pci: PciBus,
    /// The serial console.
    pub console: Console,
    /// Helpers of the built-in guest; no other guest has them.
    pub test_ports: Option<TestPorts>,
}

impl Devices {
    /// What a platform reset does to the devices.
    pub fn reset(&mut self) {
        self.pci.reset();
        self.console.reset();
    }

    /// An input from a port. What is not there reads all ones.
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        match port {
            pci::CONFIG_ADDRESS..=pci::CONFIG_DATA_END => self.pci.read_port(port, data),
            serial::FIRST_PORT..=serial::LAST_PORT => self.console.read_port(port, data),
            CLOCK_DATA => data.fill(0),
            _ => {
                all_ones(data);
                if let Some(ports) = &self.test_ports {
                    ports.read_port(port, data);
                }
            }
        }
    }

    /// An output to a port. What is not there swallows it.
    pub fn write_port(&mut self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        match (port, data) {
            (pci::CONFIG_ADDRESS..=pci::CONFIG_DATA_END, _) => self.pci.write_port(port, data),
            (serial::FIRST_PORT..=serial::LAST_PORT, _) => self.console.write_port(port, data),
            (KEYBOARD_COMMAND, [KEYBOARD_RESET]) => return Some(GuestRequest::Reset),
            (POWER_CONTROL, [_, POWER_OFF]) | (POWER_CONTROL_HIGH, [POWER_OFF]) => return Some(GuestRequest::PowerOff),
            _ => return self.test_ports.as_ref().and_then(|ports| ports.write_port(port, data)),
        }
        None
    }

    /// A read of memory that is not RAM.
    pub fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        self.pci.read_memory(address, data);
    }

    /// A write of memory that is not RAM.
    pub fn write_memory(&mut self, address: u64, data: &[u8]) {
        self.pci.write_memory(address, data);
    }
}

/// What a bus reads where nothing answers.
fn all_ones(data: &mut [u8]) {
    data.fill(0xFF);
}

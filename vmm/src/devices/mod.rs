//! The devices that a guest accesses by ports and memory, whichever processor runs it.

pub mod i6300esb;
mod observer;
pub mod pci;
pub mod power;
pub mod request;
pub mod serial;
pub mod test_ports;
pub mod wdat;

use crate::devices::pci::PciBus;
use crate::devices::power::PowerManagement;
use crate::devices::request::GuestRequest;
use crate::devices::serial::SerialPort;
use crate::devices::test_ports::TestPorts;
use crate::devices::wdat::WdatPorts;

/// The keyboard controller's command port; its one command here is the CPU reset that Linux calls `reboot=k`.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xFE;

/// The data port of the real-time clock. There is no such clock, but the port reads zero: all ones would mean an update
/// that never ends, which Linux waits for many seconds.
const CLOCK_DATA: u16 = 0x71;

/// The devices of the machine.
pub struct Devices {
    /// PCI bus 0.
    pub pci: PciBus,
    /// The serial console.
    pub console: SerialPort,
    /// A second serial port, if something takes what it writes.
    pub second_serial: Option<SerialPort>,
    /// The power button, and the way to power the machine off.
    pub power: PowerManagement,
    /// The watchdog of the ACPI watchdog table, if the machine has one.
    pub wdat: Option<WdatPorts>,
    /// Helpers of the built-in guest; no other guest has them.
    pub test_ports: Option<TestPorts>,
}

impl Devices {
    /// A platform reset.
    pub fn reset(&mut self) {
        self.pci.reset();
        self.console.reset();
        if let Some(serial) = &mut self.second_serial {
            serial.reset();
        }
        self.power.reset();
        if let Some(wdat) = &mut self.wdat {
            wdat.reset();
        }
    }

    /// An input from a port. A port without a device reads all ones.
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        if let Some(serial) = self.serial_port(port) {
            return serial.read_port(port, data);
        }
        if let Some(wdat) = self.wdat(port) {
            return wdat.read_port(port, data);
        }
        match port {
            pci::CONFIG_ADDRESS..=pci::CONFIG_DATA_END => self.pci.read_port(port, data),
            power::EVENT_BLOCK..=power::LAST_PORT => self.power.read_port(port, data),
            CLOCK_DATA => data.fill(0),
            _ => {
                data.fill(0xFF);
                if let Some(ports) = &self.test_ports {
                    ports.read_port(port, data);
                }
            }
        }
    }

    /// An output to a port. A port without a device ignores it.
    pub fn write_port(&mut self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        if let Some(serial) = self.serial_port(port) {
            serial.write_port(port, data);
            return None;
        }
        if let Some(wdat) = self.wdat(port) {
            wdat.write_port(port, data);
            return None;
        }
        match (port, data) {
            (pci::CONFIG_ADDRESS..=pci::CONFIG_DATA_END, _) => self.pci.write_port(port, data),
            (KEYBOARD_COMMAND, [KEYBOARD_RESET]) => return Some(GuestRequest::Reset),
            (power::EVENT_BLOCK..=power::LAST_PORT, _) => return self.power.write_port(port, data),
            _ => return self.test_ports.as_ref().and_then(|ports| ports.write_port(port, data)),
        }
        None
    }

    /// The serial port to which an I/O port belongs.
    fn serial_port(&mut self, port: u16) -> Option<&mut SerialPort> {
        match port {
            port if serial::CONSOLE.contains(&port) => Some(&mut self.console),
            port if serial::SECOND.contains(&port) => self.second_serial.as_mut(),
            _ => None,
        }
    }

    /// The watchdog to which an I/O port belongs.
    fn wdat(&mut self, port: u16) -> Option<&mut WdatPorts> {
        self.wdat.as_mut().filter(|_| wdat::PORTS.contains(&port))
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
    use vm_watchdog::wdat::Wdat;
    use vm_watchdog::{Event, VmClock, Watchdog};
    use vm_watchdog_timeline::Format;

    use super::*;
    use crate::devices::i6300esb::I6300esbFunction;
    use crate::timeline::Timeline;

    const BASE: u32 = 0xFEB0_0000;

    fn devices() -> (Devices, Watchdog<I6300esb>) {
        let (clock, _) = VmClock::manual();
        let timeline = Arc::new(Timeline::new(clock.clone(), Format::Json, Box::new(std::io::sink())));
        let watchdog = Watchdog::builder("watchdog0", I6300esb::new(I6300esbConfig::default().with_bar0(BASE)))
            .clock(clock.clone())
            .build(|_: &Event| Ok(()))
            .unwrap();
        let mut pci = PciBus::default();
        pci.insert(0, Box::new(pci::HostBridge));
        pci.insert(3, Box::new(I6300esbFunction::new(watchdog.clone(), timeline.clone())));
        let console = SerialPort::new(Box::new(|| Box::new(std::io::sink()))).unwrap();
        let wdat =
            Watchdog::builder("watchdog1", Wdat::default()).clock(clock.clone()).build(|_: &Event| Ok(())).unwrap();
        let wdat = Some(WdatPorts::new(wdat, timeline.clone()));
        let test_ports = Some(TestPorts { clock, timeline, remarks: vec![Some("hello"), None] });
        let power = PowerManagement::default();
        (Devices { pci, console, second_serial: None, power, wdat, test_ports }, watchdog)
    }

    /// Makes the data port mean this register of the watchdog.
    fn select(devices: &mut Devices, register: u32) {
        assert_eq!(devices.write_port(0xCF8, &(0x8000_1800 | register).to_le_bytes()), None);
    }

    fn read_memory(devices: &mut Devices, address: u64) -> [u8; 4] {
        let mut data = [0; 4];
        devices.read_memory(address, &mut data);
        data
    }

    #[test]
    fn every_port_takes_every_width_and_value() {
        let (mut devices, _) = devices();
        for port in 0..=u16::MAX {
            for width in [0, 1, 2, 3, 4, 5, 8, 64, 4096] {
                for value in [0x00, 0x80, 0xFE, 0xFF] {
                    let _ = devices.write_port(port, &vec![value; width]);
                }
                devices.read_port(port, &mut vec![0; width]);
            }
        }
    }

    #[test]
    fn output_of_the_second_serial_port_is_kept_across_resets() {
        let (mut devices, _) = devices();
        let _ = devices.write_port(0x2F8, b"-");
        let mut data = [0];
        devices.read_port(0x2FD, &mut data);
        assert_eq!(data, [0xFF], "without an output there is no such port");

        let mut file = tempfile::tempfile().unwrap();
        let output = Arc::new(file.try_clone().unwrap());
        let output: serial::Output = Box::new(move || Box::new(output.clone()));
        devices.second_serial = Some(SerialPort::new(output).unwrap());
        for byte in [b"a", b"b"] {
            let _ = devices.write_port(0x2F8, byte);
            let _ = devices.write_port(0x3F8, b"-");
            devices.reset();
        }
        let mut written = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut written).unwrap();
        assert_eq!(written, "ab");
    }

    #[test]
    fn every_register_takes_every_width_and_value() {
        let (mut devices, _) = devices();
        for register in 0..=0xFF {
            for (port, width) in [(0xCFC, 1), (0xCFD, 1), (0xCFC, 2), (0xCFE, 2), (0xCFC, 4), (0xCFF, 4), (0xCFC, 4096)]
            {
                for value in [0x00, 0x55, 0x80, 0x86, 0xFF] {
                    select(&mut devices, register);
                    let _ = devices.write_port(port, &vec![value; width]);
                    devices.read_port(port, &mut vec![0; width]);
                }
            }
        }
    }

    #[test]
    fn memory_is_decoded_where_the_guest_puts_it_and_nowhere_else() {
        let (mut devices, watchdog) = devices();
        assert_eq!(read_memory(&mut devices, BASE.into()), [0xFF; 4], "memory is not enabled");
        select(&mut devices, 0x04);
        let _ = devices.write_port(0xCFC, &[0x02]);
        assert_eq!(read_memory(&mut devices, BASE.into()), [0xFF, 0xFF, 0x0F, 0x00]);
        assert_eq!(read_memory(&mut devices, u64::from(BASE) + 14), [0xFF; 4], "half outside");
        for base in [0x0000_0010_u32, 0x1234_5670, 0xFFFF_FFE0] {
            select(&mut devices, 0x10);
            let _ = devices.write_port(0xCFC, &base.to_le_bytes());
            for address in [0, u64::from(base).wrapping_sub(1), base.into(), u64::from(base) + 15, u64::MAX] {
                for width in [1, 2, 3, 4, 7, 8, 16, 17] {
                    devices.write_memory(address, &vec![0x80; width]);
                    devices.read_memory(address, &mut vec![0; width]);
                }
            }
            assert_eq!(watchdog.bar0(), Some(base));
            assert_eq!(read_memory(&mut devices, base.into()), [0xFF, 0xFF, 0x0F, 0x00]);
            assert_eq!(read_memory(&mut devices, BASE.into()), [0xFF; 4], "it has left {base:#x}");
        }
    }

    #[test]
    fn memory_is_decoded_while_the_guest_sizes_it() {
        let (mut devices, _) = devices();
        select(&mut devices, 0x04);
        let _ = devices.write_port(0xCFC, &[0x02]);
        select(&mut devices, 0x10);
        let _ = devices.write_port(0xCFC, &[0xFF; 4]);
        assert_eq!(read_memory(&mut devices, BASE.into()), [0xFF, 0xFF, 0x0F, 0x00]);
        assert_eq!(read_memory(&mut devices, 0xFFFF_FFF0), [0xFF; 4]);
    }

    #[test]
    fn a_reset_assigns_the_resources_again() {
        let (mut devices, watchdog) = devices();
        select(&mut devices, 0x04);
        let _ = devices.write_port(0xCFC, &[0x02]);
        select(&mut devices, 0x10);
        let _ = devices.write_port(0xCFC, &[0; 4]);
        devices.reset();
        assert_eq!(watchdog.bar0(), None, "memory is not enabled");
        assert_eq!(read_memory(&mut devices, BASE.into()), [0xFF; 4]);
        let mut base = [0; 4];
        watchdog.read_config(0x10, &mut base);
        assert_eq!(base, BASE.to_le_bytes());
    }

    #[test]
    fn the_registers_of_the_acpi_watchdog_are_at_its_ports() {
        let (mut devices, _) = devices();
        let read = |devices: &mut Devices, port| {
            let mut data = [0; 4];
            devices.read_port(port, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(&mut devices, 0x620), 60_000, "RELOAD");
        let _ = devices.write_port(0x620, &30_000_u32.to_le_bytes());
        let _ = devices.write_port(0x628, &[1, 0, 0, 0]);
        assert_eq!([0x620, 0x624, 0x628, 0x62C].map(|port| read(&mut devices, port)), [30_000, 30_000, 1, 0]);
        for port in [0x61C, 0x630] {
            assert_eq!(read(&mut devices, port), u32::MAX, "{port:#x} is none of them");
        }
        devices.reset();
        assert_eq!(read(&mut devices, 0x628), 0, "a reset stops it");
        devices.wdat = None;
        assert_eq!(read(&mut devices, 0x620), u32::MAX, "without it there are no such ports");
    }

    #[test]
    fn a_guest_can_reset_and_power_off() {
        let (mut devices, _) = devices();
        let requests = [
            (0x64, &[0xFE][..], Some(GuestRequest::Reset)),
            (0x64, &[0xFF], None),
            (0x64, &[0xFE, 0xFE], None),
            (0x604, &[0x00, 0x20], Some(GuestRequest::PowerOff)),
            (0x605, &[0x20], Some(GuestRequest::PowerOff)),
            (0x604, &[0x20], None),
            (0x604, &[0x00, 0x24], None),
            (0x508, &[7, 0, 0, 0], Some(GuestRequest::Unexpected(7))),
        ];
        for (port, data, request) in requests {
            assert_eq!(devices.write_port(port, data), request, "{port:#x} {data:x?}");
        }
    }
}

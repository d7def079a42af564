//! Serial ports, 8250s: the console at 3F8h with interrupt 4, and a second port at 2F8h with interrupt 3.

use std::io::{self, Write};
use std::ops::RangeInclusive;

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// The ports of the console.
pub const CONSOLE: RangeInclusive<u16> = 0x3F8..=0x3FF;
/// The interrupt of the console.
pub const CONSOLE_GSI: u32 = 4;
/// The ports of the second serial port.
pub const SECOND: RangeInclusive<u16> = 0x2F8..=0x2FF;
/// The interrupt of the second serial port.
pub const SECOND_GSI: u32 = 3;

/// Opens what a serial port writes to, again at every reset.
pub type Output = Box<dyn Fn() -> Box<dyn Write + Send> + Send>;

/// A serial port without input. Output that cannot be written is lost.
pub struct SerialPort {
    interrupt: EventFd,
    output: Output,
    serial: Serial<Interrupt, NoEvents, Box<dyn Write + Send>>,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialPort {
    /// A port that writes to what `output` opens.
    pub fn new(output: Output) -> io::Result<Self> {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let serial = Serial::new(Interrupt(interrupt.try_clone()?), output());
        Ok(Self { interrupt, output, serial })
    }

    /// The eventfd that the port signals for an interrupt.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Resets every register to its value at power-on.
    pub fn reset(&mut self) {
        if let Ok(interrupt) = self.interrupt.try_clone() {
            self.serial = Serial::new(Interrupt(interrupt), (self.output)());
        }
    }

    /// An input from one of the eight I/O ports; the registers are bytes.
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.serial.read(Self::register(port)),
            data => data.fill(0xFF),
        }
    }

    /// An output to one of the eight I/O ports.
    pub fn write_port(&mut self, port: u16, data: &[u8]) {
        if let [byte] = data {
            let _ = self.serial.write(Self::register(port), *byte);
        }
    }

    /// The I/O ports begin at a multiple of eight.
    fn register(port: u16) -> u8 {
        (port & 7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> SerialPort {
        SerialPort::new(Box::new(|| Box::new(io::sink()))).unwrap()
    }

    #[test]
    fn the_transmitter_is_always_ready_and_asks_for_an_interrupt_when_enabled() {
        let mut console = console();
        let mut status = [0];
        console.read_port(0x3FD, &mut status);
        assert_eq!(status, [0x60]);
        console.write_port(0x3F9, &[0x02]);
        console.write_port(0x3F8, b"x");
        assert!(console.interrupt().read().unwrap() > 0);
    }

    #[test]
    fn wide_accesses_read_ones_and_write_nothing() {
        let mut console = console();
        let mut data = [0; 4];
        console.write_port(0x3FF, &[1, 2]);
        console.read_port(0x3FC, &mut data);
        assert_eq!(data, [0xFF; 4]);
    }

    #[test]
    fn a_reset_clears_the_registers() {
        let mut console = console();
        console.write_port(0x3FF, &[0x5A]);
        console.reset();
        let mut scratch = [0xAA];
        console.read_port(0x3FF, &mut scratch);
        assert_eq!(scratch, [0]);
    }
}

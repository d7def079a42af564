//! The power management registers of a PC with ACPI: the power button, and the way to power the machine off.
//!
//! Source: ACPI Specification 6.5, section 4.8.3. Registers are little-endian; every width reaches its bytes.
//!
//! | port | register | here |
//! |---|---|---|
//! | 600h | PM1 status | PWRBTN_STS; a one clears it |
//! | 602h | PM1 enable | which status raises the SCI |
//! | 604h | PM1 control | SCI_EN, always set; SLP_EN with sleep type 0 powers the machine off |

use vm_watchdog::InterruptLine;

use crate::devices::request::GuestRequest;

/// The first port of the event block, status and enable.
pub const EVENT_BLOCK: u16 = 0x600;
/// The first port of the control block.
pub const CONTROL_BLOCK: u16 = 0x604;
/// The last port of both.
pub const LAST_PORT: u16 = 0x605;
/// The interrupt that an enabled status raises, the SCI; level triggered.
pub const INTERRUPT: u8 = 9;
/// The sleep type of the soft-off state, S5, for the ACPI tables.
pub const SLEEP_TYPE_OFF: u8 = 0;

const POWER_BUTTON: u16 = 1 << 8;
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
const OFF: u16 = SLEEP_ENABLE | (SLEEP_TYPE_OFF as u16) << SLEEP_TYPE_SHIFT;

/// The registers, and the interrupt that they raise.
#[derive(Default)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    interrupt: Option<Box<dyn InterruptLine>>,
}

impl PowerManagement {
    /// Registers that raise this interrupt, if any.
    pub fn new(interrupt: Option<Box<dyn InterruptLine>>) -> Self {
        Self { interrupt, ..Self::default() }
    }

    /// Presses the power button, which asks the guest to shut down.
    pub fn press_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.sync_interrupt();
    }

    /// A platform reset.
    pub fn reset(&mut self) {
        (self.status, self.enable) = (0, 0);
        self.sync_interrupt();
    }

    /// An input from the block's ports.
    pub fn read_port(&mut self, port: u16, data: &mut [u8]) {
        let registers = [self.status, self.enable, SCI_ENABLE].map(u16::to_le_bytes);
        let from_port = registers.as_flattened().iter().skip(usize::from(port - EVENT_BLOCK));
        data.fill(0xFF);
        for (byte, register) in data.iter_mut().zip(from_port) {
            *byte = *register;
        }
    }

    /// An output to the block's ports.
    pub fn write_port(&mut self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        // Bytes that are not written keep their value. In the status register, zeros change nothing.
        let mut registers = [0, self.enable, 0].map(u16::to_le_bytes);
        let from_port = registers.as_flattened_mut().iter_mut().skip(usize::from(port - EVENT_BLOCK));
        for (byte, register) in data.iter().zip(from_port) {
            *register = *byte;
        }
        let [cleared, enable, control] = registers.map(u16::from_le_bytes);
        self.status &= !cleared;
        self.enable = enable;
        self.sync_interrupt();
        (control & (SLEEP_ENABLE | SLEEP_TYPE) == OFF).then_some(GuestRequest::PowerOff)
    }

    fn sync_interrupt(&self) {
        let level = self.status & self.enable != 0;
        if let Some(Err(error)) = self.interrupt.as_ref().map(|interrupt| interrupt.set_level(level)) {
            log::error!("the power management interrupt stays as it was: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn power_management() -> (PowerManagement, Arc<AtomicBool>) {
        let level = Arc::new(AtomicBool::new(false));
        let seen = level.clone();
        let line = move |high| {
            level.store(high, Ordering::SeqCst);
            Ok(())
        };
        (PowerManagement::new(Some(Box::new(line))), seen)
    }

    fn read<const N: usize>(power: &mut PowerManagement, port: u16) -> [u8; N] {
        let mut data = [0; N];
        power.read_port(port, &mut data);
        data
    }

    #[test]
    fn the_button_interrupts_a_guest_that_listens_until_it_clears_the_status() {
        let (mut power, level) = power_management();
        power.write_port(0x602, &[0x00, 0x01]);
        assert!(!level.load(Ordering::SeqCst));
        power.press_button();
        assert!(level.load(Ordering::SeqCst));
        assert_eq!(read(&mut power, 0x600), [0x00, 0x01]);
        power.write_port(0x600, &[0x20, 0x00]);
        assert!(level.load(Ordering::SeqCst), "another bit was cleared");
        power.write_port(0x601, &[0x01]);
        assert!(!level.load(Ordering::SeqCst));
        assert_eq!(read(&mut power, 0x600), [0x00, 0x00, 0x00, 0x01]);
    }

    #[test]
    fn the_button_waits_for_a_guest_that_listens_later() {
        let (mut power, level) = power_management();
        power.press_button();
        assert!(!level.load(Ordering::SeqCst));
        power.write_port(0x603, &[0x01]);
        assert!(level.load(Ordering::SeqCst));
        power.reset();
        assert!(!level.load(Ordering::SeqCst));
        assert_eq!(read(&mut power, 0x600), [0; 4]);
    }

    #[test]
    fn only_the_soft_off_state_powers_off() {
        let (mut power, _) = power_management();
        for (port, data, request) in [
            (0x604, &[0x01, 0x20][..], Some(GuestRequest::PowerOff)),
            (0x605, &[0x20], Some(GuestRequest::PowerOff)),
            (0x604, &[0x01, 0x00], None),
            (0x604, &[0x01, 0x24], None),
            (0x605, &[0x00], None),
            (0x602, &[0x20, 0x20], None),
        ] {
            assert_eq!(power.write_port(port, data), request, "{port:#x} {data:x?}");
        }
        assert_eq!(read(&mut power, 0x604), [0x01, 0x00]);
        assert_eq!(read(&mut power, 0x604), [0x01, 0x00, 0xFF, 0xFF], "nothing behind it");
    }
}

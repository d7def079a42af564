//! Ports that only the built-in guest has: a clock for its waits, and two ports that report to the VMM.
//!
//! | port | access | meaning |
//! |---|---|---|
//! | 500h | read, 32 bit | milliseconds on the VM's clock |
//! | 504h | write, 32 bit | show remark number N of the table |
//! | 508h | write, 32 bit | step N of the table did not see what it expects: end the run |

use std::sync::Arc;

use vm_watchdog::VmClock;

use crate::devices::request::GuestRequest;
use crate::timeline::{Entry, Timeline};

/// Milliseconds on the VM's clock.
pub const CLOCK: u16 = 0x500;
/// Shows a remark.
pub const REMARK: u16 = 0x504;
/// Ends the run.
pub const UNEXPECTED: u16 = 0x508;

/// The ports, and what they lead to.
pub struct TestPorts {
    /// The clock to read.
    pub clock: VmClock,
    /// Where remarks are shown.
    pub timeline: Arc<Timeline>,
    /// The remarks of the guest's table, by number.
    pub remarks: Vec<Option<&'static str>>,
}

impl TestPorts {
    /// An input; other ports and widths are left as they are.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        if let (CLOCK, Ok(data)) = (port, <&mut [u8; 4]>::try_from(data)) {
            let milliseconds = self.clock.now().as_nanos() / 1_000_000;
            // Wraps after 49 days, as the guest's subtraction does.
            *data = (milliseconds as u32).to_le_bytes();
        }
    }

    /// An output; other ports and widths are ignored.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        let number = u32::from_le_bytes(data.try_into().ok()?);
        match port {
            REMARK => {
                let remark = self.remarks.get(usize::try_from(number).ok()?).copied().flatten()?;
                self.timeline.record(Entry::Guest { message: remark.to_owned() });
                None
            }
            UNEXPECTED => Some(GuestRequest::Unexpected(number)),
            _ => None,
        }
    }
}

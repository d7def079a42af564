//! The interrupt line of a device.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A level-triggered interrupt line of the VM, set by a watchdog. Implemented for closures.
///
/// The library calls it when the level changes, one call at a time for a watchdog, with no lock held.
///
/// ```
/// use std::io;
/// use vm_watchdog::InterruptLine;
///
/// fn takes(line: impl InterruptLine) {}
/// takes(|high: bool| -> io::Result<()> { println!("INTA# is {high}"); Ok(()) });
/// ```
pub trait InterruptLine: Send + Sync {
    /// Drives the line high (asserted) or low.
    ///
    /// # Errors
    ///
    /// An error is counted and logged, and the level is set again at the next access or expiry.
    fn set_level(&self, high: bool) -> io::Result<()>;
}

impl<F> InterruptLine for F
where
    F: Fn(bool) -> io::Result<()> + Send + Sync,
{
    fn set_level(&self, high: bool) -> io::Result<()> {
        self(high)
    }
}

/// An eventfd that is signalled when the line rises, for an irqfd or any other edge.
///
/// For a KVM irqfd with a resample eventfd, which lowers the line at the guest's end of interrupt, call
/// [`Watchdog::resample_interrupt`](crate::Watchdog::resample_interrupt) when the latter fires: it signals again while
/// the device still asserts the line.
impl InterruptLine for EventFd {
    fn set_level(&self, high: bool) -> io::Result<()> {
        if high { self.write(1) } else { Ok(()) }
    }
}

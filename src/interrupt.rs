//! The interrupt of a device: its line, and its messages.

use std::io;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionbio, write};
use vm_watchdog_devices::MsiMessage;

/// A level-triggered interrupt line of the VM, set by a watchdog. Implemented for closures.
///
/// The library calls it when the level changes, one call at a time for a watchdog, never while the VM is paused, and
/// with no lock held.
///
/// | what the VMM has | the line |
/// |---|---|
/// | the VM's KVM descriptor | a closure over `KVM_IRQ_LINE` |
/// | an irqfd and its resample eventfd | [`EventFdLine::with_resample`] |
/// | an interrupt object that hides KVM and injects one interrupt a call, as in Cloud Hypervisor | a closure that calls it if `high` |
/// | an eventfd without [`AsFd`] | a closure that writes to it if `high` |
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

    /// A non-blocking eventfd that the interrupt controller signals when the guest has ended an interrupt and the line was
    /// lowered: the resample eventfd of a KVM irqfd. The watchdog reads it, and sets the line again if the device still
    /// asserts it, at most 1,000 times a second. Asked once, when the watchdog is built.
    fn resample(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<F> InterruptLine for F
where
    F: Fn(bool) -> io::Result<()> + Send + Sync,
{
    fn set_level(&self, high: bool) -> io::Result<()> {
        self(high)
    }
}

/// Sends the interrupt messages (MSI) of a watchdog. Implemented for closures.
///
/// The library calls it once for an interrupt, one call at a time for a watchdog, never while the VM is paused, and with
/// no lock held. A message that is due while the VM is paused, saved or moved is sent when the VM runs.
///
/// A VMM on KVM gives it a closure over its VM's `KVM_SIGNAL_MSI`. That ioctl returns 0 if the guest does not accept the
/// interrupt, which is no error. A VMM that hides its KVM descriptor, such as Cloud Hypervisor, gives it a closure over its
/// own way to inject a message.
///
/// ```
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
/// use vm_watchdog::{Event, MsiMessage, Watchdog};
///
/// let device = I6300esb::new(I6300esbConfig::default().with_msi());
/// let watchdog = Watchdog::builder("wd", device)
///     .msi(|message: MsiMessage| Ok(println!("{:#x} to {:#x}", message.data, message.address)))
///     .build(|_: &Event| Ok(()))?;
/// # drop(watchdog);
/// # Ok::<(), vm_watchdog::Error>(())
/// ```
pub trait MsiSender: Send + Sync {
    /// Sends a message to the VM's interrupt controller. Address and data are what the guest has programmed, and may be
    /// anything.
    ///
    /// # Errors
    ///
    /// An error is counted and logged, and the message is sent again at the next access or expiry, unless the guest has
    /// cleared the interrupt.
    fn send(&self, message: MsiMessage) -> io::Result<()>;
}

impl<F> MsiSender for F
where
    F: Fn(MsiMessage) -> io::Result<()> + Send + Sync,
{
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        self(message)
    }
}

/// An eventfd that is signalled when the line rises, for an irqfd or any other edge.
///
/// A KVM irqfd with a resample eventfd is a level-triggered line: KVM lowers it at the guest's end of interrupt, and the
/// watchdog signals it again if the device still asserts the line. Without one it is an edge.
///
/// ```
/// use vm_watchdog::{Event, EventFdLine, Watchdog};
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
///
/// # fn example(irqfd: std::os::fd::OwnedFd, resample: std::os::fd::OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
/// let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
/// // The same eventfds go to KVM_IRQFD, with KVM_IRQFD_FLAG_RESAMPLE. The VMM does not read the second one.
/// let line = EventFdLine::new(&irqfd)?.with_resample(&resample)?;
/// let watchdog = Watchdog::builder("wd", device).interrupt_line(line).build(|_: &Event| Ok(()))?;
/// # Ok(()) }
/// ```
///
/// An eventfd of a type without [`AsFd`], like that of `vmm-sys-util`, needs no `EventFdLine`: a closure over it is a
/// line too, with any version of that crate.
///
/// ```
/// use vm_watchdog::{Event, Watchdog};
/// use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let device = I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA));
/// let irqfd = EventFd::new(EFD_NONBLOCK)?; // goes to VmFd::register_irqfd first
/// let watchdog = Watchdog::builder("wd", device)
///     .interrupt_line(move |high: bool| if high { irqfd.write(1) } else { Ok(()) })
///     .build(|_: &Event| Ok(()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EventFdLine {
    eventfd: OwnedFd,
    resample: Option<OwnedFd>,
}

impl EventFdLine {
    /// A line that signals a duplicate of `eventfd`.
    ///
    /// # Errors
    ///
    /// The host's error if the process has no descriptor left.
    pub fn new(eventfd: impl AsFd) -> io::Result<Self> {
        Ok(eventfd.as_fd().try_clone_to_owned()?.into())
    }

    /// The same line, with a duplicate of the eventfd that is signalled at the end of an interrupt. It becomes
    /// non-blocking.
    ///
    /// # Errors
    ///
    /// The host's error if the process has no descriptor left.
    pub fn with_resample(self, resample: impl AsFd) -> io::Result<Self> {
        let resample = resample.as_fd().try_clone_to_owned()?;
        ioctl_fionbio(&resample, true)?;
        Ok(Self { resample: Some(resample), ..self })
    }
}

impl From<OwnedFd> for EventFdLine {
    fn from(eventfd: OwnedFd) -> Self {
        Self { eventfd, resample: None }
    }
}

impl InterruptLine for EventFdLine {
    fn set_level(&self, high: bool) -> io::Result<()> {
        if !high {
            return Ok(());
        }
        match write(&self.eventfd, &1_u64.to_ne_bytes()) {
            // A non-blocking eventfd whose counter is full is signalled already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn resample(&self) -> Option<BorrowedFd<'_>> {
        self.resample.as_ref().map(AsFd::as_fd)
    }
}

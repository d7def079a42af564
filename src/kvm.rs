//! An interrupt line of a KVM VM.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::InterruptLine;

/// A GSI of a VM with an in-kernel interrupt controller, driven by level.
///
/// ```no_run
/// use std::sync::Arc;
/// use vm_watchdog::{Event, KvmInterruptLine, Watchdog, i6300esb::{I6300esb, I6300esbConfig, InterruptPin}};
///
/// # fn example(vm: Arc<kvm_ioctls::VmFd>) -> Result<(), vm_watchdog::Error> {
/// let device = I6300esb::new(I6300esbConfig { interrupt_pin: InterruptPin::IntA, ..Default::default() });
/// let line = KvmInterruptLine::new(vm, 11);
/// let watchdog = Watchdog::builder("wd", device).interrupt_line(line).build(|_: &Event| Ok(()))?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct KvmInterruptLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl KvmInterruptLine {
    /// The line `gsi` of `vm`.
    pub fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm, gsi }
    }
}

impl InterruptLine for KvmInterruptLine {
    fn set_level(&self, high: bool) -> io::Result<()> {
        self.vm.set_irq_line(self.gsi, high).map_err(io::Error::from)
    }
}

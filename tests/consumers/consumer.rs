//! A VMM beside `vm-watchdog`, with versions of the rust-vmm crates that are its own choice. Compiled, not run.
//!
//! It passes each kind of value that a VMM has to give: an eventfd and a `KVM_IRQ_LINE` for the interrupt, an action by
//! eventfd, and a subscriber for its event loop.

use std::io;
use std::sync::Arc;

use event_manager::{EventManager, SubscriberOps};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_watchdog::diag288::{Diag288, Intercept};
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{AnyWatchdog, Event, VmClock, Watchdog, WatchdogSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Error = Box<dyn std::error::Error>;

fn device() -> I6300esb {
    I6300esb::new(I6300esbConfig::default().with_interrupt_pin(InterruptPin::IntA))
}

/// An irqfd of the VMM's own `EventFd`, beside one for the end of the interrupt.
pub fn irqfd(vm: &VmFd, clock: VmClock, gsi: u32) -> Result<(Watchdog<I6300esb>, EventFd), Error> {
    let (irqfd, resample) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
    vm.register_irqfd_with_resample(&irqfd, &resample, gsi)?;
    let reset = EventFd::new(EFD_NONBLOCK)?;
    let watchdog = Watchdog::builder("watchdog0", device())
        .clock(clock)
        .interrupt_line(move |high: bool| if high { irqfd.write(1) } else { Ok(()) })
        .build(move |_: &Event| Ok(reset.write(1)?))?;
    Ok((watchdog, resample))
}

/// `KVM_IRQ_LINE`, whose errors are not those of the standard library.
pub fn irq_line(vm: Arc<VmFd>, gsi: u32) -> Result<Watchdog<I6300esb>, Error> {
    let line =
        move |high: bool| vm.set_irq_line(gsi, high).map_err(|error| io::Error::from_raw_os_error(error.errno()));
    Ok(Watchdog::builder("watchdog0", device()).interrupt_line(line).build(|_: &Event| Ok(()))?)
}

/// Watchdogs of two models in the VMM's own event loop.
pub fn event_loop(pci: Watchdog<I6300esb>, call: Watchdog<Diag288>) -> Result<(), Error> {
    let mut events = EventManager::<WatchdogSubscriber>::new()?;
    for watchdog in [AnyWatchdog::from(pci), AnyWatchdog::from(call)] {
        events.add_subscriber(WatchdogSubscriber::new(watchdog));
    }
    events.run_with_timeout(0)?;
    Ok(())
}

/// The exit of a vCPU on s390x: numbers, no type of `kvm-bindings`.
pub fn intercepted(_: &VcpuFd, watchdog: &Watchdog<Diag288>, regs: &[u64; 16]) -> bool {
    watchdog.intercept(4, 0x8324, 0x0288_0000, regs) == Intercept::Done
}

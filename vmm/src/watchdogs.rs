//! Builds the watchdogs and puts them on the bus.

use std::sync::Arc;

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{ThreadRunDelay, VmClock, Watchdog, WatchdogConfig};

use crate::devices::pci::PciBus;
use crate::devices::watchdog::WatchdogFunction;
use crate::error::BootError;
use crate::inbox::WatchdogSender;
use crate::kvm::KvmMachine;
use crate::snapshot::Snapshot;
use crate::timeline::Timeline;
use crate::watchdog_options::{MOST_WATCHDOGS, i6300esb, ids};

/// The PCI slot of the first watchdog.
const FIRST_SLOT: u8 = 3;
/// Where firmware would put BAR0 of the first; each has a page.
const FIRST_BASE: u32 = 0xFEB0_0000;
/// The interrupts of the watchdogs: those of a PC that no other device here uses.
const INTERRUPTS: [u8; MOST_WATCHDOGS] = [11, 10, 15, 14];

/// The address of BAR0 of the watchdog with this index.
pub fn base_address(index: u8) -> u32 {
    FIRST_BASE + 0x1000 * u32::from(index)
}

/// What watchdogs are built from.
pub struct Watchdogs<'a> {
    /// The clock of the VM.
    pub clock: &'a VmClock,
    /// Where heartbeats are recorded.
    pub timeline: &'a Arc<Timeline>,
    /// Where interrupts go; `None` if the guest is played.
    pub kvm: Option<&'a KvmMachine>,
    /// Where actions go.
    pub actions: &'a WatchdogSender,
    /// The run delay (steal time) of the vCPU.
    pub run_delay: &'a ThreadRunDelay,
    /// Their saved state; `None` at power-on.
    pub snapshot: Option<&'a Snapshot>,
}

impl Watchdogs<'_> {
    /// Builds each watchdog and puts it on the bus.
    pub fn build(&self, configs: &[WatchdogConfig], bus: &mut PciBus) -> Result<Vec<Watchdog<I6300esb>>, BootError> {
        let mut watchdogs = Vec::new();
        for (index, (config, id)) in (0_u8..).zip(configs.iter().zip(ids(configs))) {
            let device = i6300esb(config)?.with_bar0(base_address(index));
            let interrupt = (device.interrupt_pin != InterruptPin::None).then_some(INTERRUPTS[usize::from(index)]);
            let device = device.with_interrupt_line(interrupt.unwrap_or(0));
            let watchdog = self.build_one(config, device, id, interrupt)?;
            let mut function = WatchdogFunction::new(watchdog.clone(), self.timeline.clone());
            if let Some(snapshot) = self.snapshot {
                snapshot.restore_watchdog(index.into(), |state| function.restore(state))?;
            }
            bus.insert(FIRST_SLOT + index, Box::new(function));
            watchdogs.push(watchdog);
        }
        Ok(watchdogs)
    }

    fn build_one(
        &self,
        config: &WatchdogConfig,
        device: I6300esbConfig,
        id: String,
        interrupt: Option<u8>,
    ) -> Result<Watchdog<I6300esb>, BootError> {
        let builder = Watchdog::builder(id, I6300esb::new(device)).clock(self.clock.clone()).policy(config.policy());
        let builder = match (self.kvm, interrupt) {
            (Some(kvm), Some(gsi)) => {
                kvm.set_level_triggered(gsi)?;
                builder.interrupt_line(kvm.interrupt_line(gsi.into()))
            }
            _ => builder,
        };
        let builder = match self.kvm {
            Some(kvm) if device.msi => builder.msi(kvm.msi_sender()),
            _ => builder,
        };
        let builder = match config.steal_limit() {
            Some(limit) => builder.compensate_steal_time(self.run_delay.clone(), limit),
            None => builder,
        };
        Ok(builder.build(self.actions.clone())?)
    }
}

//! Builds the watchdogs and puts them where the guest finds them.

use std::sync::Arc;

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::wdat::Wdat;
use vm_watchdog::{
    AnyWatchdog, DeviceConfig, Model, ThreadRunDelay, VmClock, Watchdog, WatchdogBuilder, WatchdogConfig,
};

use crate::devices::Devices;
use crate::devices::i6300esb::I6300esbFunction;
use crate::devices::wdat::WdatPorts;
use crate::error::BootError;
use crate::inbox::WatchdogSender;
use crate::kvm::KvmMachine;
use crate::snapshot::Snapshot;
use crate::timeline::Timeline;
use crate::watchdog_options::{MOST_WATCHDOGS, ids, no_such_model};

/// The PCI slot of the first i6300esb.
const FIRST_SLOT: u8 = 3;
/// Where firmware would put BAR0 of the first; each has a page.
const FIRST_BASE: u32 = 0xFEB0_0000;
/// The interrupts of the i6300esbs: those of a PC that no other device here uses.
const INTERRUPTS: [u8; MOST_WATCHDOGS] = [11, 10, 15, 14];

/// The address of BAR0 of the i6300esb with this index.
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
    /// Builds each watchdog, and adds it to the devices.
    pub fn build(&self, configs: &[WatchdogConfig], devices: &mut Devices) -> Result<Vec<AnyWatchdog>, BootError> {
        let mut watchdogs = Vec::new();
        let mut functions = 0_u8..;
        for (index, (config, id)) in configs.iter().zip(ids(configs)).enumerate() {
            let watchdog: AnyWatchdog = match config.device() {
                DeviceConfig::I6300esb(device) => {
                    let function = functions.next().unwrap_or_default();
                    let builder = self.i6300esb(config, id, device, function)?;
                    let watchdog = self.finish(index, builder)?;
                    let bus_function = I6300esbFunction::new(watchdog.clone(), self.timeline.clone());
                    devices.pci.insert(FIRST_SLOT + function, Box::new(bus_function));
                    watchdog.into()
                }
                DeviceConfig::Wdat(device) => {
                    let watchdog = self.finish(index, self.builder(config, id, Wdat::new(device)))?;
                    devices.wdat = Some(WdatPorts::new(watchdog.clone(), self.timeline.clone()));
                    watchdog.into()
                }
                _ => return Err(no_such_model(config)),
            };
            watchdogs.push(watchdog);
        }
        Ok(watchdogs)
    }

    /// What watchdogs of all models have in common.
    fn builder<M: Model + Send + 'static>(&self, config: &WatchdogConfig, id: String, device: M) -> WatchdogBuilder<M> {
        let builder = Watchdog::builder(id, device).clock(self.clock.clone()).policy(config.policy());
        match config.steal_limit() {
            Some(limit) => builder.compensate_steal_time(self.run_delay.clone(), limit),
            None => builder,
        }
    }

    /// An i6300esb with the resources that firmware would assign to the PCI function with this index.
    fn i6300esb(
        &self,
        config: &WatchdogConfig,
        id: String,
        device: I6300esbConfig,
        function: u8,
    ) -> Result<WatchdogBuilder<I6300esb>, BootError> {
        let interrupt = (device.interrupt_pin != InterruptPin::None).then_some(INTERRUPTS[usize::from(function)]);
        let device = device.with_bar0(base_address(function)).with_interrupt_line(interrupt.unwrap_or(0));
        let builder = self.builder(config, id, I6300esb::new(device));
        let builder = match (self.kvm, interrupt) {
            (Some(kvm), Some(gsi)) => {
                kvm.set_level_triggered(gsi)?;
                builder.interrupt_line(kvm.interrupt_line(gsi.into()))
            }
            _ => builder,
        };
        Ok(match self.kvm {
            Some(kvm) if device.msi => builder.msi(kvm.msi_sender()),
            _ => builder,
        })
    }

    /// Builds a watchdog, in its saved state if there is one.
    fn finish<M: Model + Send + 'static>(
        &self,
        index: usize,
        builder: WatchdogBuilder<M>,
    ) -> Result<Watchdog<M>, BootError> {
        let watchdog = builder.build(self.actions.clone())?;
        if let Some(snapshot) = self.snapshot {
            snapshot.restore_watchdog(index, &watchdog.clone().into())?;
        }
        Ok(watchdog)
    }
}

//! From the `--watchdog` options to watchdogs on the bus.

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{DeviceModel, ThreadRunDelay, VmClock, Watchdog, WatchdogConfig};

use std::sync::Arc;

use super::devices::pci::PciBus;
use super::devices::watchdog::{Resources, WatchdogFunction};
use super::error::BootError;
use super::inbox::WatchdogSender;
use super::kvm::KvmMachine;
use super::snapshot::Snapshot;
use super::timeline::Timeline;

/// The PCI slot of the first watchdog.
const FIRST_SLOT: u8 = 3;
/// Where firmware would put BAR0 of the first; each has a page.
const FIRST_BASE: u32 = 0xFEB0_0000;
/// The interrupts of a PC that nothing else uses here, one a watchdog.
const INTERRUPTS: [u8; 4] = [11, 10, 15, 14];

/// The address of BAR0 of the watchdog with this index.
pub fn base_address(index: u8) -> u32 {
    FIRST_BASE + 0x1000 * u32::from(index)
}

/// Refuses what this VMM does not have.
pub fn check(configs: &[WatchdogConfig]) -> Result<(), BootError> {
    let usage = |message: String| Err(BootError::Usage(message));
    if configs.len() > INTERRUPTS.len() {
        return usage(format!("--watchdog: given {} times, at most {}", configs.len(), INTERRUPTS.len()));
    }
    let ids = ids(configs);
    for (index, (config, id)) in configs.iter().zip(&ids).enumerate() {
        if ids[..index].contains(id) {
            return usage(format!("--watchdog: two watchdogs are called {id:?}"));
        }
        if config.model != DeviceModel::I6300esb {
            return usage(format!("--watchdog: this VMM has no {}", config.model));
        }
    }
    Ok(())
}

/// Each watchdog in words.
pub fn summaries(configs: &[WatchdogConfig]) -> Vec<String> {
    let summary = |(config, id): (&WatchdogConfig, String)| {
        let policy = &config.policy;
        let escalation = policy.escalation.map_or(String::new(), |next| format!(", then {}", next.action));
        format!("{id}: {}, pretimeout {}, timeout {}{escalation}", config.model, policy.pretimeout, policy.timeout)
    };
    configs.iter().zip(ids(configs)).map(summary).collect()
}

/// The name of each watchdog.
pub fn ids(configs: &[WatchdogConfig]) -> Vec<String> {
    let id = |(index, config): (usize, &WatchdogConfig)| config.id.clone().unwrap_or(format!("watchdog{index}"));
    configs.iter().enumerate().map(id).collect()
}

/// What watchdogs are built from.
pub struct Watchdogs<'a> {
    /// The clock of the VM.
    pub clock: &'a VmClock,
    /// Where the guest's doings are shown.
    pub timeline: &'a Arc<Timeline>,
    /// Where interrupts go, if anywhere.
    pub kvm: Option<&'a KvmMachine>,
    /// Where actions go.
    pub actions: &'a WatchdogSender,
    /// How long the vCPU was kept from running.
    pub run_delay: &'a ThreadRunDelay,
    /// What they go on from, if not from power-on.
    pub snapshot: Option<&'a Snapshot>,
}

impl Watchdogs<'_> {
    /// Builds each watchdog and puts it on the bus.
    pub fn build(&self, configs: &[WatchdogConfig], bus: &mut PciBus) -> Result<Vec<Watchdog<I6300esb>>, BootError> {
        let mut watchdogs = Vec::new();
        for (index, (config, id)) in (0_u8..).zip(configs.iter().zip(ids(configs))) {
            let interrupt = config.interrupt.then_some(INTERRUPTS[usize::from(index)]);
            let watchdog = self.build_one(config, id, interrupt)?;
            let resources = Resources { base: base_address(index), interrupt };
            let mut function = WatchdogFunction::new(watchdog.clone(), resources, self.timeline.clone());
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
        id: String,
        interrupt: Option<u8>,
    ) -> Result<Watchdog<I6300esb>, BootError> {
        let builder = Watchdog::builder(id, model(config)).clock(self.clock.clone()).policy(config.policy);
        let builder = match (self.kvm, interrupt) {
            (Some(kvm), Some(gsi)) => {
                kvm.set_level_triggered(gsi)?;
                builder.interrupt_line(kvm.interrupt_line(gsi.into()))
            }
            _ => builder,
        };
        let builder = match config.patience {
            Some(patience) => builder.starvation(self.run_delay.clone(), patience),
            None => builder,
        };
        Ok(builder.build(self.actions.clone())?)
    }
}

/// The device as the guest sees it after power-on.
pub fn model(config: &WatchdogConfig) -> I6300esb {
    let interrupt_pin = if config.interrupt { InterruptPin::IntA } else { InterruptPin::None };
    I6300esb::new(I6300esbConfig::default().with_interrupt_pin(interrupt_pin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::ExitStatus;

    fn configs(texts: &[&str]) -> Vec<WatchdogConfig> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_this_vmm_does_not_have_is_refused_in_one_line() {
        let refused: [&[&str]; 3] = [&["diag288"], &["i6300esb,id=a", "i6300esb,id=a"], &["i6300esb"; 5]];
        for texts in refused {
            let error = check(&configs(texts)).expect_err(texts[0]);
            assert_eq!(error.exit_status(), ExitStatus::Usage);
            assert!(!error.to_string().contains('\n'));
        }
        check(&configs(&["i6300esb"; 4])).unwrap();
    }
}

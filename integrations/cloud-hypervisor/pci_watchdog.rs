// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An Intel 6300ESB watchdog on the PCI bus: the device of the crate vm-watchdog, in Cloud Hypervisor's terms.

use std::any::Any;
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure};
use pci::{BarReprogrammingParams, PciBarPrefetchable};
use seccompiler::apply_filter;
use virtio_devices::seccomp_filters::{Thread, get_seccomp_filter};
use vm_device::PciBarType;
use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbConfig, I6300esbState, MEMORY_ENABLE};
use vm_watchdog::{Action, DeviceConfig, Event, VmClock, Watchdog, WatchdogThread};

use super::*;
use crate::vm_config::WatchdogConfig;

const BAR0: usize = 4; // of the registers of configuration space
const SIZE: u64 = BAR0_SIZE as u64;
const ID: &str = "__pci_watchdog";
const ACTIONS: [Action; 3] = [Action::Reset, Action::Shutdown, Action::Poweroff];

type ConfigWritten = (Vec<BarReprogrammingParams>, Option<Arc<Barrier>>);

pub struct PciWatchdog {
    watchdog: Watchdog<I6300esb>,
    _thread: WatchdogThread,
    /// Where the bus has BAR0, also while the guest has switched it off.
    bar0: u64,
    /// Has the cause of the last reset, for the device that takes this one's place at a reboot.
    config: Arc<Mutex<VmConfig>>,
}

impl DeviceManager {
    pub(super) fn add_pci_watchdog(&mut self, snapshot: Option<&Snapshot>) -> DeviceManagerResult<()> {
        let Some(config) = self.config.lock().unwrap().pci_watchdog.clone() else { return Ok(()) };
        let id = String::from(ID);
        let (segment, bdf, saved) = self.pci_resources(&id, 0, None)?;
        let saved = saved.iter().flatten().find_map(|resource| match resource {
            Resource::PciBar { base, .. } => Some(GuestAddress(*base)),
            _ => None,
        });
        let allocator = &self.pci_segments[segment as usize].mem32_allocator;
        let bar0 = allocator.lock().unwrap().allocate(saved, SIZE, Some(SIZE));
        let GuestAddress(bar0) = bar0.ok_or(DeviceManagerError::AllocateMmioAddress)?;
        let watchdog =
            PciWatchdog::new(self, &config, bar0, snapshot).map_err(DeviceManagerError::CreatePciWatchdog)?;
        let watchdog = Arc::new(Mutex::new(watchdog));

        let (type_, size) = (PciBarType::Mmio32, SIZE);
        let mut node = device_node!(id, watchdog);
        node.resources = vec![Resource::PciBar { index: 0, base: bar0, size, type_, prefetchable: false }];
        node.pci_bdf = Some(bdf);
        self.device_tree.lock().unwrap().insert(id, node);
        let bar = PciBarConfiguration::default().set_address(bar0).set_size(size).set_region_type(type_.into());
        let bars = vec![bar.set_prefetchable(PciBarPrefetchable::NotPrefetchable)];
        self.commit_pci_device(watchdog.clone(), watchdog, segment, bdf, bars)
    }
}

impl PciWatchdog {
    fn new(
        vmm: &DeviceManager,
        config: &WatchdogConfig,
        bar0: u64,
        snapshot: Option<&Snapshot>,
    ) -> anyhow::Result<Self> {
        let DeviceConfig::I6300esb(device) = config.device() else { bail!("{} is no PCI device", config.model()) };
        let policy = config.policy();
        ensure!(policy.actions().all(|action| ACTIONS.contains(&action)), "accepted are {ACTIONS:?} and None");
        ensure!(device == I6300esbConfig::default(), "interrupt= is not connected");
        ensure!(config.steal_limit().is_none(), "steal-limit= is not connected");
        let state: Option<I6300esbState> = state_from_id(snapshot, ID)?;
        // A restored VM is paused until it is resumed.
        let clock = state.map_or_else(VmClock::monotonic, |state| VmClock::monotonic_paused_at(state.vm_time()));
        let (reset, poweroff) = (vmm.reset_evt.try_clone()?, vmm.guest_exit_evt.try_clone()?);
        let button = vmm.ged_notification_device.clone().unwrap();
        let device = I6300esb::new(device.with_bar0(bar0 as u32).with_command(MEMORY_ENABLE));
        let watchdog = Watchdog::builder(ID, device).clock(clock).policy(policy);
        let last_reset = vmm.config.lock().unwrap().last_reset;
        let watchdog = watchdog.last_reset(last_reset).build(move |event: &Event| {
            Ok(match event.action {
                Action::Reset => reset.write(1)?,
                Action::Poweroff => poweroff.write(1)?,
                _ => button.lock().unwrap().notify(AcpiNotificationFlags::POWER_BUTTON_CHANGED)?,
            })
        })?;
        state.iter().try_for_each(|state| watchdog.restore(state))?;
        let filter = get_seccomp_filter(&vmm.seccomp_action, Thread::VirtioWatchdog)?;
        let thread = watchdog.spawn_with(move || match &filter[..] {
            [] => Ok(()),
            filter => apply_filter(filter).map_err(io::Error::other),
        })?;
        Ok(Self { watchdog, _thread: thread, bar0, config: vmm.config.clone() })
    }
}

impl Drop for PciWatchdog {
    fn drop(&mut self) {
        self.config.lock().unwrap().last_reset = self.watchdog.last_reset();
    }
}

impl PciDevice for PciWatchdog {
    fn write_config_register(&mut self, register: usize, offset: u64, data: &[u8]) -> ConfigWritten {
        let moved = self.watchdog.write_config(4 * register as u16 + offset as u16, data);
        let to = moved.and_then(|moved| moved.to).map(u64::from).filter(|&to| to != self.bar0);
        let (old_base, region_type) = (self.bar0, PciBarRegionType::Memory32BitRegion);
        let params = |new_base| BarReprogrammingParams { old_base, new_base, len: SIZE, region_type };
        (to.map(params).into_iter().collect(), None)
    }

    fn read_config_register(&mut self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.watchdog.read_config(4 * register as u16, &mut data);
        u32::from_le_bytes(data)
    }

    fn move_bar(&mut self, _: u64, new_base: u64) -> io::Result<()> {
        self.bar0 = new_base;
        Ok(())
    }

    fn restore_bar_addr(&mut self, refused: &BarReprogrammingParams) {
        self.write_config_register(BAR0, 0, &(refused.old_base as u32).to_le_bytes());
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn id(&self) -> Option<String> {
        Some(ID.into())
    }
}

impl BusDevice for PciWatchdog {
    fn read(&mut self, _: u64, offset: u64, data: &mut [u8]) {
        self.watchdog.read_bar(offset, data);
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
        self.watchdog.write_bar(offset, data);
        None
    }
}

impl Pausable for PciWatchdog {
    fn pause(&mut self) -> result::Result<(), MigratableError> {
        self.watchdog.clock().pause();
        let is_quiet = self.watchdog.clock().quiesce(Duration::from_secs(5));
        is_quiet.then_some(()).ok_or_else(|| MigratableError::Pause(anyhow!("the action of {ID} takes over 5 s")))
    }

    fn resume(&mut self) -> result::Result<(), MigratableError> {
        self.watchdog.clock().resume();
        Ok(())
    }
}

impl Snapshottable for PciWatchdog {
    fn id(&self) -> String {
        ID.into()
    }

    fn snapshot(&mut self) -> result::Result<Snapshot, MigratableError> {
        Snapshot::new_from_state(&self.watchdog.save())
    }
}

impl Transportable for PciWatchdog {}
impl Migratable for PciWatchdog {}

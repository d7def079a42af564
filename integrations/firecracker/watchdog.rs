//! The i6300esb on the PCI bus of a microVM. Its timeout ends the microVM, as a reset by the guest does.

use std::sync::{Arc, Barrier, Mutex};

use serde::{Deserialize, Serialize};
use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbConfig, I6300esbState};
use vm_watchdog::{Action, Event, Policy, VmClock, VmInstant, Watchdog, WatchdogThread};

use crate::device_manager::pci_mngr::PciManagerError;
use crate::device_manager::{AttachDeviceError, DeviceManager, VirtioDevices};
use crate::devices::pci::PciSegment;
use crate::pci::{PciDevice, PciSBDF};
use crate::vstate::bus::BusDevice;
use crate::vstate::resources::AllocPolicy;
use crate::vstate::vm::KvmVm;

/// BAR0 has a page for itself.
const PAGE: u64 = 0x1000;

/// The watchdog of a microVM, and the thread that serves it.
#[derive(Debug)]
pub struct PciWatchdog {
    watchdog: Watchdog<I6300esb>,
    place: Place,
    _thread: WatchdogThread,
}

/// Where the guest finds the device.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Place {
    sbdf: PciSBDF,
    bar0: u32,
}

/// What a snapshot keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PciWatchdogState {
    place: Place,
    watchdog: I6300esbState,
}

/// What the buses call.
struct Registers(Watchdog<I6300esb>);

impl PciWatchdog {
    /// Adds a watchdog to a microVM that is being built, whose vCPUs are paused.
    pub fn attach(vm: &KvmVm, segment: &PciSegment) -> Result<Self, PciManagerError> {
        let sbdf = segment.next_device_sbdf()?;
        let bar0 = vm.resource_allocator().mmio32_memory.allocate(PAGE, PAGE, AllocPolicy::FirstMatch)?.start();
        Self::insert(vm, segment, Place { sbdf, bar0: bar0 as u32 }, VmInstant::ZERO)
    }

    /// Adds the watchdog of a snapshot.
    pub fn restore(vm: &KvmVm, segment: &PciSegment, state: &PciWatchdogState) -> Result<Self, PciManagerError> {
        let it = Self::insert(vm, segment, state.place, state.watchdog.vm_time())?;
        it.watchdog.restore(&state.watchdog)?;
        Ok(it)
    }

    fn insert(vm: &KvmVm, segment: &PciSegment, place: Place, start: VmInstant) -> Result<Self, PciManagerError> {
        let exit = vm.vcpus_exit_evt().try_clone().map_err(|error| PciManagerError::Kvm(error.into()))?;
        let watchdog = Watchdog::builder("watchdog", I6300esb::new(I6300esbConfig::default().with_bar0(place.bar0)))
            .clock(VmClock::monotonic_paused_at(start))
            .policy(Policy::new(Action::Poweroff))
            .build(move |_: &Event| Ok(exit.write(1)?))?;
        let thread = watchdog.spawn()?;
        let registers = Arc::new(Mutex::new(Registers(watchdog.clone())));
        // The PCI bus keeps the device, the MMIO bus does not.
        segment.pci_bus.lock().expect("Poisoned lock").add_device(place.sbdf.device(), registers.clone())?;
        vm.common.mmio_bus.insert(registers, place.bar0.into(), BAR0_SIZE.into())?;
        Ok(Self { watchdog, place, _thread: thread })
    }

    /// The state of a paused watchdog.
    pub fn save(&self) -> PciWatchdogState {
        PciWatchdogState { place: self.place, watchdog: self.watchdog.save() }
    }
}

impl DeviceManager {
    /// Gives a microVM with a PCI bus a watchdog.
    pub(crate) fn attach_watchdog(&mut self, vm: &KvmVm) -> Result<(), AttachDeviceError> {
        if let VirtioDevices::Pci(pci) = &mut self.virtio_devices {
            pci.watchdog = Some(PciWatchdog::attach(vm, &pci.pci_segment)?);
        }
        Ok(())
    }

    /// Lets the time of the watchdog pass, because the vCPUs run.
    pub(crate) fn resume_watchdog(&self) {
        if let Some(clock) = self.watchdog_clock() {
            clock.resume();
        }
    }

    /// Stops the time of the watchdog, because the vCPUs are to stop.
    pub(crate) fn pause_watchdog(&self) {
        if let Some(clock) = self.watchdog_clock() {
            clock.pause();
        }
    }

    fn watchdog_clock(&self) -> Option<&VmClock> {
        let VirtioDevices::Pci(pci) = &self.virtio_devices else { return None };
        Some(pci.watchdog.as_ref()?.watchdog.clock())
    }
}

impl PciDevice for Registers {
    fn read_config_register(&mut self, reg_idx: u16) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_config(reg_idx * 4, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write_config_register(&mut self, reg_idx: u16, offset: u8, data: &[u8]) -> Option<Arc<Barrier>> {
        self.0.write_config(reg_idx * 4 + u16::from(offset), data);
        None
    }
}

impl BusDevice for Registers {
    fn read(&mut self, _base: u64, offset: u64, data: &mut [u8]) {
        self.0.read_bar(offset, data);
    }

    fn write(&mut self, _base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
        self.0.write_bar(offset, data);
        None
    }
}

#[cfg(test)]
#[path = "watchdog_tests.rs"]
mod tests;

//! The watchdog in the words of a guest: configuration through the memory-mapped configuration space, heartbeats through BAR0.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use event_manager::SubscriberOps;

use super::*;
use crate::arch::PCI_MMCONFIG_START;
use crate::builder::tests::default_vmm_with_pci;
use crate::device_manager::tests::{pci_devices, pci_devices_mut};
use crate::seccomp::{apply_filter, deserialize_binary};
use crate::vstate::bus::Bus;
use crate::{EventManager, FcExitCode, Vmm};

/// Each stage lasts this many microseconds of the 1 MHz prescaler, whose unit is 960 ns.
const PRELOAD: u32 = 250_000;
/// Both stages together.
const TIMEOUT: Duration = Duration::from_nanos(2 * PRELOAD as u64 * 960);

/// What a guest does.
struct Guest {
    bus: Arc<Bus>,
    config: u64,
    bar0: u64,
}

impl Guest {
    /// Finds the watchdog, enables its BAR, and programs and starts it.
    fn arms(vmm: &Vmm) -> Self {
        let bus = vmm.vm.as_kvm().unwrap().common.mmio_bus.clone();
        let functions = (0..32).map(|device| PCI_MMCONFIG_START + (device << 15));
        let read = |at| {
            let mut bytes = [0; 4];
            bus.read(at, &mut bytes).unwrap();
            u32::from_le_bytes(bytes)
        };
        let config = functions.into_iter().find(|&config| read(config) == 0x25AB_8086).unwrap();
        bus.write(config + 0x10, &[0xFF; 4]).unwrap();
        assert_eq!(read(config + 0x10), 0xFFFF_FFF0, "the size of BAR0");
        let bar0 = u64::from(watchdog(vmm).place.bar0);
        bus.write(config + 0x10, &bar0.to_le_bytes()[..4]).unwrap();
        bus.write(config + 0x04, &[0x02, 0x00]).unwrap();
        let guest = Self { bus, config, bar0 };
        guest.bus.write(guest.config + 0x60, &[0x04, 0x00]).unwrap();
        for preload in [0x00, 0x04] {
            guest.unlocks();
            guest.bus.write(guest.bar0 + preload, &PRELOAD.to_le_bytes()).unwrap();
        }
        guest.bus.write(guest.config + 0x68, &[0x02]).unwrap();
        guest
    }

    fn unlocks(&self) {
        for key in [0x80, 0x86] {
            self.bus.write(self.bar0 + 0x0C, &[key, 0x00]).unwrap();
        }
    }

    fn feeds(&self) {
        self.unlocks();
        self.bus.write(self.bar0 + 0x0C, &[0x00, 0x01]).unwrap();
    }
}

fn watchdog(vmm: &Vmm) -> &PciWatchdog {
    pci_devices(&vmm.device_manager).watchdog.as_ref().unwrap()
}

fn microvm() -> Vmm {
    let mut vmm = default_vmm_with_pci();
    let vm = vmm.vm.as_kvm().unwrap().clone();
    vmm.device_manager.attach_watchdog(&vm).unwrap();
    vmm
}

/// Runs the event loop for at most `limit`, and says whether the microVM has ended.
fn ends_within(vmm: &Arc<Mutex<Vmm>>, events: &mut EventManager, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while vmm.lock().unwrap().shutdown_exit_code().is_none() && Instant::now() < end {
        events.run_with_timeout(10).unwrap();
    }
    vmm.lock().unwrap().shutdown_exit_code() == Some(FcExitCode::Ok)
}

fn run(vmm: Vmm) -> (Arc<Mutex<Vmm>>, EventManager) {
    let vmm = Arc::new(Mutex::new(vmm));
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(vmm.clone());
    vmm.lock().unwrap().resume_vm().unwrap();
    (vmm, events)
}

#[test]
fn a_guest_that_stops_feeding_ends_the_microvm() {
    let (vmm, mut events) = run(microvm());
    let guest = Guest::arms(&vmm.lock().unwrap());
    for _ in 0..6 {
        assert!(!ends_within(&vmm, &mut events, TIMEOUT / 2), "while it feeds");
        guest.feeds();
    }
    let fed = Instant::now();
    guest.feeds();
    assert!(ends_within(&vmm, &mut events, TIMEOUT * 20));
    assert!(fed.elapsed() >= TIMEOUT, "{:?}", fed.elapsed());
}

#[test]
fn a_paused_microvm_does_not_end() {
    let (vmm, mut events) = run(microvm());
    Guest::arms(&vmm.lock().unwrap());
    vmm.lock().unwrap().pause_vm().unwrap();
    assert!(!ends_within(&vmm, &mut events, TIMEOUT * 2));
    vmm.lock().unwrap().resume_vm().unwrap();
    assert!(ends_within(&vmm, &mut events, TIMEOUT * 20));
}

#[test]
fn a_restored_microvm_has_the_time_that_remained() {
    let (vmm, mut events) = run(microvm());
    Guest::arms(&vmm.lock().unwrap());
    assert!(!ends_within(&vmm, &mut events, TIMEOUT / 2));
    vmm.lock().unwrap().pause_vm().unwrap();
    let saved = bitcode::serialize(&watchdog(&vmm.lock().unwrap()).save()).unwrap();

    let mut restored = default_vmm_with_pci();
    let vm = restored.vm.as_kvm().unwrap().clone();
    let state: PciWatchdogState = bitcode::deserialize(&saved).unwrap();
    let pci = pci_devices_mut(&mut restored.device_manager);
    pci.watchdog = Some(PciWatchdog::restore(&vm, &pci.pci_segment, &state).unwrap());
    let (vmm, mut events) = run(restored);
    let resumed = Instant::now();
    assert!(ends_within(&vmm, &mut events, TIMEOUT * 20));
    assert!(resumed.elapsed() < TIMEOUT, "{:?}", resumed.elapsed());
}

/// `SECCOMP_FILTERS` names the file that Firecracker's seccompiler makes of `resources/seccomp/x86_64-unknown-linux-musl.json`.
#[test]
fn the_default_seccomp_filters_are_enough() {
    let Some(path) = std::env::var_os("SECCOMP_FILTERS") else {
        eprintln!("skipped: SECCOMP_FILTERS names no file");
        return;
    };
    let filters = deserialize_binary(File::open(path).unwrap()).unwrap();
    let (vmm, mut events) = run(microvm());
    thread::scope(|scope| {
        scope.spawn(|| {
            apply_filter(&filters["vcpu"]).unwrap();
            let guest = Guest::arms(&vmm.lock().unwrap());
            guest.feeds();
            guest.bus.write(guest.config + 0x68, &[0x00]).unwrap();
            guest.bus.write(guest.config + 0x68, &[0x02]).unwrap();
        });
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            apply_filter(&filters["vmm"]).unwrap();
            vmm.lock().unwrap().pause_vm().unwrap();
            watchdog(&vmm.lock().unwrap()).save();
            vmm.lock().unwrap().resume_vm().unwrap();
        });
    });
    assert!(ends_within(&vmm, &mut events, TIMEOUT * 20));
}

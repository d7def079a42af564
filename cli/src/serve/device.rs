//! The watchdog as a device of the vfio-user server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbState};
use vm_watchdog::{VmClock, Watchdog};
use vm_watchdog_vfio_user::{BARS, Errno, Intx, Migratable, Msi, PciDevice};

/// The register of BAR0 in configuration space.
const BAR0: u16 = 0x10;
/// The register in BAR0 that takes heartbeats.
const RELOAD: u64 = 0x0C;

/// A watchdog, and the line and the message of its interrupt if it has them.
pub struct WatchdogDevice {
    pub watchdog: Watchdog<I6300esb>,
    pub intx: Option<Arc<Intx>>,
    pub msi: Option<Arc<Msi>>,
    /// Whether the guest has reached BAR0 since the last reset, or has asked for its size, as every guest does that boots.
    pub is_in_reach: Arc<AtomicBool>,
    pub pauses: Arc<Pauses>,
}

impl PciDevice for WatchdogDevice {
    fn bar_sizes(&self) -> [u64; BARS] {
        [BAR0_SIZE.into(), 0, 0, 0, 0, 0]
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        self.is_in_reach.store(true, Ordering::Relaxed);
        self.watchdog.read_bar(offset, data);
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        self.is_in_reach.store(true, Ordering::Relaxed);
        self.watchdog.write_bar(offset, data);
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.watchdog.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if (offset, data) == (BAR0, &[0xFF; 4]) {
            self.is_in_reach.store(true, Ordering::Relaxed);
        }
        // The client has BAR0 where its own header says.
        self.watchdog.write_config(offset, data);
    }

    fn reset(&mut self) {
        self.is_in_reach.store(false, Ordering::Relaxed);
        self.watchdog.reset();
    }

    fn intx(&self) -> Option<&Intx> {
        self.intx.as_deref()
    }

    fn msi(&self) -> Option<&Msi> {
        self.msi.as_deref()
    }

    fn migratable(&mut self) -> Option<&mut dyn Migratable> {
        Some(self)
    }
}

impl Migratable for WatchdogDevice {
    fn stop(&mut self) {
        self.pauses.stop_device();
    }

    fn start(&mut self) {
        self.pauses.start_device();
    }

    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        serde_json::to_vec(&self.watchdog.save()).map_err(|_| Errno::IO)
    }

    /// Nothing expires because of the state: an expiry that was not acted on becomes a whole period.
    fn restore(&mut self, state: &[u8]) -> Result<(), Errno> {
        let state: I6300esbState = serde_json::from_slice(state).map_err(|_| Errno::INVAL)?;
        let mut is_pending = state.is_pending();
        let mut state = state.without_pending();
        if let I6300esbState::V1(state) = &mut state {
            is_pending |= state.device.timeout_age_ns.take().is_some();
            state.device.pretimeout_age_ns = None;
        }
        self.watchdog.restore(&state).map_err(|_| Errno::INVAL)?;
        if is_pending {
            for heartbeat in [0x0080_u16, 0x0086, 0x0100] {
                self.watchdog.write_bar(RELOAD, &heartbeat.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// Why the clock of a VM is paused: the VM is, or its client has stopped a device of it.
#[derive(Debug)]
pub struct Pauses {
    clock: VmClock,
    reasons: Mutex<Reasons>,
}

#[derive(Debug, Default)]
struct Reasons {
    is_vm_paused: bool,
    stopped_devices: u32,
}

impl Pauses {
    /// Of a VM that runs.
    pub fn of(clock: VmClock) -> Self {
        Self { clock, reasons: Mutex::default() }
    }

    /// Notes whether the VM is paused, and returns whether that is new.
    pub fn set_vm_paused(&self, is_paused: bool) -> bool {
        self.change(|reasons| std::mem::replace(&mut reasons.is_vm_paused, is_paused) != is_paused)
    }

    fn stop_device(&self) {
        self.change(|reasons| reasons.stopped_devices += 1);
    }

    fn start_device(&self) {
        self.change(|reasons| reasons.stopped_devices -= 1);
    }

    fn change<R>(&self, change: impl FnOnce(&mut Reasons) -> R) -> R {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut reasons);
        match (reasons.is_vm_paused || reasons.stopped_devices > 0, self.clock.is_paused()) {
            (true, false) => self.clock.pause(),
            (false, true) => self.clock.resume(),
            _ => {}
        }
        outcome
    }
}

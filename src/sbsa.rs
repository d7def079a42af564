//! The Generic Watchdog of Arm's Base System Architecture: the model, and the methods for a VMM's bus.

pub use vm_watchdog_devices::sbsa::*;

use vm_watchdog_devices::Access;

use crate::state::WatchdogState;
use crate::watchdog::Watchdog;

/// The saved state of a [`Watchdog<Sbsa>`].
pub type SbsaState = WatchdogState<SbsaStateV1>;

/// Guest accesses. Every length and offset is valid; data is in guest byte order (little-endian).
impl Watchdog<Sbsa> {
    /// Reads the registers of a frame at `offset` (0 to FFFh; all ones beyond).
    ///
    /// ```
    /// use std::num::NonZeroU32;
    /// use vm_watchdog::sbsa::{FRAME_SIZE, Frame, FrameAddresses, Sbsa, SbsaConfig};
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// /// Outside RAM and the windows of PCI.
    /// const FRAMES: FrameAddresses = FrameAddresses { control: 0x0905_0000, refresh: 0x0906_0000 };
    ///
    /// let config = SbsaConfig::new(NonZeroU32::new(62_500_000).expect("CNTFRQ_EL0 is not zero"));
    /// let watchdog = Watchdog::builder("wd", Sbsa::new(config)).build(|_: &Event| Ok(()))?;
    ///
    /// // On an access of the guest outside RAM, from any vCPU thread:
    /// let read = |address: u64, data: &mut [u8]| {
    ///     let within = |base: u64| address.checked_sub(base).filter(|offset| *offset < FRAME_SIZE);
    ///     if let Some(offset) = within(FRAMES.control) {
    ///         watchdog.read(Frame::Control, offset, data);
    ///     } else if let Some(offset) = within(FRAMES.refresh) {
    ///         watchdog.read(Frame::Refresh, offset, data);
    ///     }
    /// };
    /// let mut identification = [0; 4];
    /// read(0x0905_0FCC, &mut identification);
    /// assert_eq!(u32::from_le_bytes(identification) >> 16, 1); // version 1
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn read(&self, frame: Frame, offset: u64, data: &mut [u8]) {
        self.access(|device, now| (device.read(frame, offset, data, now), ()));
    }

    /// Writes the registers of a frame at `offset`.
    pub fn write(&self, frame: Frame, offset: u64, data: &[u8]) {
        self.access(|device, now| (device.write(frame, offset, data, now), ()));
    }

    /// Sets the device's counter to what the guest's system counter (CNTVCT_EL0) reads now, in ticks.
    ///
    /// WCV is an absolute value of that counter, and the device's one follows from the [clock](crate::VmClock). The VMM calls
    /// this before the vCPUs run: at the start, after a restore and after a pause, unless the guest's counter begins at 0
    /// with the clock, stops while the clock is paused and was restored as it was saved. The clock of the host is adjusted
    /// by NTP and its counter is not, and [steal-time compensation](crate::WatchdogBuilder::compensate_steal_time) holds the
    /// device's time back: a VMM whose guest is to read the time left exactly calls this before each access too. The time that
    /// is left is the same before and after.
    ///
    /// ```
    /// use std::num::NonZeroU32;
    /// use vm_watchdog::sbsa::{Frame, Sbsa, SbsaConfig};
    /// use vm_watchdog::{Event, VmClock, Watchdog};
    ///
    /// let config = SbsaConfig::new(NonZeroU32::new(1_000).expect("not zero"));
    /// let (clock, _time) = VmClock::manual();
    /// let watchdog = Watchdog::builder("wd", Sbsa::new(config)).clock(clock).build(|_: &Event| Ok(()))?;
    /// watchdog.set_counter(700_000);
    /// watchdog.write(Frame::Control, 0x008, &5_000_u64.to_le_bytes());
    /// let mut wcv = [0; 8];
    /// watchdog.read(Frame::Control, 0x010, &mut wcv);
    /// assert_eq!(u64::from_le_bytes(wcv), 705_000);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn set_counter(&self, value: u64) {
        self.access(|device, now| {
            device.set_counter(value, now);
            (Access::Accepted, ())
        });
    }

    /// WS1: whether the watchdog has timed out since the guest's last explicit refresh. A reset does not clear it.
    pub fn timed_out(&self) -> bool {
        self.inspect(Sbsa::timed_out)
    }
}

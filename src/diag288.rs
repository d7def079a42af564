//! DIAGNOSE X'288', the watchdog of s390x: its model, and how a VMM's vCPU threads reach it.
//!
//! [`Watchdog::intercept`] does for a VMM on KVM all that the model's documentation asks for.

pub use vm_watchdog_devices::diag288::*;

use crate::Watchdog;

/// The guest's calls.
impl Watchdog<Diag288> {
    /// Handles an exit of a KVM vCPU with `KVM_EXIT_S390_SIEIC` (`VcpuExit::S390Sieic`).
    ///
    /// `icptcode`, `ipa` and `ipb` are the fields of `kvm_run.s390_sieic`, and `gprs` the vCPU's general registers, from
    /// `kvm_run.s.regs.gprs` (set `KVM_SYNC_GPRS` in `kvm_valid_regs`) or `KVM_GET_REGS`. None is changed.
    ///
    /// ```
    /// use vm_watchdog::diag288::{Diag288, Intercept};
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// # fn inject(code: u16) {}
    /// let watchdog = Watchdog::builder("watchdog0", Diag288::new()).build(|_: &Event| Ok(()))?;
    /// // In the loop around KVM_RUN:
    /// # let (icptcode, ipa, ipb, mut gprs) = (4, 0x8324, 0x0288_0000, [0; 16]);
    /// # gprs[3] = 30;
    /// match watchdog.intercept(icptcode, ipa, ipb, &gprs) {
    ///     Intercept::NotOurs => { /* another device's, or none's */ }
    ///     Intercept::Done => { /* run the vCPU again */ }
    ///     // KVM_S390_INTERRUPT on the vCPU with type KVM_S390_PROGRAM_INT and this code, then run it again.
    ///     Intercept::Inject(interruption) => inject(interruption.code()),
    /// }
    /// # assert!(watchdog.stats().armed);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn intercept(&self, icptcode: u8, ipa: u16, ipb: u32, gprs: &[u64; 16]) -> Intercept {
        match Diagnose::from_intercept(icptcode, ipa, ipb, gprs).map(|call| self.diagnose(&call)) {
            None => Intercept::NotOurs,
            Some(Ok(())) => Intercept::Done,
            Some(Err(interruption)) => Intercept::Inject(interruption),
        }
    }

    /// Performs a decoded call, for software CPUs.
    ///
    /// # Errors
    ///
    /// The program interruption to inject in its place.
    pub fn diagnose(&self, call: &Diagnose) -> Result<(), ProgramInterruption> {
        self.access(|device, now| device.diagnose(call, now)).map(drop)
    }
}

/// What became of an intercept, and what the VMM has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interruption has to be injected"]
pub enum Intercept {
    /// It is no DIAGNOSE X'288'. Handle it as if this device were not there.
    NotOurs,
    /// The call is performed. Run the vCPU again: its PSW points behind the instruction already.
    Done,
    /// The call is refused. Inject this program interruption into the vCPU, leave its PSW alone, and run it again.
    Inject(ProgramInterruption),
}

//! DIAGNOSE X'288', the watchdog of s390x: its model, and how a VMM's vCPU threads reach it.
//!
//! [`Watchdog::intercept`] does for a VMM on KVM all that the model's documentation asks for. In the flavour of z/VM
//! ([`Diag288::zvm`]) it is [`Watchdog::intercept_with_memory`], which can read the guest's commands.

pub use vm_watchdog_devices::diag288::*;

use vm_watchdog_devices::Access;

use crate::watchdog::Watchdog;

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
    ///     // `Intercept` is non-exhaustive; this version returns no other outcome.
    ///     other => unreachable!("{other:?}"),
    /// }
    /// # assert!(watchdog.stats().armed);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn intercept(&self, icptcode: u8, ipa: u16, ipb: u32, gprs: &[u64; 16]) -> Intercept {
        let call = Diagnose::from_intercept(icptcode, ipa, ipb, gprs);
        call.map_or(Intercept::NotOurs, |call| self.diagnose(&call).into())
    }

    /// Handles such an exit of a guest that may believe to run on z/VM: reads its command from its memory.
    ///
    /// `read_memory` fills a slice from the guest's memory at an address, and says whether all of it lies there. It is
    /// called with no lock held. The address is taken for an absolute one. Only in the 8 KiB at 0 and those at the
    /// vCPU's prefix is a guest's real storage another, and no guest is known to keep a command there.
    ///
    /// ```
    /// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    /// use vm_watchdog::diag288::{Diag288, Intercept, UnknownCommands};
    /// use vm_watchdog::{Event, Watchdog};
    ///
    /// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
    /// let watchdog = Watchdog::builder("watchdog0", Diag288::zvm(UnknownCommands::Refused)).build(|_: &Event| Ok(()))?;
    ///
    /// memory.write_slice(&[0xC9, 0xD7, 0xD3], GuestAddress(0x3000))?; // "IPL" in EBCDIC
    /// let mut gprs = [0; 16];
    /// (gprs[3], gprs[4], gprs[5]) = (15, 0x3000, 3);
    /// let outcome = watchdog.intercept_with_memory(4, 0x8324, 0x0288_0000, &gprs, |address, text| {
    ///     memory.read_slice(text, GuestAddress(address)).is_ok()
    /// });
    /// assert_eq!(outcome, Intercept::Done);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn intercept_with_memory(
        &self,
        icptcode: u8,
        ipa: u16,
        ipb: u32,
        gprs: &[u64; 16],
        read_memory: impl FnOnce(u64, &mut [u8]) -> bool,
    ) -> Intercept {
        let Some(call) = Diagnose::from_intercept(icptcode, ipa, ipb, gprs) else {
            return Intercept::NotOurs;
        };
        let mut text = [0; CpCommand::MAX_LENGTH];
        let command = call.command().filter(|_| self.inspect(Diag288::takes_commands)).and_then(|operand| {
            let text = &mut text[..operand.length];
            read_memory(operand.address, text).then_some(&*text)
        });
        self.diagnose_with_command(&call, command).into()
    }

    /// Performs a decoded call, for software CPUs.
    ///
    /// # Errors
    ///
    /// The program interruption to inject in its place.
    pub fn diagnose(&self, call: &Diagnose) -> Result<(), ProgramInterruption> {
        self.access(|device, now| counted(device.diagnose(call, now)))
    }

    /// Performs a decoded call of a guest that may believe to run on z/VM, for VMMs without `vm-memory`: `command` has
    /// the bytes at [`Diagnose::command`], None if they do not all lie in the guest's memory.
    ///
    /// # Errors
    ///
    /// The program interruption to inject in its place.
    pub fn diagnose_with_command(&self, call: &Diagnose, command: Option<&[u8]>) -> Result<(), ProgramInterruption> {
        self.access(|device, now| counted(device.diagnose_with_command(call, command, now)))
    }

    /// What the guest wanted executed at the last timeout, if it believes to run on z/VM.
    ///
    /// A handler that is told of a timeout finds here the command of that timeout.
    pub fn timeout_command(&self) -> Option<CpCommand> {
        self.inspect(|device| device.timeout_command().copied())
    }
}

/// What a call counts as, and its outcome. For the counters, a refused call is one that was ignored.
fn counted(outcome: Result<Access, ProgramInterruption>) -> (Access, Result<(), ProgramInterruption>) {
    (outcome.unwrap_or(Access::Ignored), outcome.map(drop))
}

/// What became of an intercept, and what the VMM has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interruption has to be injected"]
#[non_exhaustive]
pub enum Intercept {
    /// It is no DIAGNOSE X'288'. Handle it as if this device were not there.
    NotOurs,
    /// The call is performed. Run the vCPU again: its PSW points behind the instruction already.
    Done,
    /// The call is refused. Inject this program interruption into the vCPU, leave its PSW alone, and run it again.
    Inject(ProgramInterruption),
}

impl From<Result<(), ProgramInterruption>> for Intercept {
    fn from(outcome: Result<(), ProgramInterruption>) -> Self {
        outcome.map_or_else(Self::Inject, |()| Self::Done)
    }
}

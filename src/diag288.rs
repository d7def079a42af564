//! DIAGNOSE X'288', the watchdog of s390x: the model, and the methods for a VMM's vCPU threads.
//!
//! A VMM on KVM calls [`Watchdog::intercept`], which performs the steps in the model's documentation. With the z/VM
//! flavour ([`Diag288::zvm`]) it calls [`Watchdog::intercept_with_memory`], which reads the guest's commands.

pub use vm_watchdog_devices::diag288::*;

use vm_watchdog_devices::Access;

use crate::state::WatchdogState;
use crate::watchdog::Watchdog;

/// The saved state of a [`Watchdog<Diag288>`].
pub type Diag288State = WatchdogState<Diag288StateV1>;

/// Guest calls.
impl Watchdog<Diag288> {
    /// Handles an exit of a KVM vCPU with `KVM_EXIT_S390_SIEIC` (`VcpuExit::S390Sieic`).
    ///
    /// `icptcode`, `ipa` and `ipb` are the fields of `kvm_run.s390_sieic`, and `gprs` the vCPU's general registers,
    /// from `kvm_run.s.regs.gprs` (set `KVM_SYNC_GPRS` in `kvm_valid_regs`) or `KVM_GET_REGS`. No register changes.
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
    ///     Intercept::NotOurs => { /* handle the exit without this device */ }
    ///     Intercept::Done => { /* run the vCPU again */ }
    ///     // KVM_S390_INTERRUPT on the vCPU with type KVM_S390_PROGRAM_INT and this code, then run it again.
    ///     Intercept::Inject(interruption) => inject(interruption.code()),
    ///     _ => { /* what a later version adds */ }
    /// }
    /// # assert!(watchdog.stats().armed);
    /// # Ok::<(), vm_watchdog::Error>(())
    /// ```
    pub fn intercept(&self, icptcode: u8, ipa: u16, ipb: u32, gprs: &[u64; 16]) -> Intercept {
        let call = Diagnose::from_intercept(icptcode, ipa, ipb, gprs);
        call.map_or(Intercept::NotOurs, |call| self.diagnose(&call).into())
    }

    /// Handles the same exit for the [z/VM flavour](Diag288::zvm): reads the guest's command from guest memory.
    ///
    /// `read_memory` fills a slice from guest memory at an address, and returns whether all of it is guest memory.
    /// It is called with no lock held. The address is treated as absolute: a real address differs from the absolute one
    /// only in the 8 KiB at 0 and the 8 KiB at the vCPU's prefix, and no known guest keeps a command there.
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

    /// Performs a decoded call. For software CPUs.
    ///
    /// # Errors
    ///
    /// The program interruption to inject instead.
    pub fn diagnose(&self, call: &Diagnose) -> Result<(), ProgramInterruption> {
        self.access(|device, now| counted(device.diagnose(call, now)))
    }

    /// Performs a decoded call with the [z/VM flavour](Diag288::zvm), for VMMs without `vm-memory`: `command` has the
    /// bytes at [`Diagnose::command`], `None` if any of them is outside guest memory.
    ///
    /// # Errors
    ///
    /// The program interruption to inject instead.
    pub fn diagnose_with_command(&self, call: &Diagnose, command: Option<&[u8]>) -> Result<(), ProgramInterruption> {
        self.access(|device, now| counted(device.diagnose_with_command(call, command, now)))
    }

    /// With the z/VM flavour: the guest's command for the last timeout.
    ///
    /// A handler that runs for a timeout reads that timeout's command here.
    pub fn timeout_command(&self) -> Option<CpCommand> {
        self.inspect(|device| device.timeout_command().copied())
    }
}

/// Splits an outcome into the access to count and the result. A refused call counts as ignored.
fn counted(outcome: Result<Access, ProgramInterruption>) -> (Access, Result<(), ProgramInterruption>) {
    (outcome.unwrap_or(Access::Ignored), outcome.map(drop))
}

/// Outcome of an intercept, and what the VMM does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interruption has to be injected"]
#[non_exhaustive]
pub enum Intercept {
    /// The instruction is not DIAGNOSE X'288'. Handle the exit without this device.
    NotOurs,
    /// The call is performed. Run the vCPU again; its PSW already points behind the instruction.
    Done,
    /// The call is refused. Inject this program interruption into the vCPU, leave its PSW unchanged, and run it again.
    Inject(ProgramInterruption),
}

impl From<Result<(), ProgramInterruption>> for Intercept {
    fn from(outcome: Result<(), ProgramInterruption>) -> Self {
        outcome.map_or_else(Self::Inject, |()| Self::Done)
    }
}

//! DIAGNOSE X'288', the watchdog of s390x: a hypervisor call, not a device on a bus.
//!
//! The guest executes `diag r1,r3,0x288` with the function in register r1, the timeout in seconds in r1 + 1, and the
//! action in r3:
//!
//! | function | meaning |
//! |---|---|
//! | 0, INIT | arm, or arm again, with the timeout |
//! | 1, CHANGE | a new timeout, counted from now; only while armed. Linux uses it as the heartbeat |
//! | 2, CANCEL | disarm; only while armed |
//!
//! A successful call changes no register and no condition code. A refused call ends in a
//! [program interruption](ProgramInterruption) and does not change the watchdog. Sources: Linux' `diag288_wdt`, KVM's
//! instruction intercepts, the cases of kvm-unit-tests, and QEMU 11.1's device where these are silent.
//!
//! # In a VMM on KVM
//!
//! KVM does not implement the call. A vCPU leaves `KVM_RUN` with `KVM_EXIT_S390_SIEIC` (`VcpuExit::S390Sieic` of
//! `kvm-ioctls`), and `kvm_run.s390_sieic` holds `icptcode`, `ipa` and `ipb`. Then:
//!
//! 1. [Decode](Diagnose::from_intercept) the intercept. `None`: the instruction is not DIAGNOSE X'288'.
//! 2. [Execute](Diag288::diagnose) the call.
//! 3. `Ok`: run the vCPU again. The PSW already points behind the instruction.
//! 4. `Err`: inject the program interruption and run the vCPU again. The ioctl `KVM_S390_INTERRUPT` on the vCPU takes a
//!    `kvm_s390_interrupt` with type `KVM_S390_PROGRAM_INT` (0xFFFE0001), `parm` set to
//!    [the code](ProgramInterruption::code) and `parm64` to zero. Leave the PSW unchanged here too: the exceptions of
//!    DIAGNOSE suppress the instruction, and the old PSW that the guest sees points behind it.
//!
//! The VMM does not check for problem state: KVM refuses DIAGNOSE there. A software CPU passes its
//! [PSW mask](Diagnose::from_instruction) and gets [`ProgramInterruption::PrivilegedOperation`].
//!
//! # The z/VM flavour
//!
//! On z/VM the guest passes a command that the hypervisor executes at the timeout: `diag r1,r3,0x288` with the address
//! of the command's EBCDIC text in register r3, its length in r3 + 1, and INIT or CHANGE in r1, optionally with the bit
//! CONCEAL. A device made with [`Diag288::zvm`] accepts such calls. A model has no access to guest memory, so the VMM
//! reads the text and [passes it](Diag288::diagnose_with_command). [`CpCommand::request`] translates the command for a
//! VMM. Decisions where the sources are silent:
//!
//! - Both INIT and CHANGE need a command, and an odd r3, or a length other than 1 to 230, is a specification exception.
//! - The text is checked last, after all other operands, and after the check that CHANGE finds the watchdog armed.
//! - The timeout disarms the watchdog, so a command is executed once.

mod command;
mod instruction;
mod spec;
mod state;

use core::time::Duration;

pub use command::CpCommand;
pub use instruction::{CommandOperand, Diagnose};
pub use spec::{DIAGNOSE_CODE, MIN_TIMEOUT_SECONDS};
pub use state::Diag288StateV1;

use crate::{Access, AfterTimeout, Expired, LastReset, Model, Request, StateError, VmInstant};
use spec::function;

/// Program interruption that a refused call ends in.
///
/// ```
/// use vm_watchdog_devices::diag288::ProgramInterruption;
///
/// assert_eq!(ProgramInterruption::Specification.code(), 0x0006);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramInterruption {
    /// privileged operation exception (0x0002)
    ///
    /// The guest is in problem state.
    #[error("privileged operation exception (0x0002)")]
    PrivilegedOperation,
    /// addressing exception (0x0005)
    ///
    /// On z/VM: the command lies outside the guest's memory.
    #[error("addressing exception (0x0005)")]
    Addressing,
    /// specification exception (0x0006)
    ///
    /// An operand is not acceptable, or the watchdog is not armed and the function needs it armed.
    #[error("specification exception (0x0006)")]
    Specification,
}

impl ProgramInterruption {
    /// The program-interruption code.
    pub const fn code(self) -> u16 {
        match self {
            Self::PrivilegedOperation => 0x0002,
            Self::Addressing => 0x0005,
            Self::Specification => 0x0006,
        }
    }
}

/// A refused call counts as an ignored access in the statistics.
impl From<Result<Access, ProgramInterruption>> for Access {
    fn from(outcome: Result<Access, ProgramInterruption>) -> Self {
        outcome.unwrap_or(Access::Ignored)
    }
}

/// The watchdog behind DIAGNOSE X'288'.
///
/// [`AfterTimeout`] selects whether the timeout disarms it; with the z/VM flavour it always does.
///
/// ```
/// use vm_watchdog_devices::diag288::{Diag288, Diagnose, ProgramInterruption};
/// use vm_watchdog_devices::{Access, Model, VmInstant};
///
/// let mut watchdog = Diag288::new();
/// let at = |seconds: u64| VmInstant::from_nanos(seconds * 1_000_000_000);
/// // `diag 2,4,0x288`: function in register 2, timeout in 3, action in 4.
/// let call = |function, timeout| {
///     let mut gprs = [0; 16];
///     [gprs[2], gprs[3]] = [function, timeout];
///     Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'")
/// };
/// assert_eq!(watchdog.diagnose(&call(0, 14), at(0)), Err(ProgramInterruption::Specification));
/// assert_eq!(watchdog.diagnose(&call(0, 30), at(0)), Ok(Access::Accepted));
/// assert_eq!(watchdog.diagnose(&call(1, 15), at(20)), Ok(Access::Heartbeat));
/// assert_eq!(watchdog.poll_at(), Some(at(35)));
/// assert_eq!(watchdog.poll(at(36)).timeout, Some(at(35)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diag288 {
    flavour: Flavour,
    after_timeout: AfterTimeout,
    timer: Timer,
    /// The guest's command for the timeout.
    command: Option<CpCommand>,
    /// A timeout that is not yet polled.
    expired: Option<VmInstant>,
    /// The guest's command for the last timeout.
    expired_command: Option<CpCommand>,
    /// It has timed out since the guest last armed it with the function "init". A reset does not clear it.
    has_timed_out: bool,
    /// The latest instant passed in. The device uses it in place of an earlier one.
    latest: VmInstant,
}

/// The interface that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    /// LPAR or KVM: the host chooses the action.
    Lpar,
    /// z/VM: the guest's command selects the action.
    Zvm(UnknownCommands),
}

/// With the z/VM flavour: how the device treats commands that have no meaning for a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnknownCommands {
    /// The device refuses the call with a specification exception, so the guest knows that the command has no effect.
    Refused,
    /// The device accepts the call. At the timeout the host performs its configured action, and can read the
    /// [command](Diag288::timeout_command).
    Accepted,
}

/// State of the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// Not armed since the last reset, or cancelled.
    Stopped,
    /// Armed.
    Running { deadline: VmInstant },
    /// Timed out, and not armed again.
    Expired,
}

impl Diag288 {
    /// A watchdog after power-on, as on LPAR and KVM.
    pub const fn new() -> Self {
        Self::of(Flavour::Lpar)
    }

    /// A watchdog after power-on, as on z/VM: the guest's command selects the action at the timeout.
    pub const fn zvm(unknown: UnknownCommands) -> Self {
        Self::of(Flavour::Zvm(unknown))
    }

    const fn of(flavour: Flavour) -> Self {
        Self {
            flavour,
            after_timeout: AfterTimeout::Armed,
            timer: Timer::Stopped,
            command: None,
            expired: None,
            expired_command: None,
            has_timed_out: false,
            latest: VmInstant::ZERO,
        }
    }

    /// Whether calls carry commands, which the VMM passes to [`diagnose_with_command`](Self::diagnose_with_command).
    pub const fn takes_commands(&self) -> bool {
        matches!(self.flavour, Flavour::Zvm(_))
    }

    /// The guest's command for the last timeout. A reset clears it.
    pub const fn timeout_command(&self) -> Option<&CpCommand> {
        self.expired_command.as_ref()
    }

    /// Performs a call of the guest.
    ///
    /// # Errors
    ///
    /// The program interruption to inject. The watchdog is unchanged.
    pub fn diagnose(&mut self, call: &Diagnose, now: VmInstant) -> Result<Access, ProgramInterruption> {
        self.diagnose_with_command(call, None, now)
    }

    /// Performs a call of the guest with the z/VM flavour: `command` has the bytes at [`Diagnose::command`], `None` if
    /// any of them is outside guest memory. Calls without a command ignore it.
    ///
    /// # Errors
    ///
    /// The program interruption to inject. The watchdog is unchanged.
    pub fn diagnose_with_command(
        &mut self,
        call: &Diagnose,
        command: Option<&[u8]>,
        now: VmInstant,
    ) -> Result<Access, ProgramInterruption> {
        self.advance(now);
        if call.problem_state {
            return Err(ProgramInterruption::PrivilegedOperation);
        }
        match self.flavour {
            Flavour::Lpar => self.diagnose_lpar(call),
            Flavour::Zvm(unknown) => self.diagnose_zvm(call, command, unknown),
        }
    }

    fn diagnose_lpar(&mut self, call: &Diagnose) -> Result<Access, ProgramInterruption> {
        let refused = ProgramInterruption::Specification;
        let [function, timeout] = call.function_and_timeout.ok_or(refused)?;
        if call.action != spec::ACTION_RESTART || function != function::CANCEL && timeout < MIN_TIMEOUT_SECONDS {
            return Err(refused);
        }
        match function {
            function::INIT => Ok(self.init(timeout)),
            function::CHANGE if self.is_armed() => Ok(self.restart(timeout)),
            function::CANCEL if self.is_armed() => Ok(self.cancel()),
            _ => Err(refused),
        }
    }

    fn diagnose_zvm(
        &mut self,
        call: &Diagnose,
        command: Option<&[u8]>,
        unknown: UnknownCommands,
    ) -> Result<Access, ProgramInterruption> {
        let refused = ProgramInterruption::Specification;
        let [function, timeout] = call.function_and_timeout.ok_or(refused)?;
        if function == function::CANCEL {
            return if self.is_armed() { Ok(self.cancel()) } else { Err(refused) };
        }
        let operand = call.command().filter(|_| timeout >= MIN_TIMEOUT_SECONDS).ok_or(refused)?;
        if function & !function::CONCEAL == function::CHANGE && !self.is_armed() {
            return Err(refused);
        }
        let text = command.filter(|text| text.len() == operand.length).ok_or(ProgramInterruption::Addressing)?;
        let command = CpCommand::from_ebcdic(text).ok_or(refused)?;
        if unknown == UnknownCommands::Refused && command.request().is_none() {
            return Err(refused);
        }
        self.command = Some(command);
        if function & !function::CONCEAL == function::INIT { Ok(self.init(timeout)) } else { Ok(self.restart(timeout)) }
    }

    fn init(&mut self, timeout: u64) -> Access {
        self.has_timed_out = false;
        self.restart(timeout)
    }

    fn cancel(&mut self) -> Access {
        self.timer = Timer::Stopped;
        self.command = None;
        Access::Accepted
    }

    fn restart(&mut self, timeout: u64) -> Access {
        let was_stopped = self.timer == Timer::Stopped;
        self.timer = Timer::Running { deadline: self.latest + Duration::from_secs(timeout) };
        if was_stopped { Access::Accepted } else { Access::Heartbeat }
    }

    /// Advances to `now`, and records a timeout if the deadline has passed.
    fn advance(&mut self, now: VmInstant) {
        self.latest = self.latest.max(now);
        if let Timer::Running { deadline } = self.timer {
            // `MAX` is the result of saturation: such a deadline is never reached.
            if deadline <= self.latest && deadline < VmInstant::MAX {
                self.timer = Timer::Expired;
                self.has_timed_out = true;
                let command = self.command.take();
                // Of several timeouts between polls, report the first.
                if self.expired.is_none() {
                    self.expired = Some(deadline);
                    self.expired_command = command;
                }
            }
        }
    }
}

impl Model for Diag288 {
    type State = Diag288StateV1;

    fn poll_at(&self) -> Option<VmInstant> {
        self.expired.or_else(|| self.timeout_at())
    }

    fn timeout_at(&self) -> Option<VmInstant> {
        match self.timer {
            Timer::Running { deadline } => Some(deadline),
            Timer::Stopped | Timer::Expired => None,
        }
    }

    fn poll(&mut self, now: VmInstant) -> Expired {
        self.advance(now);
        Expired { timeout: self.expired.take(), ..Expired::default() }
    }

    fn is_armed(&self) -> bool {
        match self.timer {
            Timer::Stopped => false,
            Timer::Running { .. } => true,
            Timer::Expired => self.flavour == Flavour::Lpar && self.after_timeout == AfterTimeout::Armed,
        }
    }

    fn timeout_request(&self) -> Option<Request> {
        self.expired_command.and_then(|command| command.request())
    }

    fn set_after_timeout(&mut self, after: AfterTimeout) {
        self.after_timeout = after;
    }

    fn last_reset(&self) -> LastReset {
        LastReset::new(self.has_timed_out)
    }

    fn set_last_reset(&mut self, last: LastReset) {
        self.has_timed_out = last.by_watchdog;
    }

    fn reset(&mut self) {
        let Self { flavour, after_timeout, has_timed_out, latest, .. } = *self;
        *self = Self { after_timeout, has_timed_out, latest, ..Self::of(flavour) };
    }

    fn save(&mut self, now: VmInstant) -> Diag288StateV1 {
        self.advance(now);
        self.to_state()
    }

    fn restored(&self, state: &Diag288StateV1, now: VmInstant) -> Result<Self, StateError> {
        self.with_state(state, now)
    }
}

impl Default for Diag288 {
    fn default() -> Self {
        Self::new()
    }
}

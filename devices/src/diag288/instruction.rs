//! Decodes the instruction DIAGNOSE X'288' and its operands.

use super::CpCommand;
use super::spec::{self, function};

/// One DIAGNOSE X'288' as a guest executes it: `diag r1,r3,0x288`, with its operands fetched.
///
/// A VMM on KVM decodes an [intercept](Self::from_intercept), a software CPU decodes the
/// [instruction](Self::from_instruction). Every other instruction, including every other DIAGNOSE, decodes to `None`;
/// the VMM handles it without this device.
///
/// ```
/// use vm_watchdog_devices::diag288::Diagnose;
///
/// let mut gprs = [0; 16];
/// gprs[3] = 30;
/// let call = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("diag 2,4,0x288");
/// assert_eq!(call, Diagnose::from_instruction([0x83, 0x24, 0x02, 0x88], 0, &gprs).expect("the same"));
/// assert_eq!(Diagnose::from_intercept(4, 0x8324, 0x0500_0000, &gprs), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diagnose {
    pub(super) problem_state: bool,
    /// Registers r1 and r1 + 1; `None` if r1 is odd and designates no pair.
    pub(super) function_and_timeout: Option<[u64; 2]>,
    /// Register r3.
    pub(super) action: u64,
    /// Register r3 + 1; `None` if r3 is odd.
    pub(super) command_length: Option<u64>,
}

/// Location of a command for CP: an address in the guest's real storage, and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandOperand {
    /// The address of the first byte.
    pub address: u64,
    /// Number of bytes, 1 to [`CpCommand::MAX_LENGTH`].
    pub length: usize,
}

impl Diagnose {
    /// Decodes a KVM intercept.
    ///
    /// `icptcode`, `ipa` and `ipb` are the three fields of `kvm_run.s390_sieic` at an exit with
    /// `KVM_EXIT_S390_SIEIC`, and `gprs` the vCPU's general registers (`kvm_run.s.regs.gprs` or `KVM_GET_REGS`), all as
    /// native integers.
    pub fn from_intercept(icptcode: u8, ipa: u16, ipb: u32, gprs: &[u64; 16]) -> Option<Self> {
        let [opcode, registers] = ipa.to_be_bytes();
        let [address_high, address_low, _, _] = ipb.to_be_bytes();
        let text = [opcode, registers, address_high, address_low];
        // KVM refuses DIAGNOSE in problem state, so no intercept reports it.
        if icptcode == spec::ICPT_INSTRUCTION { Self::from_instruction(text, 0, gprs) } else { None }
    }

    /// Decodes an instruction from its four bytes, the mask half of the current PSW, and the general registers.
    ///
    /// For software CPUs. Of the mask, only the problem-state bit is used.
    pub fn from_instruction(text: [u8; 4], psw_mask: u64, gprs: &[u64; 16]) -> Option<Self> {
        let [opcode, registers, address @ ..] = text;
        if opcode != spec::OPCODE || second_operand(u16::from_be_bytes(address), gprs) != spec::DIAGNOSE_CODE {
            return None;
        }
        let [r1, r3] = [usize::from(registers >> 4), usize::from(registers & 0xF)];
        Some(Self {
            problem_state: psw_mask & spec::PSW_PROBLEM_STATE != 0,
            function_and_timeout: pair(r1, gprs),
            action: gprs[r3],
            command_length: pair(r3, gprs).map(|[_, length]| length),
        })
    }

    /// The command to read for [`Diag288::diagnose_with_command`](super::Diag288::diagnose_with_command); `None` if the
    /// call has no command.
    pub fn command(&self) -> Option<CommandOperand> {
        let [function, _] = self.function_and_timeout?;
        let length = usize::try_from(self.command_length?).ok()?;
        let takes_one = [function::INIT, function::CHANGE].contains(&(function & !function::CONCEAL));
        let possible = takes_one && (1..=CpCommand::MAX_LENGTH).contains(&length);
        possible.then_some(CommandOperand { address: self.action, length })
    }
}

/// The second-operand address of an instruction in RS format. DIAGNOSE uses its low 16 bits as the code.
///
/// Base 0 means no base, not the contents of register 0.
fn second_operand(base_and_displacement: u16, gprs: &[u64; 16]) -> u16 {
    let displacement = base_and_displacement & 0xFFF;
    let base = match base_and_displacement >> 12 {
        0 => 0,
        base => gprs[usize::from(base)] as u16,
    };
    base.wrapping_add(displacement)
}

/// The even-odd pair of registers that begins at `register`.
fn pair(register: usize, gprs: &[u64; 16]) -> Option<[u64; 2]> {
    if register % 2 != 0 {
        return None;
    }
    gprs.get(register..register + 2)?.try_into().ok()
}

//! Names and numbers of DIAGNOSE X'288', as Linux' `diag288_wdt` uses them on LPAR, KVM and z/VM.

/// The DIAGNOSE code of the watchdog.
pub const DIAGNOSE_CODE: u16 = 0x288;
/// The shortest timeout that the machine accepts, in seconds.
pub const MIN_TIMEOUT_SECONDS: u64 = 15;

/// Operation code of DIAGNOSE.
pub(super) const OPCODE: u8 = 0x83;

/// The function, in register r1.
pub(super) mod function {
    pub const INIT: u64 = 0;
    pub const CHANGE: u64 = 1;
    pub const CANCEL: u64 = 2;
    /// With INIT and CHANGE on z/VM: the guest runs in a protected application environment while the watchdog is armed.
    pub const CONCEAL: u64 = 0x8000_0000;
}

/// The action, in register r3: restart, the only defined value.
pub(super) const ACTION_RESTART: u64 = 0;

/// `icptcode` of an exit from SIE for an instruction.
pub(super) const ICPT_INSTRUCTION: u8 = 4;

/// PSW bit 15, the problem state, in the first eight bytes of a PSW.
pub(super) const PSW_PROBLEM_STATE: u64 = 1 << 48;

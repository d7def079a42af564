//! The register block, and the numbers of the ACPI table that describes it.

/// Size of the register block in bytes.
pub const REGISTERS_SIZE: u64 = 0x10;

/// Milliseconds until a timeout, if the guest starts the watchdog without setting it.
pub const RESET_TIMEOUT_MS: u32 = 60_000;

/// Offsets of the registers, 32 bits each.
pub mod register {
    /// The countdown: periods from a start or a heartbeat to the timeout.
    pub const RELOAD: u64 = 0x0;
    /// Read: periods left, 0 while nothing counts. Any write is a heartbeat.
    pub const COUNT: u64 = 0x4;
    /// Bit 0: the watchdog runs.
    pub const CONTROL: u64 = 0x8;
    /// Bit 0: the watchdog has timed out. A reset keeps it; writing 1 clears it.
    pub const STATUS: u64 = 0xC;
}

/// Bit 0 of CONTROL.
pub const RUN: u32 = 1;
/// Bit 0 of STATUS.
pub const TIMED_OUT: u32 = 1;

/// Actions of the table (Microsoft, Hardware Watchdog Timers Design Specification 1.01; ACPI names it in section 5.2.6).
pub mod action {
    pub const RESET: u8 = 0x01;
    pub const QUERY_CURRENT_COUNTDOWN: u8 = 0x04;
    pub const QUERY_COUNTDOWN: u8 = 0x05;
    pub const SET_COUNTDOWN: u8 = 0x06;
    pub const QUERY_RUNNING: u8 = 0x08;
    pub const SET_RUNNING: u8 = 0x09;
    pub const QUERY_STOPPED: u8 = 0x0A;
    pub const SET_STOPPED: u8 = 0x0B;
    pub const QUERY_STATUS: u8 = 0x20;
    pub const SET_STATUS: u8 = 0x21;
}

/// Instructions of the table: what a guest does with a register for an action.
pub mod instruction {
    /// Compare the register, masked, with the value.
    pub const READ_VALUE: u8 = 0x00;
    /// Read the register, masked.
    pub const READ_COUNTDOWN: u8 = 0x01;
    /// Write the value.
    pub const WRITE_VALUE: u8 = 0x02;
    /// Write a countdown.
    pub const WRITE_COUNTDOWN: u8 = 0x03;
}

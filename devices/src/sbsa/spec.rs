//! The registers of the Generic Watchdog, version 1: Arm's Base System Architecture (DEN0094), appendix C.

/// Size of each of the two frames in bytes (DEN0094, tables 20 and 21).
pub const FRAME_SIZE: u64 = 0x1000;

/// What a device tree names the watchdog (Linux, `Documentation/devicetree/bindings/watchdog/arm,sbsa-gwdt.yaml`).
pub const COMPATIBLE: &str = "arm,sbsa-gwdt";

/// Offsets in the refresh frame (DEN0094, table 20).
pub mod refresh {
    /// Watchdog refresh register: any write is an explicit refresh.
    pub const WRR: u64 = 0x000;
}

/// Offsets in the control frame (DEN0094, table 21).
pub mod control {
    /// Watchdog control and status.
    pub const WCS: u64 = 0x000;
    /// Watchdog offset, bits 31:0.
    pub const WOR_LOW: u64 = 0x008;
    /// Watchdog offset, bits 63:32, of which the upper 16 are reserved.
    pub const WOR_HIGH: u64 = 0x00C;
    /// Watchdog compare value, bits 31:0.
    pub const WCV_LOW: u64 = 0x010;
    /// Watchdog compare value, bits 63:32.
    pub const WCV_HIGH: u64 = 0x014;
}

/// Offset of the interface identification register, in both frames.
pub const W_IIDR: u64 = 0xFCC;
/// W_IIDR: architecture version 1 in bits 19:16. Product, revision and implementer (a JEP106 code) are 0: no company's.
pub const IDENTIFICATION: u32 = 0x0001_0000;

/// Bits of WCS (DEN0094, C.4.1).
pub mod wcs {
    /// Watchdog enable.
    pub const EN: u32 = 1 << 0;
    /// Watchdog signal 0. Read-only.
    pub const WS0: u32 = 1 << 1;
    /// Watchdog signal 1. Read-only.
    pub const WS1: u32 = 1 << 2;
}

/// The bits of WOR: 48 in version 1.
pub const OFFSET_MASK: u64 = 0xFFFF_FFFF_FFFF;

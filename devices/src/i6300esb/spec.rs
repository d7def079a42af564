//! Names and numbers of the Intel 6300ESB datasheet (300641), section 14, "Watchdog Timer".

/// PCI vendor: Intel.
pub const VENDOR_ID: u16 = 0x8086;
/// PCI device: 6300ESB watchdog timer.
pub const DEVICE_ID: u16 = 0x25AB;
/// PCI class code 08 80 00: system peripheral, other.
pub const CLASS_CODE: u32 = 0x08_80_00;
/// Length of the PCI configuration space, in bytes.
pub const CONFIG_SPACE_SIZE: u16 = 0x100;
/// Revision of the function (register 08h).
pub const REVISION_ID: u8 = 0;
/// The MSI capability, for the capabilities pointer (register 34h); the function has it only [if
/// configured](super::I6300esbConfig::with_msi).
pub const MSI_CAPABILITY: u8 = 0x40;
/// Length of BAR0, in bytes: 32-bit memory, non-prefetchable.
pub const BAR0_SIZE: u32 = 16;

/// Memory enable in the PCI command register: BAR0 decodes.
pub const MEMORY_ENABLE: u16 = 1 << 1;

/// Offsets in configuration space. What is not here reads zero.
pub(super) mod config {
    pub const ID: u16 = 0x00;
    pub const COMMAND_STATUS: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const CLASS_REVISION: u16 = 0x08;
    pub const CACHE_LINE_LATENCY: u16 = 0x0C;
    pub const BAR0: u16 = 0x10;
    pub const SUBSYSTEM: u16 = 0x2C;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT: u16 = 0x3C;
    pub const MSI: u16 = super::MSI_CAPABILITY as u16;
    pub const MSI_END: u16 = MSI + super::msi::LENGTH;
    pub const WDT_CONFIGURATION: u16 = 0x60;
    pub const LIVE_COUNTER: u16 = 0x64;
    pub const WDT_LOCK: u16 = 0x68;
    pub const WDT_END: u16 = 0x6C;
}

/// Bits of the PCI command and status registers.
pub(super) mod command {
    pub use super::MEMORY_ENABLE;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTX_DISABLE: u16 = 1 << 10;
    /// I/O, memory, bus master, SERR, INTx disable: the bits that QEMU 11.1's device keeps.
    pub const WRITABLE: u16 = 0x0507;
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
}

/// The MSI capability: offsets of its dwords, and bits of its message control register.
pub(super) mod msi {
    pub const CAPABILITY_ID: u8 = 0x05;
    pub const CONTROL: u16 = 0x0;
    pub const ADDRESS_LOW: u16 = 0x4;
    pub const ADDRESS_HIGH: u16 = 0x8;
    pub const DATA: u16 = 0xC;
    pub const LENGTH: u16 = 0x10;
    pub const ENABLE: u16 = 1 << 0;
    pub const ADDRESS_64: u16 = 1 << 7;
    pub const ADDRESS_LOW_WRITABLE: u32 = !0b11;
}

/// 60h, WDT configuration.
pub(super) mod configuration {
    pub const WDT_OUTPUT_DISABLED: u8 = 1 << 5;
    pub const WDT_PRE_SEL: u8 = 1 << 2;
    pub const WDT_INT_TYPE: u8 = 0b11;
    pub const WDT_INT_TYPE_IRQ: u8 = 0b00;
    pub const WRITABLE: u8 = WDT_OUTPUT_DISABLED | WDT_PRE_SEL | WDT_INT_TYPE;
}

/// 68h, WDT lock.
pub(super) mod lock {
    pub const WDT_TOUT_CNF_FREE_RUNNING: u8 = 1 << 2;
    pub const WDT_ENABLE: u8 = 1 << 1;
    pub const WDT_LOCK: u8 = 1 << 0;
    pub const WRITABLE: u8 = WDT_TOUT_CNF_FREE_RUNNING | WDT_ENABLE | WDT_LOCK;
}

/// Offsets of the dwords of BAR0.
pub(super) mod bar {
    pub const PRELOAD1: u64 = 0x00;
    pub const PRELOAD2: u64 = 0x04;
    pub const GINTSR: u64 = 0x08;
    pub const RELOAD: u64 = 0x0C;
}

/// The preload registers hold 20 bits.
pub(super) const PRELOAD_MASK: u32 = 0xF_FFFF;

/// 08h of BAR0, general interrupt status.
pub(super) mod gintsr {
    pub const WDT_INT_ACT: u32 = 1 << 0;
}

/// 0Ch of BAR0, reload.
pub(super) mod reload {
    pub const UNLOCK_KEY1: u32 = 0x80;
    pub const UNLOCK_KEY2: u32 = 0x86;
    pub const WDT_RELOAD: u32 = 1 << 8;
    pub const WDT_TIMEOUT: u32 = 1 << 9;
    /// Not in the datasheet. Linux 2.6 writes 0x1000 to clear bit 9, so QEMU mirrors bit 9 here.
    pub const WDT_TIMEOUT_MIRROR: u32 = 1 << 12;
}

//! What the guest's operations have set, as far as reads of QEMU's device do not show it.

use crate::operation::{WINDOWS, ones};

/// WDT_TIMEOUT with its mirror.
pub const TIMEOUT_BITS: u32 = 0x1200;
pub const WDT_RELOAD: u32 = 0x0100;

/// BAR0 after a guest has written all ones to learn its size.
const ALL_ONES: u32 = 0xFFFF_FFF0;

/// Progress of the unlock sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlock {
    Locked,
    FirstKey,
    Unlocked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    One,
    Two,
}

/// The effect of a write to BAR0 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Preload 1 or 2, from 0.
    Preload(usize),
    /// These bits of RELOAD.
    Reload(u32),
}

#[derive(Clone, Debug)]
pub struct Book {
    pub unlock: Unlock,
    pub preloads: [u32; 2],
    /// The preloads that QEMU's device has.
    pub preloads_there: [u32; 2],
    /// QEMU's plain storage in configuration space.
    pub storage: [u8; 0x100],
    pub latency_timer: u8,
    /// The running stage.
    pub stage: Option<Stage>,
    /// Nanoseconds in one unit of the running stage.
    pub unit: u64,
    /// WDT_INT_ACT.
    pub interrupt_active: bool,
    pub timed_out: bool,
    pub timed_out_there: bool,
    /// The command register and BAR0, as both devices had them after the last write.
    pub command: u32,
    pub bar0: u32,
    /// Where BAR0 decodes here.
    pub bar: Option<u32>,
    /// Where it decodes, or did last.
    pub last_bar: u32,
    /// BAR0 has all ones, and decodes here.
    pub is_sizing: bool,
}

impl Book {
    /// After power-on, with BAR0 mapped by firmware.
    pub fn new() -> Self {
        Self {
            unlock: Unlock::Locked,
            preloads: [0xF_FFFF; 2],
            preloads_there: [0xF_FFFF; 2],
            storage: [0; 0x100],
            latency_timer: 0,
            stage: None,
            unit: unit(0),
            interrupt_active: false,
            timed_out: false,
            timed_out_there: false,
            command: 0x0002,
            bar0: WINDOWS[0],
            bar: Some(WINDOWS[0]),
            last_bar: WINDOWS[0],
            is_sizing: false,
        }
    }

    /// A reset keeps WDT_TIMEOUT, and QEMU's storage.
    pub fn reset(&mut self) {
        let Self { storage, timed_out, timed_out_there, .. } = *self;
        *self = Self { storage, timed_out, timed_out_there, ..Self::new() };
    }

    /// Where BAR0 decodes in QEMU.
    pub fn bar_there(&self) -> Option<u32> {
        self.bar.filter(|_| !self.is_sizing)
    }

    /// Notes the command register and BAR0 after a write.
    pub fn decode(&mut self, command: u32, bar0: u32) {
        (self.command, self.bar0) = (command, bar0);
        self.bar = match bar0 {
            _ if command & 0x0002 == 0 => None,
            ALL_ONES => self.bar,
            0 => None,
            address => Some(address),
        };
        self.is_sizing = bar0 == ALL_ONES && self.bar.is_some();
        self.last_bar = self.bar.unwrap_or(self.last_bar);
    }

    /// A write to BAR0 here: bytes in the lanes of one dword.
    pub fn write_bar(&mut self, offset: u16, width: usize, value: u32) -> Effect {
        let dword = offset & !3;
        let lane = 8 * (offset & 3);
        let (value, mask) = (value << lane, ones(width) << lane);
        if write_key(&mut self.unlock, dword, value) {
            return Effect::None;
        }
        let is_unlocked = self.unlock == Unlock::Unlocked;
        if is_unlocked {
            self.unlock = Unlock::Locked;
        }
        match dword {
            0x00 | 0x04 if is_unlocked => {
                let number = usize::from(dword / 4);
                self.preloads[number] = (self.preloads[number] & !mask | value) & 0xF_FFFF;
                Effect::Preload(number)
            }
            0x08 => {
                self.interrupt_active &= value & 1 == 0;
                Effect::None
            }
            0x0C if is_unlocked => {
                if value & TIMEOUT_BITS != 0 {
                    (self.timed_out, self.timed_out_there) = (false, false);
                }
                Effect::Reload(value & (TIMEOUT_BITS | WDT_RELOAD))
            }
            _ => Effect::None,
        }
    }

    /// The end of stage 1.
    pub fn end_stage_one(&mut self, configuration: u32) {
        self.interrupt_active = true;
        self.start(Stage::Two, configuration);
    }

    pub fn start(&mut self, stage: Stage, configuration: u32) {
        self.stage = Some(stage);
        self.unit = unit(configuration);
    }

    /// The live counter, if the stage ends after this time.
    pub fn live_counter(&self, remaining: Option<u64>) -> u32 {
        const PCI_CLOCK: u64 = 30;
        let clocks = remaining.unwrap_or(0).div_ceil(PCI_CLOCK);
        (clocks / (self.unit / PCI_CLOCK)) as u32
    }
}

/// Whether BAR0 can have this value: no address, the result of sizing, or an address behind the bridge, where the
/// machine has nothing else.
pub fn is_possible_bar(bar0: u32) -> bool {
    matches!(bar0 & !0xF, 0 | ALL_ONES | 0xFEB0_0000..=0xFEBF_FFF0)
}

/// A write to QEMU's BAR0, which comes in aligned pieces. Returns whether it has an effect on a preload or on RELOAD.
pub fn write_bar_there(unlock: &mut Unlock, offset: u16, width: usize, value: u32) -> bool {
    if usize::from(offset) % width != 0 {
        let bytes = (offset..).zip(value.to_le_bytes()).take(width);
        return bytes.fold(false, |any, (offset, byte)| any | write_bar_there(unlock, offset, 1, byte.into()));
    }
    if write_key(unlock, offset, value) || width == 1 || *unlock != Unlock::Unlocked {
        return false;
    }
    *unlock = Unlock::Locked;
    matches!((offset, width), (0x00 | 0x04, 4) | (0x0C, 2))
}

fn write_key(unlock: &mut Unlock, offset: u16, value: u32) -> bool {
    *unlock = match (offset, value, *unlock) {
        (0x0C, 0x80, _) => Unlock::FirstKey,
        (0x0C, 0x86, Unlock::FirstKey) => Unlock::Unlocked,
        _ => return false,
    };
    true
}

/// Nanoseconds in one unit of a preload.
fn unit(configuration: u32) -> u64 {
    if configuration & 0x04 == 0 { 983_040 } else { 960 }
}

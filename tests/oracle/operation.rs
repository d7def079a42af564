//! What a guest does: one operation, and its words.

use std::fmt;

/// One operation of a guest, or of its platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read(At),
    Write(At, u32),
    Wait(Wait),
    /// The platform resets, and its firmware maps BAR0 again.
    Reset,
}

/// Where an access goes. It does not cross a dword, except for reads of BAR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub target: Target,
    pub offset: u16,
    /// 1, 2 or 4 bytes.
    pub width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Config,
    /// The address at which BAR0 decodes, or where it did last.
    Bar,
    /// An address of [`WINDOWS`], wherever BAR0 is.
    Window(usize),
}

/// How long the guest does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Nanos(u64),
    /// Until this many nanoseconds after the end of the current stage.
    StageEnd(i64),
    /// Until this many nanoseconds after the timeout.
    Timeout(i64),
}

/// Addresses to which the guest moves BAR0. Firmware uses the first.
pub const WINDOWS: [u32; 3] = [0xFEBF_1000, 0xFEBF_1010, 0xFEB0_0000];

pub const fn config(offset: u16, width: usize) -> At {
    At { target: Target::Config, offset, width }
}

pub const fn bar(offset: u16, width: usize) -> At {
    At { target: Target::Bar, offset, width }
}

/// All ones in the low `width` bytes.
pub fn ones(width: usize) -> u32 {
    u32::MAX >> (32 - 8 * width)
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Read(at) => write!(f, "read {at}"),
            Self::Write(at, value) => write!(f, "write {value:#x} to {at}"),
            Self::Wait(Wait::Nanos(nanos)) => write!(f, "wait {nanos} ns"),
            Self::Wait(Wait::StageEnd(after)) => write!(f, "wait until {}the end of the stage", offset(*after)),
            Self::Wait(Wait::Timeout(after)) => write!(f, "wait until {}the timeout", offset(*after)),
            Self::Reset => write!(f, "the platform resets"),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { target, offset, width } = *self;
        let register = match (target, offset) {
            (Target::Config, 0x04..=0x05) => ", the command register",
            (Target::Config, 0x10..=0x13) => ", BAR0",
            (Target::Config, 0x60..=0x61) => ", WDT configuration",
            (Target::Config, 0x64..=0x67) => ", the live counter",
            (Target::Config, 0x68) => ", WDT lock",
            (Target::Bar, 0x00..=0x03) => ", PRELOAD1",
            (Target::Bar, 0x04..=0x07) => ", PRELOAD2",
            (Target::Bar, 0x08..=0x0B) => ", GINTSR",
            (Target::Bar, 0x0C..=0x0F) => ", RELOAD",
            _ => "",
        };
        let space = match target {
            Target::Config => "configuration space".to_owned(),
            Target::Bar => "BAR0".to_owned(),
            Target::Window(window) => format!("memory at {:#x}", WINDOWS[window]),
        };
        let bytes = if width == 1 { "byte" } else { "bytes" };
        write!(f, "{width} {bytes} at {offset:#04x} of {space}{register}")
    }
}

fn offset(nanos: i64) -> String {
    match nanos {
        0 => String::new(),
        ..0 => format!("{} ns before ", -nanos),
        _ => format!("{nanos} ns after "),
    }
}

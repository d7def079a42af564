//! Programs for a vCPU in 64-bit mode, as `boot --kernel` starts one.
//!
//! The first GiB is mapped onto itself; the program therefore moves BAR0 of the i6300esb there, where no memory is.

/// Where it puts BAR0 of the i6300esb, which is at 00:03.0.
const BAR: u32 = 0x2000_0000;
/// The registers of the wdat.
pub const WDAT: u16 = 0x620;

/// Machine code.
#[derive(Default)]
pub struct Program {
    code: Vec<u8>,
    /// Where the part begins that is run again and again.
    again: usize,
}

impl Program {
    /// Moves BAR0 and enables the decoding of memory.
    pub fn new() -> Self {
        Self::default().write_config(0x10, BAR).write_config(0x04, 0x0002)
    }

    /// Writes a dword to a port.
    pub fn write_port(mut self, port: u16, value: u32) -> Self {
        self.code.push(0xBA); // mov edx, port
        self.code.extend(u32::from(port).to_le_bytes());
        self.code.push(0xB8); // mov eax, value
        self.code.extend(value.to_le_bytes());
        self.code.push(0xEF); // out dx, eax
        self
    }

    /// Writes a dword to configuration space.
    pub fn write_config(self, register: u8, value: u32) -> Self {
        self.write_port(0xCF8, 0x8000_1800 | u32::from(register)).write_port(0xCFC, value)
    }

    /// Writes a dword to a register of BAR0.
    pub fn write_bar(mut self, register: u8, value: u32) -> Self {
        self.code.extend([0xC7, 0x04, 0x25]); // mov dword [address], value
        self.code.extend((BAR + u32::from(register)).to_le_bytes());
        self.code.extend(value.to_le_bytes());
        self
    }

    /// Unlocks the next write of a preload register, or a heartbeat.
    pub fn unlock(self) -> Self {
        self.write_bar(0x0C, 0x80).write_bar(0x0C, 0x86)
    }

    /// Sets both preloads.
    pub fn set_preloads(self, units: u32) -> Self {
        self.unlock().write_bar(0x00, units).unlock().write_bar(0x04, units)
    }

    /// What follows is run without an end.
    pub fn again(mut self) -> Self {
        self.again = self.code.len();
        self
    }

    /// The code, for a kernel that begins at its first byte.
    pub fn to_code(&self) -> Vec<u8> {
        let mut code = self.code.clone();
        code.push(0xE9); // jmp again
        let back = i32::try_from(self.again).unwrap() - i32::try_from(code.len() + 4).unwrap();
        code.extend(back.to_le_bytes());
        code
    }
}

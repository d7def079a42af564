//! The memory of a bare-metal guest at its start.

// Assigned storage locations of the architecture.
pub const PROGRAM_INTERRUPTION: u16 = 0x8C;
pub const RESTART_OLD_PSW: u16 = 0x120;
pub const PROGRAM_OLD_PSW: u16 = 0x150;
pub const RESTART_NEW_PSW: usize = 0x1A0;
pub const EXTERNAL_NEW_PSW: usize = 0x1B0;
pub const PROGRAM_NEW_PSW: usize = 0x1D0;

// Bits of a PSW's mask.
pub const PSW_64_BIT: u64 = 0x0000_0001_8000_0000;
pub const PSW_CONDITION_CODE_2: u64 = 2 << 44;
pub const PSW_PROBLEM_STATE: u64 = 0x0001_0000_0000_0000;
pub const PSW_WAIT: u64 = 0x0002_0000_0000_0000;
pub const PSW_EXTERNAL: u64 = 0x0100_0000_0000_0000;

/// The contents of memory from address 0.
pub struct Image(pub Vec<u8>);

impl Image {
    /// An image whose program starts at this address. QEMU starts an image other than Linux at the address of the short
    /// PSW at 0, in 64-bit mode.
    pub fn starting_at(program: u32) -> Self {
        let mut image = Self(Vec::new());
        image.put(0, &[0x0008_0000u32.to_be_bytes(), (0x8000_0000 | program).to_be_bytes()].concat());
        image
    }

    pub fn put(&mut self, address: usize, bytes: &[u8]) -> usize {
        let end = address + bytes.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[address..end].copy_from_slice(bytes);
        end
    }

    pub fn put_psw(&mut self, address: usize, mask: u64, instruction: u64) {
        self.put(address, &[mask.to_be_bytes(), instruction.to_be_bytes()].concat());
    }
}

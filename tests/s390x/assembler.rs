//! An assembler for the instructions of the bare-metal guest.
//!
//! Each function returns the bytes of one instruction. Addresses are absolute, without a base register.

/// `lgfi r,value`: load.
pub fn lgfi(register: u8, value: i32) -> Vec<u8> {
    [&[0xC0, register << 4 | 0x1], &value.to_be_bytes()[..]].concat()
}

/// `cghi r,value`: compare, which sets the condition code.
pub fn cghi(register: u8, value: i16) -> Vec<u8> {
    [&[0xA7, register << 4 | 0xF], &value.to_be_bytes()[..]].concat()
}

/// `ipm r`: insert the condition code into bits 2 and 3 of a word.
pub fn ipm(register: u8) -> Vec<u8> {
    vec![0xB2, 0x22, 0x00, register << 4]
}

/// `lg r,address`: load from memory.
pub fn lg(register: u8, address: u32) -> Vec<u8> {
    with_long_displacement([0xE3, register << 4], address, 0x04)
}

/// `stg r,address`: store 64 bits.
pub fn stg(register: u8, address: u32) -> Vec<u8> {
    with_long_displacement([0xE3, register << 4], address, 0x24)
}

/// `sty r,address`: store 32 bits.
pub fn sty(register: u8, address: u32) -> Vec<u8> {
    with_long_displacement([0xE3, register << 4], address, 0x50)
}

/// `lmg r0,r15,address`: load all registers.
pub fn load_all(address: u32) -> Vec<u8> {
    with_long_displacement([0xEB, 0x0F], address, 0x04)
}

/// `stmg r0,r15,address`: store all registers.
pub fn store_all(address: u32) -> Vec<u8> {
    with_long_displacement([0xEB, 0x0F], address, 0x24)
}

/// `mvc 0(length,r),from`: copy bytes to the address in a register.
pub fn mvc_to(register: u8, length: u8, from: u16) -> Vec<u8> {
    let [high, low] = short_displacement(from);
    vec![0xD2, length - 1, register << 4, 0x00, high, low]
}

/// `ni at,mask`: clear the bits of a byte that are clear in the mask.
pub fn ni(at: u16, mask: u8) -> Vec<u8> {
    let [high, low] = short_displacement(at);
    vec![0x94, mask, high, low]
}

/// `lpswe at`: load a PSW, and continue at its address.
pub fn lpswe(at: u16) -> Vec<u8> {
    let [high, low] = short_displacement(at);
    vec![0xB2, 0xB2, high, low]
}

/// `j .`: loop forever.
pub fn halt() -> Vec<u8> {
    vec![0xA7, 0xF4, 0x00, 0x00]
}

/// `diag r1,r3,displacement(base)`.
pub fn diag(r1: u8, r3: u8, base: u8, displacement: u16) -> [u8; 4] {
    let [high, low] = short_displacement(displacement);
    [0x83, r1 << 4 | r3, base << 4 | high, low]
}

fn short_displacement(displacement: u16) -> [u8; 2] {
    assert!(displacement < 1 << 12);
    displacement.to_be_bytes()
}

/// The formats RXY and RSY: the low 12 bits of the displacement come before the high 8.
fn with_long_displacement([opcode, registers]: [u8; 2], displacement: u32, opcode_end: u8) -> Vec<u8> {
    // Bit 19 is the sign.
    assert!(displacement < 1 << 19);
    let [_, high, middle, low] = displacement.to_be_bytes();
    let (high, middle) = (high << 4 | middle >> 4, middle & 0xF);
    vec![opcode, registers, middle, low, high, opcode_end]
}

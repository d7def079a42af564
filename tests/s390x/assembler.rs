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

/// An address: displacement and base register. Base 0 means none.
pub type Place = (u16, u8);

/// `mvc 0(length,r),from`: copy bytes to the address in a register.
pub fn mvc_to(register: u8, length: u8, from: u16) -> Vec<u8> {
    mvc((0, register), length, (from, 0))
}

/// `mvc to(length),from`: copy bytes.
pub fn mvc(to: Place, length: u8, from: Place) -> Vec<u8> {
    [&[0xD2, length - 1], &with_base(to)[..], &with_base(from)].concat()
}

/// `lg r,from`: load from memory.
pub fn lg_from(register: u8, (displacement, base): Place) -> Vec<u8> {
    let [_, mut load @ ..] = <[u8; 6]>::try_from(lg(register, displacement.into())).expect("six bytes");
    load[1] |= base << 4;
    [&[0xE3], &load[..]].concat()
}

/// `ag r,address`: add from memory.
pub fn ag(register: u8, address: u32) -> Vec<u8> {
    with_long_displacement([0xE3, register << 4], address, 0x08)
}

/// `cg r,address`: compare with memory.
pub fn cg(register: u8, address: u32) -> Vec<u8> {
    with_long_displacement([0xE3, register << 4], address, 0x20)
}

/// `aghi r,value`: add.
pub fn aghi(register: u8, value: i16) -> Vec<u8> {
    [&[0xA7, register << 4 | 0xB], &value.to_be_bytes()[..]].concat()
}

/// `lmg r0,r15,from`: load all registers.
pub fn load_all_from((displacement, base): Place) -> Vec<u8> {
    let [high, low] = with_base((displacement, base));
    vec![0xEB, 0x0F, high, low, 0x00, 0x04]
}

/// `lctlg c0,c0,address`: load control register 0.
pub fn load_control_register_0(address: u32) -> Vec<u8> {
    with_long_displacement([0xEB, 0x00], address, 0x2F)
}

/// `stck at`: store the clock.
pub fn stck(at: Place) -> Vec<u8> {
    [&[0xB2, 0x05], &with_base(at)[..]].concat()
}

/// `sckc at`: set the clock comparator.
pub fn sckc(at: Place) -> Vec<u8> {
    [&[0xB2, 0x06], &with_base(at)[..]].concat()
}

/// When a jump is taken, by the condition code of a comparison.
#[derive(Clone, Copy)]
pub enum If {
    Equal = 8,
    Low = 4,
    Always = 15,
}

/// `brcl condition,to`: the instruction is at `from`.
pub fn jump(condition: If, from: u32, to: u32) -> Vec<u8> {
    let halfwords = (i64::from(to) - i64::from(from)) / 2;
    [&[0xC0, (condition as u8) << 4 | 0x4], &(halfwords as i32).to_be_bytes()[..]].concat()
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

fn with_base((displacement, base): Place) -> [u8; 2] {
    let [high, low] = short_displacement(displacement);
    [base << 4 | high, low]
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

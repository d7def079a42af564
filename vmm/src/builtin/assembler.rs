//! From the table to machine code: flat 32-bit code without a stack frame and without paging.
//!
//! The opcodes are written here because the guests need only a dozen instructions, so an assembler crate would not make
//! this shorter.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::builtin::table::{Data, HANDLE_INTERRUPT, POWER_OFF, Place, Step, VECTOR};
use crate::devices::test_ports;
use crate::kvm::entry::{CODE_SELECTOR, EntryPoint, GDT32};
use crate::memory::GuestMemory;

const GDT: u32 = 0x1000;
const IDT: u32 = 0x1100;
const STACK: u32 = 0x8000;
const CODE: u32 = 0x1_0000;
const NMI_VECTOR: usize = 2;

/// The machine code of a built-in guest.
pub struct BuiltInImage {
    code: Vec<u8>,
    interrupt_handler: u32,
    start: u32,
}

/// Assembles a table for a watchdog whose BAR0 is at this address.
pub fn assemble(steps: &[Step], bar: u32) -> BuiltInImage {
    let mut code = Code::default();
    code.handler(number(steps.len()), &[], bar);
    let interrupt_handler = CODE + number(code.0.len());
    code.handler(number(steps.len() + 1), &HANDLE_INTERRUPT, bar);
    let start = CODE + number(code.0.len());
    for (index, step) in steps.iter().enumerate() {
        code.step(number(index), step, bar);
    }
    code.halt();
    BuiltInImage { code: code.0, interrupt_handler, start }
}

/// The number of a step or an offset in the code: tables are small.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a table of fewer than 2^32 steps")
}

impl BuiltInImage {
    /// Writes the guest into memory, and returns its entry point.
    pub fn load(&self, memory: &GuestMemory) -> Result<EntryPoint, GuestMemoryError> {
        memory.write_obj(GDT32, GuestAddress(GDT.into()))?;
        let mut idt = [0_u64; VECTOR as usize + 1];
        idt[NMI_VECTOR] = interrupt_gate(CODE);
        idt[usize::from(VECTOR)] = interrupt_gate(self.interrupt_handler);
        memory.write_slice(&idt.map(u64::to_le_bytes).concat(), GuestAddress(IDT.into()))?;
        memory.write_slice(&self.code, GuestAddress(CODE.into()))?;
        let idt_limit = size_of_val(&idt) as u16 - 1;
        Ok(EntryPoint::Flat32 { ip: self.start, stack: STACK, gdt: GDT, idt: IDT, idt_limit })
    }
}

/// A present 32-bit interrupt gate of privilege 0 (Intel SDM volume 3, section 6.11).
fn interrupt_gate(handler: u32) -> u64 {
    let handler = u64::from(handler);
    handler & 0xFFFF | u64::from(CODE_SELECTOR) << 16 | 0x8E00 << 32 | (handler >> 16) << 48
}

/// Machine code. `EAX` holds data, `EDX` a port, `EBX` the start of a wait.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn step(&mut self, index: u32, step: &Step, bar: u32) {
        match *step {
            Step::Say(_) => self.write_port(test_ports::REMARK, Data::Long(index)),
            Step::Write(Place::Port(port), data) => self.write_port(port, data),
            Step::Write(Place::Bar(offset), data) => self.store(bar + u32::from(offset), data),
            Step::Write(Place::Apic(address), data) => self.store(address, data),
            Step::TakeInterrupts => self.0.extend([0xFB]), // sti
            Step::Expect(place, mask, data) => {
                self.read(place, mask, bar);
                self.instruction(&[0x3D], data.value() & mask.value()); // cmp eax, data
                let mut unexpected = Self::default();
                unexpected.write_port(test_ports::UNEXPECTED, Data::Long(index));
                unexpected.halt();
                self.unless_equal(unexpected);
            }
            Step::EndIf(place, mask, _) => {
                self.read(place, mask, bar);
                self.instruction(&[0x3D], 0); // cmp eax, 0
                let mut end = Self::default();
                end.write_port(test_ports::REMARK, Data::Long(index));
                end.write_port(POWER_OFF.0, Data::Word(POWER_OFF.1));
                end.halt();
                self.unless_equal(end);
            }
            Step::Wait(milliseconds) => {
                self.read_clock();
                self.0.extend([0x89, 0xC3]); // mov ebx, eax
                let again = self.0.len();
                self.read_clock();
                self.0.extend([0x29, 0xD8]); // sub eax, ebx
                self.instruction(&[0x3D], milliseconds); // cmp eax, milliseconds
                let back = self.0.len() + 2 - again;
                self.0.extend([0x72, short_jump(back).wrapping_neg()]); // jb again
            }
        }
    }

    /// Reads the masked bits into `EAX`.
    fn read(&mut self, place: Place, mask: Data, bar: u32) {
        match place {
            Place::Port(port) => {
                self.instruction(&[0xBA], port.into()); // mov edx, port
                match mask {
                    Data::Byte(_) => self.0.extend([0xEC]),       // in al, dx
                    Data::Word(_) => self.0.extend([0x66, 0xED]), // in ax, dx
                    Data::Long(_) => self.0.extend([0xED]),       // in eax, dx
                }
            }
            Place::Bar(offset) => self.load(bar + u32::from(offset), mask),
            Place::Apic(address) => self.load(address, mask),
        }
        self.instruction(&[0x25], mask.value()); // and eax, mask
    }

    fn load(&mut self, address: u32, width: Data) {
        match width {
            Data::Byte(_) => self.instruction(&[0xA0], address), // mov al, [address]
            Data::Word(_) => self.instruction(&[0x66, 0xA1], address), // mov ax, [address]
            Data::Long(_) => self.instruction(&[0xA1], address), // mov eax, [address]
        }
    }

    fn read_clock(&mut self) {
        self.read(Place::Port(test_ports::CLOCK), Data::Long(u32::MAX), 0);
    }

    fn write_port(&mut self, port: u16, data: Data) {
        self.instruction(&[0xBA], port.into()); // mov edx, port
        self.instruction(&[0xB8], data.value()); // mov eax, data
        match data {
            Data::Byte(_) => self.0.extend([0xEE]),       // out dx, al
            Data::Word(_) => self.0.extend([0x66, 0xEF]), // out dx, ax
            Data::Long(_) => self.0.extend([0xEF]),       // out dx, eax
        }
    }

    fn store(&mut self, address: u32, data: Data) {
        self.instruction(&[0xB8], data.value()); // mov eax, data
        match data {
            Data::Byte(_) => self.instruction(&[0xA2], address), // mov [address], al
            Data::Word(_) => self.instruction(&[0x66, 0xA3], address), // mov [address], ax
            Data::Long(_) => self.instruction(&[0xA3], address), // mov [address], eax
        }
    }

    /// Runs the other code unless the last comparison found equality.
    fn unless_equal(&mut self, other: Self) {
        self.0.extend([0x74, short_jump(other.0.len())]); // je behind the other code
        self.0.extend(other.0);
    }

    fn halt(&mut self) {
        self.0.extend([0xF4, 0xEB, 0xFD]); // hlt; jmp to hlt
    }

    /// Shows a remark, makes accesses, and goes back. KVM's instruction emulator, which some hosts run everything in, has
    /// no IRET for protected mode; without one, later NMIs stay masked.
    fn handler(&mut self, remark: u32, writes: &[Step], bar: u32) {
        self.0.extend([0x50, 0x52]); // push eax; push edx
        self.write_port(test_ports::REMARK, Data::Long(remark));
        for step in writes {
            self.step(remark, step, bar);
        }
        self.0.extend([0x5A, 0x58]); // pop edx; pop eax
        self.0.extend([0xFF, 0x74, 0x24, 0x08, 0x9D]); // push [esp + 8]; popf
        self.0.extend([0xC2, 0x08, 0x00]); // ret, and drop the code segment and flags
    }

    fn instruction(&mut self, opcode: &[u8], operand: u32) {
        self.0.extend(opcode);
        self.0.extend(operand.to_le_bytes());
    }
}

fn short_jump(distance: usize) -> u8 {
    u8::try_from(distance).ok().filter(|distance| *distance < 0x80).expect("a short jump")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_loops_back_to_reading_the_clock() {
        let mut code = Code::default();
        code.step(0, &Step::Wait(300), 0);
        let read_clock = [0xBA, 0x00, 0x05, 0x00, 0x00, 0xED, 0x25, 0xFF, 0xFF, 0xFF, 0xFF];
        let wait = [0x29, 0xD8, 0x3D, 0x2C, 0x01, 0x00, 0x00, 0x72];
        let back = 0_u8.wrapping_sub(u8::try_from(read_clock.len() + wait.len() + 1).unwrap());
        assert_eq!(code.0, [&read_clock[..], &[0x89, 0xC3], &read_clock, &wait, &[back]].concat());
    }

    #[test]
    fn widths_become_prefixes() {
        let mut code = Code::default();
        code.step(0, &Step::Write(Place::Bar(0x0C), Data::Word(0x86)), 0xFEB0_0000);
        assert_eq!(code.0, [0xB8, 0x86, 0, 0, 0, 0x66, 0xA3, 0x0C, 0x00, 0xB0, 0xFE]);
    }

    #[test]
    fn gates_lead_to_the_handler() {
        assert_eq!(interrupt_gate(0x1234_5678), 0x1234_8E00_0010_5678);
    }
}

//! The registers with which a guest begins.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Where and in which mode a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// The 64-bit entry of the Linux boot protocol: paging on, `RSI` at the boot parameters.
    Linux64 {
        /// The first instruction.
        ip: u64,
        /// `boot_params`.
        boot_params: u64,
        /// The top of a small stack.
        stack: u64,
        /// The level 4 page table.
        page_table: u64,
        /// The descriptor table, [`GDT64`].
        gdt: u64,
    },
    /// Flat 32-bit protected mode without paging.
    Flat32 {
        /// The first instruction.
        ip: u32,
        /// The top of the stack.
        stack: u32,
        /// The descriptor table, [`GDT32`].
        gdt: u32,
        /// The interrupt table.
        idt: u32,
        /// The last byte of the interrupt table.
        idt_limit: u16,
    },
}

/// Selector of the code segment, as the Linux boot protocol requires (`__BOOT_CS`).
pub const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// The global descriptor table of a 64-bit guest: code, data and a task at the selectors above.
pub const GDT64: [u64; 5] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067];
/// The same with 32-bit code.
pub const GDT32: [u64; 5] = [0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067];

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_ALWAYS_SET: u64 = 1 << 1;

impl EntryPoint {
    /// The general registers.
    pub fn regs(self) -> kvm_regs {
        let rflags = RFLAGS_ALWAYS_SET;
        match self {
            Self::Linux64 { ip, boot_params, stack, .. } => {
                kvm_regs { rip: ip, rsi: boot_params, rsp: stack, rbp: stack, rflags, ..Default::default() }
            }
            Self::Flat32 { ip, stack, .. } => {
                kvm_regs { rip: ip.into(), rsp: stack.into(), rflags, ..Default::default() }
            }
        }
    }

    /// The special registers, changed from what KVM begins with.
    pub fn sregs(self, reset: kvm_sregs) -> kvm_sregs {
        match self {
            Self::Linux64 { page_table, gdt, .. } => kvm_sregs {
                cr0: CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING,
                cr3: page_table,
                cr4: CR4_PAE,
                efer: EFER_LONG_MODE,
                ..with_segments(&GDT64, gdt, reset)
            },
            Self::Flat32 { gdt, idt, idt_limit, .. } => kvm_sregs {
                cr0: CR0_PROTECTED | CR0_EXTENSION,
                idt: kvm_dtable { base: idt.into(), limit: idt_limit, ..Default::default() },
                ..with_segments(&GDT32, gdt.into(), reset)
            },
        }
    }
}

/// All segment registers as if loaded from this table at this address.
fn with_segments(gdt: &[u64; 5], base: u64, reset: kvm_sregs) -> kvm_sregs {
    let load = |selector: u16| segment(selector, gdt[usize::from(selector >> 3)]);
    let data = load(DATA_SELECTOR);
    kvm_sregs {
        cs: load(CODE_SELECTOR),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: load(TASK_SELECTOR),
        gdt: kvm_dtable { base, limit: size_of::<[u64; 5]>() as u16 - 1, ..Default::default() },
        ..reset
    }
}

/// The hidden part of a segment register, as the processor would load it from this descriptor with base 0.
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |number: u32| (descriptor >> number & 1) as u8;
    let limit = (descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000) as u32;
    let granularity = bit(55);
    kvm_segment {
        base: 0,
        limit: if granularity == 1 { limit << 12 | 0xFFF } else { limit },
        selector,
        type_: (descriptor >> 40 & 0xF) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: granularity,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_what_the_descriptors_say() {
        let code = segment(CODE_SELECTOR, GDT64[2]);
        assert_eq!((code.limit, code.type_, code.s, code.present), (0xFFFF_FFFF, 0xB, 1, 1));
        assert_eq!((code.l, code.db, code.g), (1, 0, 1));
        let code = segment(CODE_SELECTOR, GDT32[2]);
        assert_eq!((code.l, code.db, code.g), (0, 1, 1));
        let data = segment(DATA_SELECTOR, GDT32[3]);
        assert_eq!((data.limit, data.type_, data.s, data.db), (0xFFFF_FFFF, 0x3, 1, 1));
        let task = segment(TASK_SELECTOR, GDT32[4]);
        assert_eq!((task.limit, task.type_, task.s, task.g), (0x67, 0xB, 0, 0));
    }
}

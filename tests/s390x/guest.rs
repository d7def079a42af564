//! The guest: Debian's kernel for s390x with busybox, and an init that executes the test's commands.

use std::error::Error;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use vm_watchdog::diag288::ProgramInterruption;
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::initramfs::Initramfs;
use vm_watchdog_test_support::kernel::Kernel;
use vm_watchdog_test_support::process::Reply;
use vm_watchdog_test_support::qemu::Qemu;

use crate::bridge::{Hook, Interrupted};
use crate::gdb::{Gdb, Registers};
use crate::machine::{Device, Machine};
use crate::wait::WAIT_LIMIT;

/// Reports the address of the kernel's handler of specification exceptions, then executes commands.
const INIT: &str = r#"
insmod /lib/virtio_console.ko
obey "/dev/vport*p1" "$(sed -n 's/ [Tt] specification_exception$//p' /proc/kallsyms)"
"#;

/// The parts of the guest, which its tests share.
pub struct Parts {
    pub qemu: Qemu,
    pub kernel: Kernel,
    initramfs: Vec<u8>,
}

impl Parts {
    /// Returns the parts, and fetches them on first use.
    pub fn fetch() -> Result<Self, Unavailable> {
        let kernel = Kernel::s390x()?;
        let mut initramfs = Initramfs::with_busybox(&kernel.busybox()?, INIT);
        for name in ["virtio_console", "diag288_wdt"] {
            initramfs = initramfs.modules(&kernel.module(name)?);
        }
        Ok(Self { qemu: Qemu::current()?, kernel, initramfs: initramfs.build() })
    }
}

/// A device that clears the memory into which the kernel unpacks itself, at every reset.
///
/// Without it a reboot takes minutes, because an emulated processor is slow to write pages that hold executed code.
fn clean_workspace(folder: &Path, kernel: &Kernel) -> io::Result<String> {
    /// Lowest address at which QEMU places the initramfs.
    const INITRAMFS: u64 = 0x80_0000;
    let kernel_ends = fs::metadata(kernel.image())?.len().next_multiple_of(0x1000);
    let zeros = folder.join("zeros");
    fs::write(&zeros, vec![0; INITRAMFS.saturating_sub(kernel_ends) as usize])?;
    Ok(format!("loader,file={},addr={kernel_ends:#x},force-raw=on", zeros.display()))
}

/// A machine that runs Linux.
pub struct Guest {
    machine: Machine,
    /// Address of the kernel's handler of specification exceptions.
    pub specification_exception: u64,
}

impl Guest {
    /// Boots until init accepts commands.
    pub fn boot(parts: &Parts, device: Device) -> Result<Self, Box<dyn Error>> {
        Self::boot_with(parts, device, |_, _| Ok(()))
    }

    /// Boots with further arguments for QEMU.
    pub fn boot_with(
        parts: &Parts,
        device: Device,
        arguments: impl FnOnce(&Path, &mut Command) -> io::Result<()>,
    ) -> Result<Self, Box<dyn Error>> {
        let machine = Machine::start(&parts.qemu, device, |folder, command| {
            let initramfs = folder.join("initramfs");
            fs::write(&initramfs, &parts.initramfs)?;
            command.arg("-kernel").arg(parts.kernel.image()).arg("-initrd").arg(initramfs);
            command.arg("-device").arg(clean_workspace(folder, &parts.kernel)?);
            // Without randomization the kernel has the same addresses after a reset.
            command.args(["-append", "console=ttyS0 nokaslr panic=-1"]);
            arguments(folder, command)
        })?;
        let mut guest = Self { machine, specification_exception: 0 };
        guest.specification_exception = guest.wait_for_boot()?;
        Ok(guest)
    }

    /// Waits until init accepts commands. Returns the address of the kernel's handler of specification exceptions.
    pub fn wait_for_boot(&mut self) -> Result<u64, Box<dyn Error>> {
        Ok(u64::from_str_radix(&self.process.wait_until_ready(WAIT_LIMIT)?, 16)?)
    }

    /// Executes a shell command in the guest. Returns its status and its output.
    pub fn run(&mut self, command: &str) -> Result<(u8, String), Box<dyn Error>> {
        let Reply { status, output } = self.process.run(command, WAIT_LIMIT)?;
        Ok((status.try_into()?, output))
    }
}

impl Deref for Guest {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

/// Linux' `specification_exception(struct pt_regs *)`, entered with the registers of the C calling convention.
pub struct SpecificationException(pub u64);

/// Offset in `struct pt_regs` of the PSW; the general registers follow it.
const PT_REGS_PSW: u64 = 8;

const PSW_PROBLEM_STATE: u64 = 1 << 48;

impl Hook for SpecificationException {
    fn address(&self) -> u64 {
        self.0
    }

    fn interrupted(&self, cpu: &mut Gdb, here: &Registers) -> io::Result<Option<Interrupted>> {
        // A breakpoint applies to every address space, and a user program may have code at the same virtual address.
        if here.psw_mask & PSW_PROBLEM_STATE != 0 {
            return Ok(None);
        }
        // After a reset the kernel is not loaded yet, and its memory is not mapped.
        let Ok(saved) = cpu.read_memory(here.gprs[2] + PT_REGS_PSW, 18 * 8) else {
            return Ok(None);
        };
        let mut words = saved.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
        let [psw_mask, psw_address, gprs @ ..]: [u64; 18] = std::array::from_fn(|_| words.next().expect("18 words"));
        let instruction = cpu.read_memory(psw_address - 4, 4)?.try_into().expect("four bytes");
        Ok(Some(Interrupted { instruction, psw_mask, psw_address, gprs }))
    }

    /// Returns from the function immediately: the kernel continues at the PSW in pt_regs, behind the instruction.
    fn complete(&self, cpu: &mut Gdb, here: &Registers, _: &Interrupted) -> io::Result<()> {
        let return_address = here.gprs[14];
        cpu.jump_to(return_address)
    }

    /// Does nothing: the kernel continues with its handling of this exception.
    fn inject(&self, _: &mut Gdb, interruption: ProgramInterruption) -> io::Result<()> {
        assert_eq!(
            interruption,
            ProgramInterruption::Specification,
            "the only interruption that this handler supports"
        );
        Ok(())
    }
}

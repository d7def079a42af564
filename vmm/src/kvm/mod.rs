//! A processor of KVM's: the VM with its in-kernel interrupt controllers and timer, and one vCPU.

pub mod entry;
pub mod kick;
pub mod state;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_msi,
    kvm_pit_config, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vm_watchdog::{InterruptLine, MsiMessage, MsiSender};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::Devices;
use crate::devices::request::GuestRequest;
use crate::error::BootError;
use crate::kvm::entry::EntryPoint;
use crate::kvm::kick::Kickable;
use crate::kvm::state::{KvmState, listed_msrs};
use crate::memory::GuestMemory;
use crate::processor::{Processor, ProcessorState, Registers, Stop};

/// Three pages that Intel processors need for a task state segment, just below the firmware's place.
const TASK_STATE_ADDRESS: usize = 0xFFFB_D000;

/// A VM of KVM's.
pub struct KvmMachine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: GuestMemory,
}

/// The vCPU of a VM, ready to run.
pub struct KvmProcessor {
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    power_on: KvmState,
    /// The VM's memory stays mapped for as long as the vCPU can use it.
    _memory: GuestMemory,
}

impl KvmMachine {
    /// Creates a VM with this memory, or says in a clause why KVM cannot be used.
    pub fn open(device: &Path, memory: GuestMemory) -> Result<Self, String> {
        let machine = open(device).and_then(|kvm| Self::new(kvm, memory));
        machine.map_err(|error| format!("{} cannot be used: {error}", device.display()))
    }

    /// Creates a VM with this memory, interrupt controllers and an interval timer.
    fn new(kvm: Kvm, memory: GuestMemory) -> Result<Self, BootError> {
        let vm = kvm.create_vm().map_err(BootError::host("create a VM"))?;
        vm.set_tss_address(TASK_STATE_ADDRESS).map_err(BootError::host("place the VM's task state"))?;
        vm.create_irq_chip().map_err(BootError::host("create interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(BootError::host("create an interval timer"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the range is one whole mapping of ours that is used as guest memory only, and every holder of the
            // VM holds the memory too.
            unsafe { vm.set_user_memory_region(region) }.map_err(BootError::host("give the VM its memory"))?;
        }
        Ok(Self { kvm, vm: Arc::new(vm), memory })
    }

    /// A level-triggered interrupt line to the in-kernel interrupt controller.
    pub fn interrupt_line(&self, gsi: u32) -> impl InterruptLine + use<> {
        let vm = self.vm.clone();
        move |high: bool| vm.set_irq_line(gsi, high).map_err(io::Error::from)
    }

    /// A sender of interrupt messages to the in-kernel interrupt controller.
    pub fn msi_sender(&self) -> impl MsiSender + use<> {
        let vm = self.vm.clone();
        move |MsiMessage { address, data, .. }: MsiMessage| {
            let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
            // Not accepting the message is the guest's choice and no error.
            vm.signal_msi(kvm_msi { address_lo, address_hi, data, ..Default::default() })?;
            Ok(())
        }
    }

    /// Raises this interrupt whenever the eventfd is written.
    pub fn connect_edge(&self, interrupt: &EventFd, gsi: u32) -> Result<(), BootError> {
        self.vm.register_irqfd(interrupt, gsi).map_err(BootError::host("connect an interrupt"))
    }

    /// Makes an interrupt from 8 to 15 level triggered in the PIC, as firmware does for one that PCI devices use.
    pub fn set_level_triggered(&self, gsi: u8) -> Result<(), BootError> {
        let set = || -> io::Result<()> {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_SLAVE, ..Default::default() };
            self.vm.get_irqchip(&mut chip)?;
            // SAFETY: KVM has just filled in the PIC's state, and all of it is plain numbers.
            unsafe { chip.chip.pic.elcr |= 1 << (gsi - 8) };
            Ok(self.vm.set_irqchip(&chip)?)
        };
        set().map_err(BootError::host("set up the interrupt controller"))
    }

    /// Creates the vCPU. Its state, and that of everything else in the VM, is now the state after a reset.
    pub fn processor(&self, entry: EntryPoint) -> Result<KvmProcessor, BootError> {
        let vcpu = self.vm.create_vcpu(0).map_err(BootError::host("create a vCPU"))?;
        let prepare = || -> io::Result<KvmState> {
            vcpu.set_cpuid2(&self.cpuid()?)?;
            vcpu.set_regs(&entry.regs())?;
            vcpu.set_sregs(&entry.sregs(vcpu.get_sregs()?))?;
            KvmState::take(&self.vm, &vcpu, &listed_msrs(&self.kvm)?)
        };
        let power_on = prepare().map_err(BootError::host("set up the vCPU"))?;
        Ok(KvmProcessor { vm: self.vm.clone(), vcpu, power_on, _memory: self.memory.clone() })
    }

    /// What the host supports, for one processor with APIC id 0.
    fn cpuid(&self) -> io::Result<CpuId> {
        let mut cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                // EBX: APIC id in bits 31:24, logical processors in 23:16. ECX: bit 31 shows a hypervisor; without it
                // Linux does not look for KVM's clock, and calibrates timers that a slow host cannot keep steady.
                0x1 => {
                    entry.ebx = entry.ebx & 0xFFFF | 1 << 16;
                    entry.ecx |= 1 << 31;
                }
                // EDX: x2APIC id.
                0xB | 0x1F => entry.edx = 0,
                _ => {}
            }
        }
        Ok(cpuid)
    }
}

fn open(device: &Path) -> Result<Kvm, BootError> {
    let path = CString::new(device.as_os_str().as_bytes()).map_err(BootError::host("open"))?;
    let kvm = Kvm::new_with_path(path).map_err(BootError::host("open"))?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(BootError::KvmVersion(version)),
    }
}

impl Processor for KvmProcessor {
    fn run(&mut self, devices: &mut Devices) -> Result<Stop, BootError> {
        let running = Kickable::new(&mut self.vcpu);
        if kick::take() {
            return Ok(Stop::Kicked);
        }
        loop {
            let request = match running.vcpu.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    devices.read_port(port, data);
                    None
                }
                Ok(VcpuExit::IoOut(port, data)) => devices.write_port(port, data),
                Ok(VcpuExit::MmioRead(address, data)) => {
                    devices.read_memory(address, data);
                    None
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    devices.write_memory(address, data);
                    None
                }
                // A triple fault resets a PC.
                Ok(VcpuExit::Shutdown) => Some(GuestRequest::Reset),
                Ok(VcpuExit::Intr) => return Ok(Stop::Kicked),
                Ok(other) => return Err(BootError::Vcpu(format!("{other:?}"))),
                Err(error) if error.errno() == libc::EINTR => return Ok(Stop::Kicked),
                Err(error) if error.errno() == libc::EAGAIN => None,
                Err(error) => return Err(BootError::Host { doing: "run the vCPU", source: error.into() }),
            };
            if let Some(request) = request {
                finish_access(running.vcpu);
                return Ok(Stop::Guest(request));
            }
        }
    }

    fn reset(&mut self) -> Result<(), BootError> {
        self.power_on.put_back(&self.vm, &self.vcpu).map_err(BootError::host("reset the vCPU"))
    }

    fn inject_nmi(&mut self) -> Result<(), BootError> {
        self.vcpu.nmi().map_err(BootError::host("inject an NMI"))
    }

    fn registers(&mut self) -> Result<Option<Registers>, BootError> {
        let read = || -> io::Result<Registers> { Ok(user_registers(&self.vcpu.get_regs()?, &self.vcpu.get_sregs()?)) };
        read().map(Some).map_err(BootError::host("read the registers"))
    }

    fn save(&mut self) -> Result<ProcessorState, BootError> {
        let state = KvmState::take(&self.vm, &self.vcpu, &self.power_on.msrs());
        state.map(|state| ProcessorState::Kvm(Box::new(state))).map_err(BootError::host("save the vCPU"))
    }

    fn restore(&mut self, state: &ProcessorState) -> Result<(), BootError> {
        match state {
            ProcessorState::Kvm(state) => {
                state.put_back(&self.vm, &self.vcpu).map_err(BootError::host("restore the vCPU"))
            }
            ProcessorState::Played(_) => Err(BootError::Vcpu("its saved state is not one of KVM's".into())),
        }
    }
}

/// Lets KVM finish the instruction whose access we have just served, and nothing more.
fn finish_access(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    // It returns EINTR after the access, because of `immediate_exit`.
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

/// In the order of `user_regs_struct`, see [`Registers`].
fn user_registers(regs: &kvm_regs, sregs: &kvm_sregs) -> Registers {
    let no_system_call = u64::MAX;
    #[rustfmt::skip]
    let user = [
        regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10, regs.r9, regs.r8,
        regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, no_system_call,
        regs.rip, sregs.cs.selector.into(), regs.rflags, regs.rsp, sregs.ss.selector.into(),
        sregs.fs.base, sregs.gs.base,
        sregs.ds.selector.into(), sregs.es.selector.into(), sregs.fs.selector.into(), sregs.gs.selector.into(),
    ];
    Registers { user }
}

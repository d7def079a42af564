//! The state of a KVM VM with one vCPU, taken and put back. A reset puts back the state at power-on.

use std::io;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_debugregs, kvm_fpu, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Everything that the guest can change and that is neither in its memory nor in our devices.
pub struct KvmState {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl KvmState {
    /// Takes the state.
    pub fn take(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> io::Result<Self> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        Ok(Self {
            chips: [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?, chip(KVM_IRQCHIP_IOAPIC)?],
            pit: vm.get_pit2()?,
            mp_state: vcpu.get_mp_state()?,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            fpu: vcpu.get_fpu()?,
            // A host processor without XSAVE has none.
            xcrs: vcpu.get_xcrs().ok(),
            debug_regs: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            msrs: readable_msrs(kvm, vcpu)?,
            events: vcpu.get_vcpu_events()?,
        })
    }

    /// Puts the state back. The order matters to KVM: the local APIC's base comes with the special registers, and the
    /// deadline timer needs the APIC's mode.
    pub fn put_back(&self, vm: &VmFd, vcpu: &VcpuFd) -> io::Result<()> {
        let Self { chips, pit, mp_state, regs, sregs, fpu, xcrs, debug_regs, lapic, msrs, events } = self;
        vcpu.set_mp_state(*mp_state)?;
        vcpu.set_regs(regs)?;
        vcpu.set_sregs(sregs)?;
        vcpu.set_fpu(fpu)?;
        if let Some(xcrs) = xcrs {
            vcpu.set_xcrs(xcrs)?;
        }
        vcpu.set_debug_regs(debug_regs)?;
        vcpu.set_lapic(lapic)?;
        write_msrs(vcpu, msrs)?;
        vcpu.set_vcpu_events(events)?;
        for chip in chips {
            vm.set_irqchip(chip)?;
        }
        vm.set_pit2(pit)?;
        Ok(())
    }
}

/// KVM lists registers that this vCPU does not have; those are left out.
fn readable_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> io::Result<Vec<kvm_msr_entry>> {
    let mut readable = Vec::new();
    for &index in kvm.get_msr_index_list()?.as_slice() {
        let mut one = one_msr(kvm_msr_entry { index, ..Default::default() })?;
        if vcpu.get_msrs(&mut one)? == 1 {
            readable.extend_from_slice(one.as_slice());
        }
    }
    Ok(readable)
}

/// Some registers can be read and not written; those never changed.
fn write_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> io::Result<()> {
    for &entry in msrs {
        vcpu.set_msrs(&one_msr(entry)?)?;
    }
    Ok(())
}

fn one_msr(entry: kvm_msr_entry) -> io::Result<Msrs> {
    Msrs::from_entries(&[entry]).map_err(|error| io::Error::other(format!("{error:?}")))
}

//! The state of a KVM VM with one vCPU, taken and put back. A reset puts back the state at power-on.

use std::io;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_debugregs, kvm_fpu, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// Everything that the guest can change and that is neither in its memory nor in our devices.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvmState {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Not in a snapshot: the guests that can be saved do without.
    #[serde(skip)]
    fpu: Option<kvm_fpu>,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl KvmState {
    /// Takes the state, with these model-specific registers.
    pub fn take(vm: &VmFd, vcpu: &VcpuFd, msrs: &[u32]) -> io::Result<Self> {
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
            fpu: Some(vcpu.get_fpu()?),
            // A host processor without XSAVE has none.
            xcrs: vcpu.get_xcrs().ok(),
            debug_regs: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            msrs: msrs
                .iter()
                .map(|&index| read_msr(vcpu, index))
                .filter_map(Result::transpose)
                .collect::<io::Result<_>>()?,
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
        if let Some(fpu) = fpu {
            vcpu.set_fpu(fpu)?;
        }
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

    /// The model-specific registers that are in it.
    pub fn msrs(&self) -> Vec<u32> {
        self.msrs.iter().map(|entry| entry.index).collect()
    }
}

/// The model-specific registers that KVM lists.
pub fn listed_msrs(kvm: &Kvm) -> io::Result<Vec<u32>> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}

/// KVM lists registers that this vCPU does not have; those are left out.
fn read_msr(vcpu: &VcpuFd, index: u32) -> io::Result<Option<kvm_msr_entry>> {
    let mut one = one_msr(kvm_msr_entry { index, ..Default::default() })?;
    let read = vcpu.get_msrs(&mut one)?;
    Ok(one.as_slice()[..read].first().copied())
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

//! The trait of a processor, for KVM's vCPU and for the player of a built-in guest.

use serde::{Deserialize, Serialize};

use crate::builtin::position::Position;
use crate::devices::Devices;
use crate::devices::request::GuestRequest;
use crate::error::BootError;
use crate::kvm::state::KvmState;

/// Something that executes a guest.
pub trait Processor: Send {
    /// Runs the guest until it requests something or its thread is [kicked](crate::kvm::kick).
    fn run(&mut self, devices: &mut Devices) -> Result<Stop, BootError>;
    /// Resets the processor, and the devices that KVM emulates, to the state at the first instruction of the guest.
    fn reset(&mut self) -> Result<(), BootError>;
    /// Raises a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<(), BootError>;
    /// The registers, if there are any.
    fn registers(&mut self) -> Result<Option<Registers>, BootError>;
    /// The whole state, to continue in another process.
    fn save(&mut self) -> Result<ProcessorState, BootError>;
    /// Restores a saved state.
    fn restore(&mut self, state: &ProcessorState) -> Result<(), BootError>;
}

/// The state of a processor.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessorState {
    /// The position of a played guest.
    Played(Position),
    /// The state that KVM keeps of a vCPU and its VM.
    Kvm(Box<KvmState>),
}

/// Why the processor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its thread was kicked.
    Kicked,
    /// The guest requests something of the VMM.
    Guest(GuestRequest),
}

/// The registers of a vCPU, for a core dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers as `user_regs_struct` of x86-64 Linux orders them.
    pub user: [u64; 27],
}

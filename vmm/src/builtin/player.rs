//! Plays the table in-process, through the same devices, where there is no KVM.

use std::thread::sleep;
use std::time::Duration;

use crate::builtin::position::Position;
use crate::builtin::table::{Data, POWER_OFF, Place, Step};
use crate::devices::request::GuestRequest;
use crate::devices::{Devices, test_ports};
use crate::error::BootError;
use crate::kvm::kick;
use crate::processor::{Processor, ProcessorState, Registers, Stop};

/// A processor whose instructions are the steps of the table.
pub struct Player {
    steps: Vec<Step>,
    bar: u32,
    position: Position,
}

impl Player {
    /// Begins at the first step.
    pub fn new(steps: Vec<Step>, bar: u32) -> Self {
        Self { steps, bar, position: Position::default() }
    }

    fn step(&mut self, step: Step, devices: &mut Devices) -> Option<GuestRequest> {
        let index = u32::try_from(self.position.next).unwrap_or(u32::MAX);
        self.position.next += 1;
        match step {
            Step::Say(_) => devices.write_port(test_ports::REMARK, &index.to_le_bytes()),
            Step::Write(place, data) => self.write(place, data, devices),
            Step::Expect(place, mask, data) => {
                let as_expected = self.read(place, mask, devices) == data.value() & mask.value();
                (!as_expected).then(|| devices.write_port(test_ports::UNEXPECTED, &index.to_le_bytes())).flatten()
            }
            Step::EndIf(place, mask, _) => {
                if self.read(place, mask, devices) == 0 {
                    return None;
                }
                devices.write_port(test_ports::REMARK, &index.to_le_bytes());
                let (port, value) = POWER_OFF;
                devices.write_port(port, &value.to_le_bytes())
            }
            // A played guest has no interrupt controller.
            Step::TakeInterrupts => None,
            Step::Wait(milliseconds) => {
                let now = self.read(Place::Port(test_ports::CLOCK), Data::Long(u32::MAX), devices);
                let since = *self.position.waiting_since.get_or_insert(now);
                if now.wrapping_sub(since) < milliseconds {
                    self.position.next -= 1;
                    sleep(Duration::from_millis(1));
                } else {
                    self.position.waiting_since = None;
                }
                None
            }
        }
    }

    fn read(&self, place: Place, mask: Data, devices: &mut Devices) -> u32 {
        let mut data = [0; 4];
        let lanes = &mut data[..mask.width()];
        match place {
            Place::Port(port) => devices.read_port(port, lanes),
            Place::Bar(offset) => devices.read_memory(self.address(offset), lanes),
            Place::Apic(address) => devices.read_memory(address.into(), lanes),
        }
        u32::from_le_bytes(data) & mask.value()
    }

    fn write(&self, place: Place, data: Data, devices: &mut Devices) -> Option<GuestRequest> {
        let (bytes, width) = data.to_bytes();
        match place {
            Place::Port(port) => devices.write_port(port, &bytes[..width]),
            Place::Bar(offset) => {
                devices.write_memory(self.address(offset), &bytes[..width]);
                None
            }
            Place::Apic(address) => {
                devices.write_memory(address.into(), &bytes[..width]);
                None
            }
        }
    }

    fn address(&self, offset: u16) -> u64 {
        u64::from(self.bar) + u64::from(offset)
    }
}

impl Processor for Player {
    fn run(&mut self, devices: &mut Devices) -> Result<Stop, BootError> {
        while !kick::take() {
            if std::mem::take(&mut self.position.nmi) {
                let remark = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
                devices.write_port(test_ports::REMARK, &remark.to_le_bytes());
            }
            let Some(&step) = self.steps.get(self.position.next) else {
                // Halted.
                sleep(Duration::from_millis(1));
                continue;
            };
            if let Some(request) = self.step(step, devices) {
                return Ok(Stop::Guest(request));
            }
        }
        Ok(Stop::Kicked)
    }

    fn reset(&mut self) -> Result<(), BootError> {
        self.position = Position::default();
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), BootError> {
        self.position.nmi = true;
        Ok(())
    }

    fn registers(&mut self) -> Result<Option<Registers>, BootError> {
        Ok(None)
    }

    fn save(&mut self) -> Result<ProcessorState, BootError> {
        Ok(ProcessorState::Played(self.position))
    }

    fn restore(&mut self, state: &ProcessorState) -> Result<(), BootError> {
        match state {
            ProcessorState::Played(position) => {
                self.position = *position;
                Ok(())
            }
            ProcessorState::Kvm(_) => Err(BootError::Vcpu("its saved state is one of KVM's".into())),
        }
    }
}

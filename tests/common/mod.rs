//! A guest's driver and a VMM's handler, for the tests of the runtime.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog::{Action, ActionHandler, Event, HandlerError, Stage, Watchdog};

/// The duration of a preload unit with the 1 kHz prescaler: 30 ns << 15.
pub const UNIT: Duration = Duration::from_nanos(983_040);

/// A device with or without a pin.
pub fn device(interrupt_pin: InterruptPin) -> I6300esb {
    I6300esb::new(I6300esbConfig::default().with_interrupt_pin(interrupt_pin))
}

/// The accesses of Linux' driver.
pub trait Driver {
    /// Sets both preloads, in units of about a millisecond.
    fn set_preloads(&self, units: u32);
    /// Sets one preload register (00h or 04h).
    fn set_preload(&self, register: u64, units: u32);
    fn enable(&self);
    fn disable(&self);
    fn ping(&self);
    fn unlock(&self);
    fn clear_timeout(&self);

    fn start(&self, units: u32) {
        self.set_preloads(units);
        self.enable();
    }
}

impl Driver for Watchdog<I6300esb> {
    fn set_preloads(&self, units: u32) {
        self.set_preload(0x00, units);
        self.set_preload(0x04, units);
    }

    fn set_preload(&self, register: u64, units: u32) {
        self.unlock();
        self.write_bar(register, &units.to_le_bytes());
    }

    fn enable(&self) {
        self.write_config(0x68, &[0x02]);
    }

    fn disable(&self) {
        self.write_config(0x68, &[0x00]);
    }

    fn ping(&self) {
        self.unlock();
        self.write_bar(0x0C, &0x0100u16.to_le_bytes());
    }

    fn unlock(&self) {
        self.write_bar(0x0C, &0x80u16.to_le_bytes());
        self.write_bar(0x0C, &0x86u16.to_le_bytes());
    }

    fn clear_timeout(&self) {
        self.unlock();
        self.write_bar(0x0C, &0x0200u16.to_le_bytes());
    }
}

/// A handler that sends its events, and their receiver.
pub fn recorder() -> (impl ActionHandler + 'static, Receiver<Event>) {
    let (sender, receiver) = channel();
    (sending(sender), receiver)
}

/// A handler that sends every event, also those whose action is `none`.
pub fn sending(sender: Sender<Event>) -> impl ActionHandler + 'static {
    Recorder(Mutex::new(sender))
}

struct Recorder(Mutex<Sender<Event>>);

impl ActionHandler for Recorder {
    fn perform(&self, event: &Event) -> Result<(), HandlerError> {
        Ok(self.0.lock().unwrap().send(event.clone())?)
    }

    fn note(&self, event: &Event) {
        // The test may have dropped the receiver.
        let _ = self.perform(event);
    }
}

/// Stage and action of each event since the last call.
pub fn arrived(events: &Receiver<Event>) -> Vec<(Stage, Action)> {
    events.try_iter().map(|event| (event.stage, event.action)).collect()
}

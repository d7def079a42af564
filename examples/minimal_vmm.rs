//! A VMM of the least size: a PCI bus, an event loop, and a guest that is a function. Time passes when the example says so,
//! by a manual clock; a real VMM takes `VmClock::monotonic`.
//!
//! `cargo run --example minimal_vmm`

use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_watchdog::i6300esb::{BAR0_SIZE, I6300esb, I6300esbConfig};
use vm_watchdog::{Action, Event, ManualClock, Policy, VmClock, Watchdog};

/// A bus with one function.
struct PciBus {
    watchdog: Watchdog<I6300esb>,
}

impl PciBus {
    fn write_config(&self, offset: u16, data: &[u8]) {
        self.watchdog.write_config(offset, data);
    }

    /// The offset in BAR0 of an access to memory, if it is there.
    fn decode(&self, address: u64, length: usize) -> Option<u64> {
        let offset = address.checked_sub(self.watchdog.bar0()?.into())?;
        (offset + length as u64 <= BAR0_SIZE.into()).then_some(offset)
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.decode(address, data.len()) {
            Some(offset) => self.watchdog.read_bar(offset, data),
            None => data.fill(0xFF),
        }
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = self.decode(address, data.len()) {
            self.watchdog.write_bar(offset, data);
        }
    }
}

/// The guest's driver: the accesses of Linux.
struct Driver<'a>(&'a PciBus);

impl Driver<'_> {
    const BASE: u32 = 0xFEB0_0000;

    /// Assigns BAR0, sets both stages to 15 s, and enables the watchdog.
    fn start(&self) {
        self.0.write_config(0x10, &Self::BASE.to_le_bytes());
        self.0.write_config(0x04, &[0x02, 0x00]);
        for preload in [0x00, 0x04] {
            self.write(preload, 15_258_u32);
        }
        self.0.write_config(0x68, &[0x02]);
    }

    fn feed(&self) {
        self.write(0x0C, 0x0100);
    }

    /// Linux shows it as `bootstatus` 32.
    fn was_reset_by_the_watchdog(&self) -> bool {
        self.0.write_config(0x10, &Self::BASE.to_le_bytes());
        self.0.write_config(0x04, &[0x02, 0x00]);
        let mut reload = [0; 2];
        self.0.read_memory(u64::from(Self::BASE) + 0x0C, &mut reload);
        u16::from_le_bytes(reload) & 0x0200 != 0
    }

    /// A write behind the unlock sequence.
    fn write(&self, register: u64, value: u32) {
        let base = u64::from(Self::BASE);
        self.0.write_memory(base + 0x0C, &[0x80, 0x00]);
        self.0.write_memory(base + 0x0C, &[0x86, 0x00]);
        self.0.write_memory(base + register, &value.to_le_bytes());
    }
}

/// The main loop: serves the watchdog's descriptor, and performs what its handler asks for.
struct MainLoop {
    bus: PciBus,
    actions: Receiver<Action>,
    time: ManualClock,
}

impl MainLoop {
    /// Lets this much time pass, and gives whether the platform was reset.
    fn run(&self, time: Duration) -> Result<bool, Box<dyn Error>> {
        self.time.advance(time);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while poll(&mut [PollFd::new(&self.bus.watchdog, PollFlags::IN)], Some(&at_once))? > 0 {
            self.bus.watchdog.on_readable();
        }
        for action in self.actions.try_iter() {
            println!("vmm: {action} at {}", self.bus.watchdog.clock().now());
            if action == Action::Reset {
                self.bus.watchdog.reset();
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let (clock, time) = VmClock::manual();
    let (handler, actions) = channel();
    let device = I6300esb::new(I6300esbConfig::default());
    let watchdog = Watchdog::builder("watchdog0", device)
        .clock(clock)
        .policy(Policy::new(Action::Reset))
        .build(move |event: &Event| Ok(handler.send(event.action)?))?;
    let vmm = MainLoop { bus: PciBus { watchdog }, actions, time };

    let driver = Driver(&vmm.bus);
    driver.start();
    println!("guest: armed with 30 s");
    for _ in 0..10 {
        assert!(!vmm.run(Duration::from_secs(20))?, "a guest that feeds its watchdog is left alone");
        driver.feed();
    }
    println!("guest: fed it for 200 s, and hangs");
    assert!(!vmm.run(Duration::from_secs(29))?, "never early");
    assert!(vmm.run(Duration::from_secs(1))?, "and not late");
    assert!(driver.was_reset_by_the_watchdog());
    println!("guest: the watchdog has reset me");
    Ok(())
}

//! The contract of the i6300esb, restated: what a guest and a host find after each step.

use vm_watchdog_devices::Access;

use super::step::{Act, Write};
use super::{FIRMWARE_BAR0, Setup};
use crate::device::{Ahead, in_words};
use crate::world::{self, Contract, Outcome};

/// Nanoseconds in a PCI clock.
const CLOCK: u64 = 30;

/// The registers of an armed device, which a reset does not forget, and the address of BAR0.
type Armed = (u8, u8, [u32; 2], Option<u32>);

/// A stage that runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    stage: usize,
    ends_at: u64,
    unit: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct I6300esbContract {
    setup: Setup,
    now: u64,
    command: u16,
    bar0: u32,
    decoded: Option<u32>,
    /// Cache line size and latency timer, and the interrupt line: plain storage.
    cache_line_latency: u16,
    interrupt_line: u8,
    msi_enabled: bool,
    /// The address in two halves.
    msi_address: [u32; 2],
    msi_data: u16,
    /// For an interrupt by message: whether the message is sent.
    message_sent: Option<bool>,
    configuration: u8,
    lock: u8,
    preloads: [u32; 2],
    keys: u8,
    interrupt: bool,
    timed_out: bool,
    running: Option<Running>,
    /// The first end of each stage that is not polled.
    unpolled: [Option<u64>; 2],
    /// The guest has not written 68h since the last reset, and what the device was armed with before it.
    unaware: Option<Option<Armed>>,
}

impl I6300esbContract {
    pub fn new(setup: Setup, now: u64) -> Self {
        let firmware_bar0 = if setup.has_firmware { FIRMWARE_BAR0 } else { 0 };
        Self {
            setup,
            now,
            command: if setup.has_firmware { 0x0002 } else { 0 },
            bar0: firmware_bar0,
            decoded: Some(firmware_bar0).filter(|&address| address != 0),
            cache_line_latency: 0,
            interrupt_line: 0,
            msi_enabled: false,
            msi_address: [0, 0],
            msi_data: 0,
            message_sent: None,
            configuration: 0,
            lock: 0,
            preloads: [0xF_FFFF; 2],
            keys: 0,
            interrupt: false,
            timed_out: false,
            running: None,
            unpolled: [None, None],
            unaware: Some(None),
        }
    }

    // What the contract says about time.

    /// Stage 1 begins at a valid reload, at ENABLE 0 -> 1, and in free running mode after each timeout; stage 2 at the end of
    /// stage 1. Each lasts its preload in units of the prescaler, both as they are then.
    fn begin(&mut self, stage: usize, at: u64) {
        self.running = Some(Running { stage, ends_at: at + self.length(stage), unit: self.unit() });
    }

    fn unit(&self) -> u64 {
        if self.configuration & 0x04 == 0 { CLOCK << 15 } else { CLOCK << 5 }
    }

    fn length(&self, stage: usize) -> u64 {
        let units = u64::from(self.preloads[stage - 1]);
        self.unit() * if self.is_free_running() { units.max(1) } else { units }
    }

    fn is_free_running(&self) -> bool {
        self.lock & 0x04 != 0
    }

    fn is_enabled(&self) -> bool {
        self.lock & 0x02 != 0
    }

    /// The length of both stages as they are now, if the counter restarts by itself.
    fn cycle(&self) -> Option<u64> {
        self.is_free_running().then(|| self.length(1) + self.length(2))
    }

    fn unpolled(&self) -> [Option<i64>; 2] {
        self.unpolled.map(|instant| instant.map(|instant| instant as i64 - self.now as i64))
    }

    // What the contract says about registers.

    /// Performs a write at the current time, and what follows at once from a preload of 0.
    fn write(&mut self, write: Write) -> Access {
        let access = self.write_register(write);
        self.note_message();
        self.pass_until(self.now);
        access
    }

    fn write_register(&mut self, write: Write) -> Access {
        match write {
            Write::Key(0x80) => {
                self.keys = 1;
                return Access::Accepted;
            }
            Write::Key(0x86) if self.keys == 1 => {
                self.keys = 2;
                return Access::Accepted;
            }
            _ => {}
        }
        let is_unlocked = match write {
            Write::Key(_) | Write::Reload(_) | Write::Preload(..) | Write::InterruptStatus(_) => self.use_unlock(),
            _ => false,
        };
        match write {
            Write::InterruptStatus(value) if value & 1 == 0 => return Access::Ignored,
            Write::InterruptStatus(_) => self.interrupt = false,
            Write::Key(_) | Write::Reload(_) | Write::Preload(..) if !is_unlocked => return Access::Ignored,
            Write::Key(_) => {}
            Write::Preload(stage, units) => {
                self.preloads[stage - 1] = units;
                if let Some(Some((_, _, preloads, _))) = &mut self.unaware {
                    preloads[stage - 1] = units;
                }
            }
            Write::Reload(value) => {
                self.timed_out &= value & 0x1200 == 0;
                return match value & 0x0100 != 0 {
                    true if self.is_enabled() => {
                        self.begin(1, self.now);
                        Access::Heartbeat
                    }
                    true => Access::HeartbeatWhileDisarmed,
                    false => Access::Accepted,
                };
            }
            Write::Configuration(value) => {
                self.configuration = value & 0x27;
                if let Some(Some((configuration, ..))) = &mut self.unaware {
                    *configuration = value & 0x27;
                }
            }
            Write::Lock(_) if self.lock & 0x01 != 0 => return Access::Ignored,
            Write::Lock(value) => {
                let was_enabled = self.is_enabled();
                self.lock = value & 0x07;
                self.unaware = None;
                match (was_enabled, self.is_enabled()) {
                    (false, true) => self.begin(1, self.now),
                    (true, false) => self.running = None,
                    _ => {}
                }
            }
            Write::Command(value) => {
                self.command = value & 0x0507;
                self.decode();
            }
            Write::Bar0(address) => {
                self.bar0 = address & !0xF;
                self.decode();
            }
            Write::MsiEnable(enabled) => self.msi_enabled = enabled,
            Write::MsiAddress(address) => self.msi_address[0] = address & !3,
            Write::MsiUpperAddress(address) => self.msi_address[1] = address,
            Write::MsiData(data) => self.msi_data = data,
            Write::CacheLineLatency(value) => self.cache_line_latency = value,
            Write::InterruptLine(value) => self.interrupt_line = value,
        }
        Access::Accepted
    }

    fn use_unlock(&mut self) -> bool {
        let is_unlocked = self.keys == 2;
        if is_unlocked {
            self.keys = 0;
        }
        is_unlocked
    }

    fn decode(&mut self) {
        self.decoded = match self.bar0 {
            _ if self.command & 0x0002 == 0 => None,
            0xFFFF_FFF0 => self.decoded,
            address => Some(address).filter(|&address| address != 0),
        };
    }

    /// A message is due from the beginning of an interrupt by message, and once.
    fn note_message(&mut self) {
        let is_bus_master = self.command & 0x0004 != 0;
        let is_message = self.interrupt && self.configuration & 3 == 0 && self.msi_enabled && is_bus_master;
        self.message_sent = is_message.then(|| self.message_sent.unwrap_or(false));
    }

    /// Clears everything but WDT_TIMEOUT, and what a guest that does not notice the reset has in mind.
    fn reset(&mut self) -> Outcome {
        let unaware = match self.unaware {
            _ if self.is_enabled() => Some(Some(self.armed())),
            None => Some(None),
            still => still,
        };
        *self = Self { timed_out: self.timed_out, unaware, ..Self::new(self.setup, self.now) };
        Outcome::Nothing
    }

    fn armed(&self) -> Armed {
        let assigned = match self.bar0 {
            0 | 0xFFFF_FFF0 => self.decoded,
            address => Some(address),
        };
        (self.configuration, self.lock, self.preloads, assigned)
    }

    /// Arms the device for a guest that has not noticed the reset.
    fn rearm(&mut self) -> bool {
        let Some(Some((configuration, lock, preloads, _))) = self.unaware else {
            return false;
        };
        (self.configuration, self.lock, self.preloads) = (configuration, lock, preloads);
        self.unaware = None;
        self.begin(1, self.now);
        self.pass_until(self.now);
        true
    }

    /// Whether the device must be enabled: it was locked so, and was not reset since.
    fn is_locked_enabled(&self) -> bool {
        self.lock & 0x03 == 0x03
    }
}

impl Contract for I6300esbContract {
    type Act = Act;
    type View = View;
    type Relative = Self;

    fn now(&self) -> u64 {
        self.now
    }

    fn pass_until(&mut self, now: u64) {
        self.now = now;
        while let Some(Running { stage, ends_at, .. }) = self.running.clone().filter(|stage| stage.ends_at <= now) {
            if stage == 1 {
                self.interrupt = true;
                self.unpolled[0].get_or_insert(ends_at);
                self.begin(2, ends_at);
            } else {
                self.timed_out = true;
                if self.configuration & 0x20 == 0 {
                    self.unpolled[1].get_or_insert(ends_at);
                }
                self.running = None;
                if self.is_free_running() {
                    self.begin(1, ends_at);
                }
            }
        }
        self.note_message();
    }

    fn unpolled_for(&self) -> Option<u64> {
        self.unpolled.into_iter().flatten().min().map(|instant| self.now - instant)
    }

    fn ahead(&self) -> Option<Ahead> {
        let &Running { stage, ends_at, unit } = self.running.as_ref()?;
        Some(Ahead {
            end: if stage == 1 { "the end of stage 1" } else { "the end of stage 2" },
            nanos: ends_at - self.now,
            unit,
            long: self.cycle().map(|cycle| 3 * cycle + unit),
        })
    }

    fn next(&self) -> [Option<i64>; 2] {
        let Some(Running { stage, ends_at, .. }) = self.running else {
            return [None, None];
        };
        let nanos = ends_at - self.now;
        match stage {
            1 => [Some(nanos as i64), Some((nanos + self.length(2)) as i64)],
            _ => [None, Some(nanos as i64)],
        }
    }

    fn perform(&mut self, act: Act) -> Outcome {
        match act {
            Act::Guest(write) => Outcome::Access(self.write(write)),
            Act::Read => Outcome::Access(Access::Accepted),
            Act::Poll => {
                let expired = self.unpolled();
                self.unpolled = [None, None];
                Outcome::Expired(expired)
            }
            Act::Rearm => Outcome::Rearmed(self.rearm()),
            Act::Reset => self.reset(),
            Act::TakeOver => {
                self.timed_out = true;
                Outcome::Nothing
            }
            Act::TakeMessage | Act::PutBackMessage => {
                self.message_sent = self.message_sent.map(|_| act == Act::TakeMessage);
                Outcome::Nothing
            }
        }
    }

    fn view(&self) -> View {
        let is_interrupt = self.interrupt && self.configuration & 3 == 0;
        let by_pin = is_interrupt && self.setup.has_interrupts && !self.msi_enabled;
        let [next_end, next_timeout] = self.next();
        let has_msi = self.setup.has_interrupts;
        View {
            poll_in: self.unpolled().into_iter().flatten().min().or(next_end).or(next_timeout),
            timeout_in: next_timeout,
            is_armed: self.is_enabled(),
            is_locked_enabled: self.is_locked_enabled(),
            command: self.command,
            status: if has_msi { 0x10 } else { 0 } | if by_pin { 0x08 } else { 0 },
            bar0: self.bar0,
            decoded: self.decoded,
            storage: [self.cache_line_latency, self.interrupt_line.into()],
            msi: match has_msi {
                true => {
                    [0x80 + u32::from(self.msi_enabled), self.msi_address[0], self.msi_address[1], self.msi_data.into()]
                }
                false => [0; 4],
            },
            configuration: self.configuration,
            live_counter: self
                .running
                .as_ref()
                .map_or(0, |running| ((running.ends_at - self.now).div_ceil(CLOCK) / (running.unit / CLOCK)) as u32),
            lock: self.lock,
            preloads: self.preloads,
            interrupt_status: self.interrupt.into(),
            reload: if self.timed_out { 0x1200 } else { 0 },
            line: by_pin && self.command & 0x0400 == 0,
            message: (self.message_sent == Some(false)).then_some((self.msi_address, self.msi_data.into())),
            has_timed_out: self.timed_out,
            is_unaware: self.unaware.is_some(),
            armed_now: self.is_enabled().then(|| self.armed()),
            armed_before: self.unaware.flatten(),
            rearm_timeout: self.unaware.flatten().map(|(configuration, _, [preload1, preload2], _)| {
                let unit = if configuration & 0x04 == 0 { CLOCK << 15 } else { CLOCK << 5 };
                u64::from(preload1 + preload2) * unit
            }),
        }
    }

    fn relative(&self) -> Self {
        Self {
            now: 0,
            running: self.running.clone().map(|running| Running { ends_at: running.ends_at - self.now, ..running }),
            unpolled: self.unpolled.map(|instant| instant.map(|instant| self.now - instant)),
            ..self.clone()
        }
    }
}

/// What a guest and a host see of the device. Times are in nanoseconds from now.
#[derive(PartialEq, Eq)]
pub struct View {
    pub poll_in: Option<i64>,
    pub timeout_in: Option<i64>,
    pub is_armed: bool,
    /// 68h says so.
    pub is_locked_enabled: bool,
    pub command: u16,
    pub status: u16,
    pub bar0: u32,
    pub decoded: Option<u32>,
    /// Cache line size and latency timer, and the interrupt line.
    pub storage: [u16; 2],
    /// Message control, both halves of the address, and the data.
    pub msi: [u32; 4],
    pub configuration: u8,
    pub live_counter: u32,
    pub lock: u8,
    pub preloads: [u32; 2],
    pub interrupt_status: u32,
    pub reload: u32,
    pub line: bool,
    /// Both halves of the address, and the data.
    pub message: Option<([u32; 2], u32)>,
    pub has_timed_out: bool,
    pub is_unaware: bool,
    pub armed_now: Option<Armed>,
    pub armed_before: Option<Armed>,
    pub rearm_timeout: Option<u64>,
}

impl world::View for View {
    fn named(&self) -> Vec<(&'static str, String)> {
        let hex = |value: u32| format!("{value:#x}");
        vec![
            ("the timeout", in_words(self.timeout_in)),
            ("the next poll", in_words(self.poll_in)),
            ("WDT_ENABLE of a locked device", self.is_locked_enabled.to_string()),
            ("the device, armed as the host sees it,", self.is_armed.to_string()),
            ("the command register", hex(self.command.into())),
            ("the status register", hex(self.status.into())),
            ("BAR0", hex(self.bar0)),
            ("the address that BAR0 decodes", format!("{:x?}", self.decoded)),
            ("cache line and latency, interrupt line,", format!("{:x?}", self.storage)),
            ("MSI", format!("{:x?}", self.msi)),
            ("60h", hex(self.configuration.into())),
            ("64h, the live counter,", hex(self.live_counter)),
            ("68h", hex(self.lock.into())),
            ("PRELOAD1, PRELOAD2", format!("{:x?}", self.preloads)),
            ("GINTSR", hex(self.interrupt_status)),
            ("RELOAD", hex(self.reload)),
            ("the interrupt line", self.line.to_string()),
            ("the message", format!("{:x?}", self.message)),
            ("the last reset, by the watchdog,", self.has_timed_out.to_string()),
            ("a guest that may not know of the reset", self.is_unaware.to_string()),
            ("what is armed", format!("{:x?}", self.armed_now)),
            ("what can be armed again", format!("{:x?}, {:?} ns", self.armed_before, self.rearm_timeout)),
        ]
    }
}

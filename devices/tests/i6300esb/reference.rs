//! A second implementation of the contract, byte by byte and stage by stage, simple and slow.

use vm_watchdog_devices::Access;

/// Nanoseconds in a PCI clock.
const CLOCK: u64 = 30;

/// A running stage: the instant of its load, and its length in clocks.
#[derive(Clone, Copy, Debug)]
struct Running {
    stage: usize,
    loaded_at: u64,
    units: u64,
    clocks_a_unit: u64,
}

impl Running {
    fn ends_at(&self) -> u64 {
        self.loaded_at + self.units * self.clocks_a_unit * CLOCK
    }
}

#[derive(Clone, Debug)]
pub struct Reference {
    now: u64,
    has_pin: bool,
    has_msi: bool,
    /// Configuration space as a guest reads it, except the status and the live counter, which change by themselves.
    config: [u8; 256],
    bar0: Option<u32>,
    preloads: [u32; 2],
    had_first_key: bool,
    is_unlocked: bool,
    int_act: bool,
    /// An interrupt by message has begun, and whether its message was sent.
    message_sent: Option<bool>,
    timeout: bool,
    running: Option<Running>,
    /// For each stage: its first end since the last poll.
    ended: [Option<u64>; 2],
}

impl Reference {
    pub fn new(has_pin: bool, has_msi: bool) -> Self {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&[0x86, 0x80, 0xAB, 0x25]);
        config[8..12].copy_from_slice(&[0x00, 0x00, 0x80, 0x08]);
        config[0x3D] = has_pin.into();
        if has_msi {
            config[0x06] = 0x10;
            config[0x34] = 0x40;
            config[0x40] = 0x05;
            config[0x42] = 0x80;
        }
        Self {
            now: 0,
            has_pin,
            has_msi,
            config,
            bar0: None,
            preloads: [0xF_FFFF; 2],
            had_first_key: false,
            is_unlocked: false,
            int_act: false,
            message_sent: None,
            timeout: false,
            running: None,
            ended: [None; 2],
        }
    }

    pub fn reset(&mut self) {
        *self = Self { now: self.now, timeout: self.timeout, ..Self::new(self.has_pin, self.has_msi) };
    }

    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some(running) = self.running.filter(|running| running.ends_at() <= self.now) {
            let at = running.ends_at();
            if running.stage == 0 {
                self.int_act = true;
                self.ended[0] = self.ended[0].or(Some(at));
                self.load(1, at);
            } else {
                self.timeout = true;
                if self.config[0x60] & 0x20 == 0 {
                    self.ended[1] = self.ended[1].or(Some(at));
                }
                self.running = None;
                if self.is_free_running() {
                    self.load(0, at);
                }
            }
        }
        self.note_message();
    }

    fn note_message(&mut self) {
        let is_bus_master = self.config[0x04] & 0x04 != 0;
        let has_begun = self.has_interrupt() && self.is_msi_enabled() && is_bus_master;
        self.message_sent = has_begun.then(|| self.message_sent.unwrap_or(false));
    }

    pub fn message(&self) -> Option<(u64, u32)> {
        let address = u64::from_le_bytes(self.config[0x44..0x4C].try_into().unwrap());
        let data = u16::from_le_bytes([self.config[0x4C], self.config[0x4D]]);
        (self.message_sent == Some(false)).then_some((address, data.into()))
    }

    pub fn take_message(&mut self) {
        self.message_sent = self.message_sent.map(|_| true);
    }

    pub fn put_back_message(&mut self) {
        self.message_sent = self.message_sent.map(|_| false);
    }

    fn is_msi_enabled(&self) -> bool {
        self.config[0x42] & 0x01 != 0
    }

    fn has_interrupt(&self) -> bool {
        self.int_act && self.config[0x60] & 0x03 == 0
    }

    fn load(&mut self, stage: usize, at: u64) {
        let clocks_a_unit = if self.config[0x60] & 0x04 == 0 { 1 << 15 } else { 1 << 5 };
        self.running = Some(Running { stage, loaded_at: at, units: self.units(stage), clocks_a_unit });
    }

    fn units(&self, stage: usize) -> u64 {
        let preload = self.preloads[stage].into();
        if preload == 0 && self.is_free_running() { 1 } else { preload }
    }

    fn is_free_running(&self) -> bool {
        self.config[0x68] & 0x04 != 0
    }

    pub fn is_enabled(&self) -> bool {
        self.config[0x68] & 0x02 != 0
    }

    /// The longest wait that this model simulates in a short time.
    pub fn longest_wait(&self) -> u64 {
        let unit = if self.config[0x60] & 0x04 == 0 { CLOCK << 15 } else { CLOCK << 5 };
        if self.is_free_running() { 500 * (self.units(0) + self.units(1)) * unit } else { u64::MAX / 4 }
    }

    pub fn poll(&mut self, now: u64) -> [Option<u64>; 2] {
        self.advance(now);
        std::mem::take(&mut self.ended)
    }

    pub fn poll_at(&self) -> Option<u64> {
        let waiting = self.ended.into_iter().flatten().min();
        waiting.or(self.running.map(|running| running.ends_at()))
    }

    fn is_pending(&self) -> bool {
        self.has_pin && self.has_interrupt() && !self.is_msi_enabled()
    }

    pub fn interrupt_level(&self) -> bool {
        self.is_pending() && self.config[0x05] & 0x04 == 0
    }

    pub fn bar0(&self) -> Option<u32> {
        self.bar0
    }

    pub fn timed_out(&self) -> bool {
        self.timeout
    }

    pub fn config_image(&self) -> [u8; 256] {
        let mut image = self.config;
        image[0x06] |= if self.is_pending() { 0x08 } else { 0 };
        let count = self.running.map_or(0, |running| {
            let clocks = running.units * running.clocks_a_unit - (self.now - running.loaded_at) / CLOCK;
            (clocks / running.clocks_a_unit) as u32
        });
        image[0x64..0x68].copy_from_slice(&count.to_le_bytes());
        image
    }

    pub fn bar_image(&self) -> [u8; 16] {
        let reload = if self.timeout { 0x1200 } else { 0 };
        let dwords = [self.preloads[0], self.preloads[1], self.int_act.into(), reload];
        std::array::from_fn(|byte| dwords[byte / 4].to_le_bytes()[byte % 4])
    }

    pub fn write_config(&mut self, offset: u16, data: &[u8], now: u64) -> Access {
        self.advance(now);
        let bytes = (usize::from(offset)..).zip(data);
        let access = bytes.map(|(offset, &byte)| self.write_config_byte(offset, byte)).max();
        let is_enabled = self.config[0x04] & 0x02 != 0;
        match u32::from_le_bytes(self.config[0x10..0x14].try_into().unwrap()) {
            0xFFFF_FFF0 if is_enabled => {}
            address => self.bar0 = Some(address).filter(|&address| is_enabled && address != 0),
        }
        self.advance(now);
        access.unwrap_or(Access::Ignored)
    }

    fn write_config_byte(&mut self, offset: usize, byte: u8) -> Access {
        let mask = match offset {
            0x04 => 0x07,
            0x05 => 0x05,
            0x0C | 0x0D | 0x11..=0x13 | 0x3C => 0xFF,
            0x10 => 0xF0,
            0x60 => 0x27,
            0x61 => 0x00,
            0x42 if self.has_msi => 0x01,
            0x43 if self.has_msi => 0x00,
            0x44 if self.has_msi => 0xFC,
            0x45..=0x4D if self.has_msi => 0xFF,
            0x68 if self.config[0x68] & 0x01 == 0 => 0x07,
            _ => return Access::Ignored,
        };
        let was_enabled = self.is_enabled();
        let read_only = if offset == 0x42 { 0x80 } else { 0x00 };
        self.config[offset] = byte & mask | read_only;
        if self.is_enabled() && !was_enabled {
            self.load(0, self.now);
        }
        if !self.is_enabled() {
            self.running = None;
        }
        self.note_message();
        Access::Accepted
    }

    pub fn write_bar(&mut self, offset: u64, data: &[u8], now: u64) -> Access {
        self.advance(now);
        let mut access = Access::Ignored;
        for register in [0x0, 0x4, 0x8, 0xC] {
            // The bytes of the access in this register.
            let lanes: Vec<(u64, u8)> = (0..)
                .zip(data)
                .filter_map(|(i, &byte)| Some((offset.checked_add(i)?.checked_sub(register)?, byte)))
                .filter(|&(lane, _)| lane < 4)
                .collect();
            if !lanes.is_empty() {
                access = access.max(self.write_register(register, &lanes));
                self.note_message();
            }
        }
        self.advance(now);
        access
    }

    fn write_register(&mut self, register: u64, lanes: &[(u64, u8)]) -> Access {
        let value: u32 = lanes.iter().map(|&(lane, byte)| u32::from(byte) << (8 * lane)).sum();
        if register == 0xC && value == 0x80 {
            self.had_first_key = true;
            self.is_unlocked = false;
            return Access::Accepted;
        }
        if register == 0xC && value == 0x86 && self.had_first_key {
            self.had_first_key = false;
            self.is_unlocked = true;
            return Access::Accepted;
        }
        let was_unlocked = std::mem::take(&mut self.is_unlocked);
        match register {
            0x0 | 0x4 if was_unlocked => {
                let stage = (register / 4) as usize;
                let mut bytes = self.preloads[stage].to_le_bytes();
                for &(lane, byte) in lanes {
                    bytes[lane as usize] = byte;
                }
                self.preloads[stage] = u32::from_le_bytes(bytes) & 0xF_FFFF;
            }
            0x8 if value & 1 != 0 => self.int_act = false,
            0xC if was_unlocked => {
                if value & 0x1200 != 0 {
                    self.timeout = false;
                }
                if value & 0x0100 != 0 && self.is_enabled() {
                    self.load(0, self.now);
                    return Access::Heartbeat;
                }
                if value & 0x0100 != 0 {
                    return Access::HeartbeatWhileDisarmed;
                }
            }
            _ => return Access::Ignored,
        }
        Access::Accepted
    }
}

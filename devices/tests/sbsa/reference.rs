//! A second implementation of the contract, simple and slow: the pseudocode of DEN0094, C.2, beside a counter that is
//! computed from the beginning, and a search for the instant at which it exceeds a value.

use vm_watchdog_devices::Access;
use vm_watchdog_devices::sbsa::Frame;

#[derive(Clone, Debug)]
pub struct Reference {
    hz: u32,
    now: u64,
    /// What the counter reads more than the ticks since the clock started. Negative if the VMM has set it back.
    ahead: i128,
    pub enabled: bool,
    pub ws0: bool,
    pub ws1: bool,
    wor: u64,
    wcv: u64,
    /// WS0 and WS1: the first since the last poll.
    unpolled: [Option<u64>; 2],
}

impl Reference {
    pub fn new(hz: u32) -> Self {
        Self { hz, now: 0, ahead: 0, enabled: false, ws0: false, ws1: false, wor: 0, wcv: 0, unpolled: [None; 2] }
    }

    fn counter_at(&self, instant: u64) -> u64 {
        let ticks = u128::from(instant) * u128::from(self.hz) / 1_000_000_000;
        (ticks as i128 + self.ahead).try_into().expect("far from the ends of the counter")
    }

    pub fn counter(&self) -> u64 {
        self.counter_at(self.now)
    }

    /// The first instant from now on at which the counter is greater.
    fn exceeds_at(&self, compare: u64) -> u64 {
        let (mut low, mut high) = (self.now, u64::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            let ticks = u128::from(middle) * u128::from(self.hz) / 1_000_000_000;
            if ticks as i128 + self.ahead > i128::from(compare) { high = middle } else { low = middle + 1 }
        }
        low
    }

    fn period_ends_at(&self) -> Option<u64> {
        (self.enabled && !self.ws1).then(|| self.exceeds_at(self.wcv))
    }

    pub fn advance(&mut self, now: u64) {
        let now = now.max(self.now);
        while let Some(end) = self.period_ends_at().filter(|end| *end <= now) {
            let first_greater = if self.counter() > self.wcv { self.counter() } else { self.wcv + 1 };
            // What the frequency allows to count in a nanosecond is counted tick by tick.
            self.now = end;
            if self.ws0 {
                self.ws1 = true;
                self.unpolled[1] = self.unpolled[1].or(Some(end));
            } else {
                self.ws0 = true;
                self.wcv = first_greater.saturating_add(self.wor);
                self.unpolled[0] = self.unpolled[0].or(Some(end));
            }
        }
        self.now = now;
    }

    pub fn poll(&mut self, now: u64) -> [Option<u64>; 2] {
        self.advance(now);
        std::mem::take(&mut self.unpolled)
    }

    pub fn poll_at(&self) -> Option<u64> {
        self.unpolled.into_iter().flatten().min().or_else(|| self.period_ends_at())
    }

    pub fn timeout_at(&self) -> Option<u64> {
        if self.ws0 {
            return self.period_ends_at();
        }
        // What would become of it.
        let mut ahead = self.clone();
        ahead.unpolled = [None; 2];
        let end = self.period_ends_at()?;
        if end == u64::MAX {
            return Some(end);
        }
        ahead.advance(end);
        if ahead.ws1 { ahead.unpolled[1] } else { ahead.period_ends_at() }
    }

    pub fn reset(&mut self) {
        (self.enabled, self.ws0, self.wor, self.wcv, self.unpolled) = (false, false, 0, 0, [None; 2]);
    }

    pub fn set_counter(&mut self, value: u64, now: u64) {
        self.advance(now);
        let before = self.counter();
        if self.enabled && !self.ws1 {
            self.wcv = value.saturating_add(self.wcv - before);
        }
        self.ahead += i128::from(value) - i128::from(before);
    }

    fn refresh(&mut self) {
        self.wcv = self.counter().saturating_add(self.wor);
        (self.ws0, self.ws1) = (false, false);
    }

    /// The frame as a guest reads it, up to 1Fh.
    pub fn control(&self) -> Vec<u8> {
        let wcs = u32::from(self.enabled) | u32::from(self.ws0) << 1 | u32::from(self.ws1) << 2;
        let mut image = vec![0; 0x20];
        image[0x00..0x04].copy_from_slice(&wcs.to_le_bytes());
        image[0x08..0x10].copy_from_slice(&self.wor.to_le_bytes());
        image[0x10..0x18].copy_from_slice(&self.wcv.to_le_bytes());
        image
    }

    pub fn write(&mut self, frame: Frame, offset: u64, data: &[u8], now: u64) -> Access {
        self.advance(now);
        let bytes: Vec<(u64, u8)> = (offset..).zip(data.iter().copied()).filter(|(at, _)| *at < 0x1000).collect();
        let mut kinds = Vec::new();
        for dword in bytes.chunk_by(|(a, _), (b, _)| a / 4 == b / 4) {
            let base = dword[0].0 / 4 * 4;
            kinds.push(match (frame, base) {
                (Frame::Refresh, 0x000) => {
                    self.refresh();
                    if self.enabled { Access::Heartbeat } else { Access::HeartbeatWhileDisarmed }
                }
                (Frame::Control, 0x000 | 0x008 | 0x00C | 0x010 | 0x014) => {
                    let was_enabled = self.enabled;
                    let mut image = self.control();
                    dword.iter().for_each(|(at, byte)| image[*at as usize] = *byte);
                    let long = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
                    self.enabled = image[0] & 1 == 1;
                    self.wor = long(0x08) & 0xFFFF_FFFF_FFFF;
                    self.wcv = long(0x10);
                    if base < 0x10 {
                        self.refresh();
                    }
                    if base < 0x10 && was_enabled && self.enabled { Access::Heartbeat } else { Access::Accepted }
                }
                _ => Access::Ignored,
            });
        }
        self.advance(now);
        kinds.into_iter().max().unwrap_or(Access::Ignored)
    }
}

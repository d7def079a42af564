//! Performs a guest's operations on the model, and writes the script with which QEMU must have the same results.
//!
//! After each operation both have the same state, or a rule says what differs and until when.

use vm_watchdog_devices::{Expired, Model, VmInstant};

use crate::book::{Book, Effect, Stage, TIMEOUT_BITS, Unlock, WDT_RELOAD, is_possible_bar, write_bar_there};
use crate::machine::{Mismatch, function};
use crate::operation::{At, Operation, Target, WINDOWS, Wait, ones};
use crate::pair::{Bar, Config};
use crate::rules::{Rule, Rules};
use crate::sides::{Here, There};
use crate::situations::{Situation, Situations};

/// Most ends of stages in one wait. The wait ends there: a free running device has millions in the longest waits.
const MOST_STAGES: usize = 40;

/// Where BAR0 of QEMU's device is mapped for accesses of a rule, while the guest has not mapped it.
const PARKING: u32 = 0xFEBF_2000;

pub struct Comparison {
    pub rules: Rules,
    pub situations: Situations,
    pub there: There,
    here: Here,
    book: Book,
}

/// The result of an operation.
pub type Checked = Result<(), Mismatch>;

impl Comparison {
    /// Both after power-on, with BAR0 mapped by firmware.
    pub fn new(rules: Rules) -> Self {
        let mut new = Self {
            rules,
            situations: Situations::default(),
            there: There::default(),
            here: Here::new(),
            book: Book::new(),
        };
        new.map();
        // What a reset of QEMU's device keeps.
        for offset in (0x40..0x100).step_by(4) {
            new.there.write(function(offset), 4, 0);
        }
        new.there.unlock(WINDOWS[0]);
        new.there.write(WINDOWS[0] + 0x0C, 2, TIMEOUT_BITS);
        new
    }

    /// Performs one operation on the model, and adds it to the script.
    pub fn perform(&mut self, operation: Operation) -> Checked {
        self.there.operation += 1;
        match operation {
            Operation::Read(at) => self.access(at, None)?,
            Operation::Write(at, value) => self.access(at, Some(value))?,
            Operation::Wait(wait) => self.wait(wait)?,
            Operation::Reset => {
                self.here.model.reset();
                self.book.reset();
                self.map();
            }
        }
        self.end_stages_of_zero()?;
        self.observe()
    }

    /// Resets QEMU's device, and maps both.
    fn map(&mut self) {
        self.there.reset();
        for (offset, width, value) in [(0x10, 4, WINDOWS[0]), (0x04, 2, 0x0002)] {
            self.here.write(Config, offset, width, value);
            self.there.write(function(offset), width, value);
        }
    }

    fn access(&mut self, At { target, offset, width }: At, value: Option<u32>) -> Checked {
        let address = match target {
            Target::Config => {
                return match value {
                    None => self.read_config(offset, width),
                    Some(value) => self.write_config(offset, width, value),
                };
            }
            Target::Bar => self.book.last_bar + u32::from(offset),
            Target::Window(window) => WINDOWS[window] + u32::from(offset),
        };
        match self.book.bar.map(|base| (base, address.wrapping_sub(base))) {
            Some((base, offset @ 0..0x10)) => {
                let sizing = self.book.is_sizing && self.rules.apply(Rule::Sizing);
                if sizing {
                    self.access_nothing_there(address, width, value);
                    self.there.write(function(0x10), 4, base);
                    self.book.is_sizing = false;
                }
                match value {
                    None => self.read_bar(base, offset as u16, width)?,
                    Some(value) => self.write_bar(base, offset as u16, width, value),
                }
                if sizing {
                    self.there.write(function(0x10), 4, 0xFFFF_FFFF);
                    self.book.is_sizing = true;
                }
            }
            _ => self.access_nothing_there(address, width, value),
        }
        Ok(())
    }

    fn access_nothing_there(&mut self, address: u32, width: usize, value: Option<u32>) {
        match value {
            None => self.there.expect(address, width, 0),
            Some(value) => self.there.write(address, width, value),
        }
    }

    fn read_config(&mut self, offset: u16, width: usize) -> Checked {
        let here = self.here.read(Config, offset, width).to_le_bytes();
        let mut there = here;
        let mut last_rule = None;
        for (index, at) in (offset..).take(width).enumerate() {
            let Some((rule, by_rule_there, by_rule_here)) = self.config_rule(at, offset, width, here[index]) else {
                continue;
            };
            if by_rule_there == by_rule_here {
                self.check(format_args!("byte {at:#04x} of configuration space"), here[index], by_rule_here)?;
            } else if last_rule == Some(rule) || self.rules.apply(rule) {
                last_rule = Some(rule);
                self.check(format_args!("byte {at:#04x} of configuration space"), here[index], by_rule_here)?;
                there[index] = by_rule_there;
            }
        }
        self.there.expect(function(offset), width, u32::from_le_bytes(there));
        Ok(())
    }

    /// The rule for one byte of a read: QEMU's value, and the model's. `None` if the values must be equal.
    fn config_rule(&mut self, at: u16, offset: u16, width: usize, here: u8) -> Option<(Rule, u8, u8)> {
        let stored = self.book.storage[usize::from(at % 0x100)];
        let byte_of = |value: u32| value.to_le_bytes()[usize::from(at % 4)];
        Some(match at {
            0x06 => {
                const PENDING: u8 = 1 << 3;
                let pending = if self.has_interrupt() { PENDING } else { 0 };
                (Rule::InterruptStatus, here & !PENDING, here & !PENDING | pending)
            }
            0x0D => (Rule::LatencyTimer, 0, self.book.latency_timer),
            0x3D => (Rule::InterruptPin, 0, 1),
            0x60 | 0x61 if (offset, width) == (0x60, 2) => return None,
            0x60 | 0x61 => (Rule::ConfigurationWidths, stored, byte_of(self.here.configuration())),
            0x64..=0x67 => {
                let remaining = self.here.model.poll_at().map(|end| end.as_nanos().saturating_sub(self.here.now));
                (Rule::LiveCounter, stored, byte_of(self.book.live_counter(remaining)))
            }
            0x68 if width == 1 => return None,
            0x68 => (Rule::LockWidths, stored, byte_of(self.here.lock())),
            0x40..0x100 => (Rule::UndefinedConfiguration, stored, 0),
            _ => return None,
        })
    }

    fn write_config(&mut self, offset: u16, width: usize, value: u32) -> Checked {
        let (configuration, lock) = (self.here.configuration(), self.here.lock());
        if offset & !3 == 0x10 {
            let lane = 8 * (offset & 3);
            let bar0 = self.book.bar0 & !(ones(width) << lane) | value << lane;
            if !is_possible_bar(bar0) {
                return Ok(());
            }
        }
        let bytes = (offset..).zip(value.to_le_bytes()).take(width);
        let byte = |wanted: u16| bytes.clone().find(|&(at, _)| at == wanted).map(|(_, byte)| u32::from(byte));
        let has_configuration = byte(0x60).is_some() || byte(0x61).is_some();
        let new_lock = byte(0x68).filter(|_| lock & 0x01 == 0);
        if let Some(new_lock) = new_lock {
            self.adapt_preloads_there(new_lock);
        }

        self.here.write(Config, offset, width, value);
        self.there.write(function(offset), width, value);

        let is_register_there = [(0x60, 2), (0x68, 1)].contains(&(offset, width));
        for (at, byte) in bytes.clone() {
            match at {
                0x0D => self.book.latency_timer = byte,
                0x40..0x100 if !is_register_there => self.book.storage[usize::from(at)] = byte,
                _ => {}
            }
        }
        if has_configuration && !is_register_there {
            let [low, high, ..] = configuration.to_le_bytes().map(u32::from);
            let merged = byte(0x60).unwrap_or(low) | byte(0x61).unwrap_or(high) << 8;
            if (merged ^ configuration) & 0x27 != 0 && self.rules.apply(Rule::ConfigurationWidths) {
                self.there.expect(function(0x60), 2, configuration);
                self.there.write(function(0x60), 2, merged);
            }
        }
        if let Some(new_lock) = new_lock {
            if !is_register_there && (new_lock ^ lock) & 0x07 != 0 && self.rules.apply(Rule::LockWidths) {
                self.there.expect(function(0x68), 1, lock);
                self.there.write(function(0x68), 1, new_lock);
            }
            match (lock & 0x02 != 0, new_lock & 0x02 != 0) {
                (false, true) => self.book.start(Stage::One, self.here.configuration()),
                (true, false) => self.book.stage = None,
                _ => {}
            }
        }
        if offset < 0x18 {
            let command = self.here.read(Config, 0x04, 2);
            let bar0 = self.here.read(Config, 0x10, 4);
            self.there.expect(function(0x04), 2, command);
            self.there.expect(function(0x10), 4, bar0);
            self.book.decode(command, bar0);
        }
        Ok(())
    }

    fn read_bar(&mut self, base: u32, offset: u16, width: usize) -> Checked {
        let here = self.here.read(Bar, offset, width).to_le_bytes();
        let mut there = 0_u32;
        let mut last_rule = None;
        for (index, at) in (offset..).take(width).enumerate() {
            let (rule, register) = match at {
                0x00..0x04 => (Rule::PreloadReads, self.book.preloads[0]),
                0x04..0x08 => (Rule::PreloadReads, self.book.preloads[1]),
                0x08..0x0C => (Rule::InterruptStatus, self.book.interrupt_active.into()),
                _ => (Rule::StatusWidths, if self.book.timed_out { TIMEOUT_BITS } else { 0 }),
            };
            let by_rule_here = register.to_le_bytes()[usize::from(at % 4)];
            self.check(format_args!("byte {at:#04x} of BAR0"), here[index], by_rule_here)?;
            let in_status_there = matches!((offset, width), (0x0C, 2) | (0x0A | 0x0B, 4)) && (0x0C..0x0E).contains(&at);
            let by_rule_there = match at {
                _ if !in_status_there => 0,
                _ if !self.book.timed_out_there => 0,
                _ => TIMEOUT_BITS.to_le_bytes()[usize::from(at % 4)],
            };
            let rule = if in_status_there { Rule::TimeoutWithoutOutput } else { rule };
            let differs = by_rule_here != by_rule_there;
            let is_in_use = differs && (last_rule == Some(rule) || self.rules.apply(rule));
            last_rule = if is_in_use { Some(rule) } else { last_rule };
            let byte = if differs && !is_in_use { by_rule_here } else { by_rule_there };
            there |= u32::from(byte) << (8 * index);
        }
        self.there.expect(base + u32::from(offset), width, there);
        Ok(())
    }

    fn write_bar(&mut self, base: u32, offset: u16, width: usize, value: u32) {
        let mut unlock_there = self.book.unlock;
        let done_there = write_bar_there(&mut unlock_there, offset, width, value);
        let effect = self.book.write_bar(offset, width, value);
        self.here.write(Bar, offset, width, value);
        self.there.write(base + u32::from(offset), width, value);
        match effect {
            Effect::Reload(bits) if bits != 0 && !done_there && self.rules.apply(Rule::ReloadWidths) => {
                self.there.unlock(base);
                self.there.write(base + 0x0C, 2, bits);
                unlock_there = Unlock::Locked;
            }
            Effect::Preload(number) if !done_there && self.rules.apply(Rule::PreloadWidths) => {
                self.there.set_preload(base, number, self.book.preloads[number]);
                unlock_there = Unlock::Locked;
            }
            _ => {}
        }
        if let Effect::Preload(number) = effect {
            self.book.preloads_there[number] = self.book.preloads[number];
        }
        if unlock_there != self.book.unlock && self.rules.apply(Rule::UnlockUsedByBytes) {
            self.there.lock(base);
        }
        if matches!(effect, Effect::Reload(bits) if bits & WDT_RELOAD != 0) {
            self.situations.note(Situation::Reload, true);
            if self.here.lock() & 0x02 != 0 {
                self.book.start(Stage::One, self.here.configuration());
            }
        }
        let lock = self.here.lock();
        self.adapt_preloads_there(lock);
    }

    fn wait(&mut self, wait: Wait) -> Checked {
        let end = |from: Option<VmInstant>, after: i64| {
            let from = from.map_or(self.here.now + 1, VmInstant::as_nanos);
            from.saturating_add_signed(after).max(self.here.now)
        };
        let end = match wait {
            Wait::Nanos(nanos) => self.here.now + nanos,
            Wait::StageEnd(after) => end(self.here.model.poll_at(), after),
            Wait::Timeout(after) => end(self.here.model.timeout_at(), after),
        };
        let mut polled_late = self.here.model.clone();
        for _ in 0..MOST_STAGES {
            match self.here.model.poll_at().map(VmInstant::as_nanos).filter(|&stage_end| stage_end <= end) {
                Some(stage_end) => self.end_stage(stage_end)?,
                None => {
                    self.pass(end)?;
                    break;
                }
            }
        }
        let now = VmInstant::from_nanos(self.here.now);
        polled_late.poll(now);
        self.check("the state after one poll at the end", polled_late.save(now), self.here.model.clone().save(now))
    }

    /// Ends stages that a write has started with preload 0.
    fn end_stages_of_zero(&mut self) -> Checked {
        for _ in 0..MOST_STAGES {
            match self.here.model.poll_at().map(VmInstant::as_nanos).filter(|&end| end <= self.here.now) {
                Some(end) => self.end_stage(end)?,
                None => return Ok(()),
            }
        }
        self.check("the number of stages that end at once", MOST_STAGES, 2)
    }

    fn advance(&mut self, now: u64) {
        self.here.now = self.here.now.max(now);
        self.there.now = self.here.now;
    }

    /// Advances the time up to `end`, at which nothing happens.
    fn pass(&mut self, end: u64) -> Checked {
        self.advance(end);
        let expired = self.here.poll();
        self.check(format_args!("what ends at {}", self.here.now), expired, Expired::default())
    }

    /// Advances the time to the end of the stage.
    fn end_stage(&mut self, end: u64) -> Checked {
        let is_immediate = end <= self.here.now;
        if !is_immediate {
            self.pass(end - 1)?;
        }
        let is_timeout = self.here.model.timeout_at().is_none_or(|at| at.as_nanos() == end);
        let (configuration, lock) = (self.here.configuration(), self.here.lock());
        let has_output = configuration & 0x20 == 0;
        if is_timeout && has_output && !is_immediate {
            self.there.expect(function(0x68), 1, lock);
        }
        self.advance(end);
        if is_immediate && self.rules.apply(Rule::StageOfZero) {
            self.advance(self.here.now + 1);
        }
        let at = Some(VmInstant::from_nanos(end));
        let Expired { pretimeout, timeout, .. } = self.here.poll();
        let is_stage_one = self.book.stage == Some(Stage::One);
        self.check("the end of stage 1", pretimeout, at.filter(|_| is_stage_one))?;
        self.check("the timeout", timeout, at.filter(|_| is_timeout && has_output))?;
        // QEMU gets these after a timeout, so they must not change here.
        let registers = [self.here.configuration(), self.here.lock()];
        self.check("60h and 68h after the end of a stage", registers, [configuration, lock])?;
        if is_stage_one {
            self.book.end_stage_one(configuration);
        }
        if is_timeout { self.time_out(configuration, lock) } else { Ok(()) }
    }

    fn time_out(&mut self, configuration: u32, lock: u32) -> Checked {
        let has_output = configuration & 0x20 == 0;
        self.situations.note(if has_output { Situation::Timeout } else { Situation::TimeoutWithoutOutput }, true);
        self.book.timed_out = true;
        self.book.stage = None;
        if lock & 0x04 != 0 {
            self.book.start(Stage::One, configuration);
        }
        if has_output {
            self.book.timed_out_there = true;
            if self.rules.apply(Rule::StaysArmed) {
                self.there.expect(function(0x60), 2, 0);
                self.there.expect(function(0x68), 1, 0);
                return self.arm_again_there(configuration, lock);
            }
        }
        Ok(())
    }

    /// Sets QEMU's device, which is as after a reset, to the state of an armed device whose counter is stopped, or has
    /// started again in free running mode.
    fn arm_again_there(&mut self, configuration: u32, lock: u32) -> Checked {
        let base = self.open_bar_there();
        if lock & 0x04 == 0 {
            // Both stages end at once, without output.
            (0..2).for_each(|number| self.there.set_preload(base, number, 0));
            self.there.write(function(0x60), 2, 0x24);
            self.there.write(function(0x68), 1, 0x02);
            self.pass(self.here.now + 1)?;
        }
        (0..2).for_each(|number| self.there.set_preload(base, number, self.book.preloads_there[number]));
        self.there.write(function(0x60), 2, configuration);
        self.there.write(function(0x68), 1, lock);
        self.there.restore_unlock(base, self.book.unlock);
        self.close_bar_there();
        Ok(())
    }

    /// Keeps preloads of 0 out of QEMU's device while `lock` has free running mode.
    fn adapt_preloads_there(&mut self, lock: u32) {
        let least = u32::from(lock & 0x04 != 0);
        for number in 0..2 {
            let preload = self.book.preloads[number].max(least);
            // Without the rule too, two zeros do not reach QEMU: it would loop without end.
            let needed = self.book.preloads_there[number] != preload
                && (self.rules.apply(Rule::ZeroInFreeRunning) || self.book.preloads[1 - number] == 0);
            if needed {
                let base = self.open_bar_there();
                self.there.set_preload(base, number, preload);
                self.there.restore_unlock(base, self.book.unlock);
                self.close_bar_there();
                self.book.preloads_there[number] = preload;
            }
        }
    }

    /// Maps BAR0 of QEMU's device if the guest has not. Returns its address.
    fn open_bar_there(&mut self) -> u32 {
        self.book.bar_there().unwrap_or_else(|| {
            self.there.write(function(0x10), 4, PARKING);
            self.there.write(function(0x04), 2, 0x0002);
            PARKING
        })
    }

    /// Undoes `open_bar_there`.
    fn close_bar_there(&mut self) {
        if self.book.bar_there().is_none() {
            self.there.write(function(0x04), 2, self.book.command);
            self.there.write(function(0x10), 4, self.book.bar0);
        }
    }

    /// What is compared after every operation.
    fn observe(&mut self) -> Checked {
        let (configuration, lock) = (self.here.configuration(), self.here.lock());
        self.there.expect(function(0x60), 2, configuration);
        self.there.expect(function(0x68), 1, lock);
        if let Some(base) = self.book.bar_there() {
            self.read_bar(base, 0x0C, 2)?;
        }
        self.check("where BAR0 decodes", self.here.model.bar0(), self.book.bar)?;
        let level = self.has_interrupt() && self.book.command & 0x0400 == 0;
        self.check("the level of the interrupt", self.here.model.interrupt_level(), level)?;
        self.situations.observe(&self.book, configuration, lock);
        Ok(())
    }

    /// WDT_INT_ACT with the interrupt type IRQ.
    fn has_interrupt(&mut self) -> bool {
        self.book.interrupt_active && self.here.configuration() & 0x03 == 0
    }

    fn check<T: PartialEq + std::fmt::Debug>(&self, what: impl std::fmt::Display, here: T, expected: T) -> Checked {
        if here == expected {
            return Ok(());
        }
        let what = format!("the model has {here:?} for {what}; by its history and the rules it is {expected:?}");
        Err(Mismatch { operation: self.there.operation, what })
    }
}

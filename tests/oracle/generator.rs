//! Random sequences of operations, weighted so that they reach deep states: most are what a driver does, some are wrong.

use vm_watchdog_test_support::random::Random;

use crate::operation::{At, Operation, Target, WINDOWS, Wait, bar, config};

/// Groups of operations in one sequence: a few hundred operations.
const GROUPS_PER_SEQUENCE: usize = 100;

type Group = fn(&mut Generator);

/// The groups, with their weights.
const GROUPS: [(u32, Group); 20] = [
    (14, Generator::heartbeat),
    (14, Generator::preload),
    (10, Generator::wait_for_a_boundary),
    (8, Generator::wait),
    (10, Generator::lock),
    (7, Generator::configuration),
    (3, Generator::start),
    (4, Generator::clear_timeout),
    (4, Generator::unlock),
    (3, Generator::key),
    (3, Generator::acknowledge),
    (4, Generator::any_bar_write),
    (4, Generator::two_writes_for_one_unlock),
    (8, Generator::bar_read),
    (8, Generator::config_read),
    (4, Generator::undefined_config_write),
    (3, Generator::header_write),
    (1, Generator::move_bar),
    (2, Generator::map_bar),
    (1, Generator::reset),
];

const PRELOADS: [u32; 12] = [0, 1, 1, 2, 3, 100, 512, 513, 4096, 70_000, 0xF_FFFF, 0x10_0001];

/// The operations of a sequence. Equal seeds have equal sequences.
pub fn sequence(seed: u64) -> Vec<Operation> {
    let mut generator = Generator { random: Random::new(seed), operations: Vec::new() };
    for _ in 0..GROUPS_PER_SEQUENCE {
        generator.group();
    }
    generator.operations
}

struct Generator {
    random: Random,
    operations: Vec<Operation>,
}

impl Generator {
    fn group(&mut self) {
        let mut at = self.random.below(GROUPS.iter().map(|&(weight, _)| weight).sum());
        for (weight, group) in GROUPS {
            if at < weight {
                return group(self);
            }
            at -= weight;
        }
    }

    fn write(&mut self, at: At, value: u32) {
        self.operations.push(Operation::Write(at, value));
    }

    fn unlock(&mut self) {
        let width = self.random.of(&[1, 2, 2, 4]);
        self.write(bar(0x0C, width), 0x80);
        if self.random.below(16) == 0 {
            // Between the keys: neither a wrong value nor a write to another register cancels the first.
            let offset = self.random.of(&[0x0C, 0x0C, 0x0E, 0x08, 0x00]);
            let value = self.random.of(&[0x42, 0x00, 0x01]);
            let width = self.random.of(&[1, 2]);
            self.write(bar(offset, width), value);
        }
        self.write(bar(0x0C, width), 0x86);
    }

    fn key(&mut self) {
        let (width, key) = (self.random.of(&[1, 2, 4]), self.random.of(&[0x80, 0x86, 0x42]));
        self.write(bar(0x0C, width), key);
    }

    fn preload(&mut self) {
        self.unlock();
        self.write_preload();
    }

    /// The unlock is for one write, and this has two.
    fn two_writes_for_one_unlock(&mut self) {
        self.unlock();
        let (offset, width) = self.within_a_dword(0x10);
        let value = self.value(width);
        self.write(bar(offset, width), value);
        if self.random.below(2) == 0 { self.reload() } else { self.write_preload() }
    }

    fn write_preload(&mut self) {
        let register = self.random.of(&[0x00, 0x04]);
        let value = match self.random.below(8) {
            0 => self.random.next() as u32,
            _ => self.random.of(&PRELOADS),
        };
        match self.random.below(4) {
            0 => {
                let (lane, width) = self.random.of(&[(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2), (1, 2)]);
                self.write(bar(register + lane, width), value & 0xFFFF >> (16 - 8 * width));
            }
            _ => self.write(bar(register, 4), value),
        }
    }

    fn heartbeat(&mut self) {
        self.unlock();
        self.reload();
    }

    fn reload(&mut self) {
        let (offset, width, value) = self.random.of(&[
            (0x0C, 2, 0x0100),
            (0x0C, 2, 0x0100),
            (0x0C, 2, 0x0300),
            (0x0D, 1, 0x01),
            (0x0C, 4, 0x0100),
        ]);
        self.write(bar(offset, width), value);
    }

    fn clear_timeout(&mut self) {
        self.unlock();
        let value = self.random.of(&[0x0200, 0x1000, 0x0300, 0x1100, 0x0000, 0xFEFF, 0xFFFF]);
        match self.random.below(4) {
            0 => self.write(bar(0x0D, 1), value >> 8),
            1 => self.write(bar(0x0C, 4), value),
            _ => self.write(bar(0x0C, 2), value),
        }
    }

    fn acknowledge(&mut self) {
        let (width, value) = (self.random.of(&[1, 2, 4]), self.random.of(&[0, 1, 0x80, 0x86]));
        self.write(bar(0x08, width), value);
    }

    fn any_bar_write(&mut self) {
        if self.random.below(2) == 0 {
            self.unlock();
        }
        let at = self.within_a_dword(0x10);
        let value = self.value(at.1);
        let target = self.bar_or_window();
        self.write(At { target, offset: at.0, width: at.1 }, value);
    }

    fn bar_read(&mut self) {
        let (offset, width) = match self.random.below(2) {
            0 => self.random.of(&[
                (0x0C, 1),
                (0x0D, 1),
                (0x0C, 4),
                (0x0A, 4),
                (0x0B, 4),
                (0x08, 4),
                (0x00, 4),
                (0x04, 4),
            ]),
            _ => {
                let width = self.random.of(&[1, 2, 4]);
                (self.random.below(17 - width as u32) as u16, width)
            }
        };
        let target = self.bar_or_window();
        self.operations.push(Operation::Read(At { target, offset, width }));
    }

    fn bar_or_window(&mut self) -> Target {
        match self.random.below(8) {
            0 => Target::Window(self.random.below(WINDOWS.len() as u32) as usize),
            _ => Target::Bar,
        }
    }

    fn configuration(&mut self) {
        let value = self.random.of(&[0x00, 0x00, 0x03, 0x04, 0x04, 0x07, 0x02, 0x20, 0x24, 0x01, 0xFF01]);
        let (offset, width) =
            self.random.of(&[(0x60, 2), (0x60, 2), (0x60, 2), (0x60, 1), (0x60, 4), (0x61, 1), (0x61, 2)]);
        self.write(config(offset, width), value & 0xFFFF >> (16 - 8 * width.min(2)));
    }

    fn lock(&mut self) {
        const ENABLE: u32 = 0x02;
        let value = match self.random.below(24) {
            0..=9 => ENABLE,
            10..=13 => 0x06,
            14..=19 => 0x00,
            20 => 0x04,
            21 => 0xFA,
            22 => 0x03,
            _ => 0x07,
        };
        let width = self.random.of(&[1, 1, 1, 2, 4]);
        self.write(config(0x68, width), value);
    }

    /// From probe to start, as a driver does.
    fn start(&mut self) {
        let configuration = self.random.of(&[0x00, 0x03, 0x07, 0x20]);
        self.write(config(0x60, 2), configuration);
        for register in [0x00, 0x04] {
            let preload = self.random.of(&PRELOADS);
            self.unlock();
            self.write(bar(register, 4), preload);
        }
        self.write(config(0x68, 1), 0x02);
        self.heartbeat();
    }

    fn wait(&mut self) {
        let nanos = self.random.of(&[
            1,
            29,
            30,
            960,
            983_040,
            100_000_000,
            400_000_000,
            2_000_000_000,
            70_000_000_000,
            2_000_000_000_000,
        ]);
        self.operations.push(Operation::Wait(Wait::Nanos(nanos)));
    }

    /// Often the next access is a heartbeat, or one that decides over the next stage.
    fn wait_for_a_boundary(&mut self) {
        let after = self.random.of(&[-1, 0, 1]);
        let wait = if self.random.below(2) == 0 { Wait::StageEnd(after) } else { Wait::Timeout(after) };
        let is_unlocked_before = self.random.below(2) == 0;
        if is_unlocked_before {
            self.unlock();
        }
        self.operations.push(Operation::Wait(wait));
        match self.random.below(4) {
            0 | 1 if is_unlocked_before => self.reload(),
            0 | 1 => self.heartbeat(),
            2 => self.preload(),
            _ => {}
        }
    }

    fn config_read(&mut self) {
        let (offset, width) = match self.random.below(2) {
            0 => self.within_a_dword(0x100),
            _ => self.random.of(&[
                (0x60, 1),
                (0x60, 4),
                (0x61, 1),
                (0x64, 4),
                (0x65, 2),
                (0x68, 1),
                (0x68, 4),
                (0x04, 4),
                (0x10, 4),
            ]),
        };
        self.operations.push(Operation::Read(config(offset, width)));
    }

    fn undefined_config_write(&mut self) {
        let (offset, width) = loop {
            let (offset, width) = self.within_a_dword(0x100);
            let is_defined = [0x60, 0x68].contains(&(offset & !3));
            if offset >= 0x40 && !is_defined {
                break (offset, width);
            }
        };
        self.write_and_read_config(offset, width);
    }

    fn write_and_read_config(&mut self, offset: u16, width: usize) {
        let value = self.value(width);
        self.write(config(offset, width), value);
        let (offset, width) = self.random.of(&[(offset, width), (offset, 1), (offset & !3, 4), (offset & !1, 2)]);
        self.operations.push(Operation::Read(config(offset, width)));
    }

    /// A write to the header, but not to the command register or BAR0.
    fn header_write(&mut self) {
        let (offset, width) = loop {
            let (offset, width) = self.within_a_dword(0x40);
            if ![0x04, 0x10].contains(&(offset & !3)) {
                break (offset, width);
            }
        };
        self.write_and_read_config(offset, width);
    }

    /// Moves BAR0, or makes it disappear.
    fn move_bar(&mut self) {
        match self.random.below(8) {
            0..=2 => {
                let address = self.random.of(&[WINDOWS[1], WINDOWS[2], WINDOWS[2] | 0xF]);
                self.write(config(0x10, 4), address);
            }
            3 => self.write(config(0x10, 4), u32::MAX),
            4 => self.write(config(0x10, 4), 0),
            5 => {
                let (offset, value) = self.random.of(&[(0x10, 0x20), (0x11, 0x20)]);
                self.write(config(offset, 1), value);
            }
            _ => {
                let (width, value) = (self.random.of(&[1, 2, 4]), self.random.of(&[0x00, 0x04, 0x05]));
                self.write(config(0x04, width), value);
            }
        }
    }

    fn map_bar(&mut self) {
        self.write(config(0x10, 4), WINDOWS[0]);
        let (width, value) = (self.random.of(&[1, 2, 4]), self.random.of(&[0x0002, 0x0006, 0x0402, 0xFFFF]));
        self.write(config(0x04, width), value & 0xFFFF >> (16 - 8 * width.min(2)));
    }

    fn reset(&mut self) {
        self.operations.push(Operation::Reset);
    }

    /// An offset below `end`, and a width.
    fn within_a_dword(&mut self, end: u32) -> (u16, usize) {
        let (lane, width) = self.random.of(&[(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2), (1, 2), (0, 4), (0, 4)]);
        (self.random.below(end / 4) as u16 * 4 + lane, width)
    }

    fn value(&mut self, width: usize) -> u32 {
        let value = match self.random.below(4) {
            0 => self.random.of(&[0, 1, 0x80, 0x86, 0x0100, 0x0300, u32::MAX]),
            _ => self.random.next() as u32,
        };
        value & crate::operation::ones(width)
    }
}

#[test]
fn equal_seeds_have_equal_sequences() {
    assert_eq!(sequence(7), sequence(7));
    assert_ne!(sequence(7), sequence(8));
}

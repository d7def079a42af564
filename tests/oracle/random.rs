//! Random accesses, of those that QEMU's device supports completely.

use crate::pair::{Bar, Config, Pair};

/// xorshift64 with a fixed seed: every run has the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }
}

#[test]
fn random_accesses_and_waits_have_the_same_results() {
    let Some(mut pair) = Pair::start("random_accesses_and_waits_have_the_same_results") else { return };
    let mut random = Random(0x6300_E5B0_25AB_8086);
    let mut timeouts = 0;
    for _ in 0..6000 {
        match random.next() % 16 {
            0..=1 => {
                let width = random.of(&[1, 2, 4]);
                pair.write(Bar, 0x0C, width, 0x80);
                pair.write(Bar, 0x0C, width, 0x86);
            }
            2 => pair.write(Bar, 0x0C, random.of(&[1, 2, 4]), random.of(&[0x80, 0x86])),
            3..=5 => {
                // Not zero: in free running mode such a stage lasts one unit in the model.
                let preload = random.of(&[1, 2, 100, 512, 513, 70_000, 0xF_FFFF, 0x10_0001]);
                pair.unlock();
                pair.write(Bar, random.of(&[0x00, 0x04]), 4, preload);
            }
            6..=7 => pair.reload(),
            8 => {
                pair.unlock();
                pair.write(Bar, 0x0C, 2, random.of(&[0x0200, 0x1000, 0x0300, 0x1100, 0x0000, 0xFEFF, 0xFFFF]));
            }
            9 => pair.write(Bar, 0x08, 4, random.of(&[0, 1, 0x80, 0x86])),
            10 => pair.write(Config, 0x60, 2, random.of(&[0x0000, 0x0003, 0x0004, 0x0007, 0x0002, 0xFF01])),
            11..=12 => pair.write(Config, 0x68, 1, random.of(&[0x00, 0x02, 0x02, 0x02, 0x06, 0x06, 0x04, 0xFA, 0x03])),
            13..=14 => {
                let nanos = random.of(&[1, 960, 983_040, 400_000_000, 70_000_000_000, 2_000_000_000_000]);
                if pair.wait_alike(nanos).is_some() {
                    timeouts += 1;
                    pair.reset();
                }
            }
            _ if random.next() % 8 == 0 => pair.reset(),
            _ => {}
        }
        pair.read_same(Config, 0x60, 2);
        pair.read_same(Config, 0x68, 1);
        pair.read_same(Bar, 0x0C, 2);
    }
    assert!(timeouts > 50, "only {timeouts} timeouts");
}

//! Random numbers that are the same in every run.

/// xorshift64: equal seeds have equal numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed. Close seeds have different numbers.
    pub fn new(seed: u64) -> Self {
        // The finalizer of SplitMix64.
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)] {
            mixed = (mixed ^ mixed >> shift).wrapping_mul(factor);
        }
        Self((mixed ^ mixed >> 31).max(1))
    }

    /// The next number; never 0.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and callers need no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    /// One of `choices`.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

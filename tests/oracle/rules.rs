//! The intended differences between QEMU's device and the model: a table of rules.
//!
//! A rule covers one access in one state, and has the answers of both: "there" is QEMU, "here" the model. The comparison
//! expects exactly these. After a write that only the model supports, it sends QEMU the same in accesses that QEMU
//! supports, so that the states agree again; the two rules whose difference lasts say until when.

use std::fmt::Write;

/// The rules, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    ConfigurationWidths,
    LockWidths,
    StatusWidths,
    ReloadWidths,
    PreloadWidths,
    UnlockUsedByBytes,
    PreloadReads,
    InterruptStatus,
    InterruptPin,
    LiveCounter,
    LatencyTimer,
    UndefinedConfiguration,
    StaysArmed,
    TimeoutWithoutOutput,
    ZeroInFreeRunning,
    StageOfZero,
    Sizing,
}

/// One row of the table.
pub struct Row {
    pub rule: Rule,
    pub name: &'static str,
    pub state: &'static str,
    pub access: &'static str,
    pub there: &'static str,
    pub here: &'static str,
    /// What makes the states agree again. Empty for reads, which change nothing.
    pub until: &'static str,
}

pub const TABLE: [Row; 17] = [
    Row {
        rule: Rule::ConfigurationWidths,
        name: "configuration at other widths",
        state: "any",
        access: "60h to 61h, not as 16 bits at 60h",
        there: "storage of its own, without effect",
        here: "these bytes of WDT configuration",
        until: "QEMU gets the merged value as 16 bits",
    },
    Row {
        rule: Rule::LockWidths,
        name: "lock at other widths",
        state: "any",
        access: "68h with 2 or 4 bytes",
        there: "storage of its own, without effect",
        here: "WDT lock",
        until: "QEMU gets the low byte as 8 bits",
    },
    Row {
        rule: Rule::StatusWidths,
        name: "timeout status at other widths",
        state: "WDT_TIMEOUT is set",
        access: "read of 0Ch to 0Fh, not as 16 bits at 0Ch",
        there: "0",
        here: "these bytes of 1200h",
        until: "",
    },
    Row {
        rule: Rule::ReloadWidths,
        name: "reload at other widths",
        state: "unlocked",
        access: "write of WDT_RELOAD or WDT_TIMEOUT, not as 16 bits at 0Ch",
        there: "no effect",
        here: "restarts stage 1, clears WDT_TIMEOUT",
        until: "QEMU gets the bits as 16 bits, unlocked again",
    },
    Row {
        rule: Rule::PreloadWidths,
        name: "preload at other widths",
        state: "unlocked",
        access: "write of 00h to 07h with 1 or 2 bytes",
        there: "no effect",
        here: "replaces these bytes of the preload",
        until: "QEMU gets the merged preload as 32 bits, unlocked again",
    },
    Row {
        rule: Rule::UnlockUsedByBytes,
        name: "bytes use the unlock up",
        state: "unlocked",
        access: "write of single bytes to BAR0, not a key",
        there: "stays unlocked",
        here: "locked",
        until: "QEMU gets 16 bits at 08h, which only lock",
    },
    Row {
        rule: Rule::PreloadReads,
        name: "preloads read back",
        state: "any",
        access: "read of 00h to 07h",
        there: "0",
        here: "the preloads",
        until: "",
    },
    Row {
        rule: Rule::InterruptStatus,
        name: "interrupt status",
        state: "after the end of stage 1",
        access: "read of 08h in BAR0, or of the status register",
        there: "0",
        here: "WDT_INT_ACT; bit 3 if the interrupt type is IRQ",
        until: "",
    },
    Row {
        rule: Rule::InterruptPin,
        name: "interrupt pin",
        state: "any",
        access: "read of 3Dh",
        there: "0",
        here: "1, INTA",
        until: "",
    },
    Row {
        rule: Rule::LiveCounter,
        name: "live counter",
        state: "any",
        access: "64h to 67h",
        there: "storage",
        here: "units until the end of the stage; 0 while stopped; ignores writes",
        until: "",
    },
    Row {
        rule: Rule::LatencyTimer,
        name: "latency timer",
        state: "written",
        access: "read of 0Dh",
        there: "0",
        here: "as written",
        until: "",
    },
    Row {
        rule: Rule::UndefinedConfiguration,
        name: "undefined configuration space",
        state: "written",
        access: "40h to FFh, except for 60h, 61h and 64h to 68h",
        there: "storage, which a reset keeps",
        here: "0",
        until: "",
    },
    Row {
        rule: Rule::StaysArmed,
        name: "stays armed after a timeout",
        state: "a timeout with the output enabled",
        access: "(time)",
        there: "60h and 68h are 0, and the counter is stopped",
        here: "all as the guest left it; the counter is stopped, or restarts when free running",
        until: "QEMU gets the registers again, and a stopped counter, at once",
    },
    Row {
        rule: Rule::TimeoutWithoutOutput,
        name: "timeout without output",
        state: "a timeout with the output disabled",
        access: "read of 16 bits at 0Ch",
        there: "as before the timeout",
        here: "WDT_TIMEOUT",
        until: "the guest clears the bit, or a timeout with the output enabled sets it there",
    },
    Row {
        rule: Rule::ZeroInFreeRunning,
        name: "preload 0 in free running mode",
        state: "free running, a preload is 0",
        access: "(time)",
        there: "the stage ends at once",
        here: "the stage lasts one unit",
        until: "QEMU has 1 in this preload while the device is free running",
    },
    Row {
        rule: Rule::StageOfZero,
        name: "a stage of length 0",
        state: "a write starts a stage with preload 0",
        access: "(time)",
        there: "ends when QEMU runs its timers next",
        here: "ends at once",
        until: "1 ns passes on both",
    },
    Row {
        rule: Rule::Sizing,
        name: "sizing with memory enabled",
        state: "all ones in BAR0, memory enabled, mapped before",
        access: "any, where BAR0 was before",
        there: "no device",
        here: "the device",
        until: "QEMU gets the address, the access, and all ones again",
    },
];

/// The rules that a comparison uses, and how often each was applied.
#[derive(Clone, Debug)]
pub struct Rules {
    removed: Option<Rule>,
    applied: [u64; TABLE.len()],
}

impl Rules {
    pub fn all() -> Self {
        Self { removed: None, applied: [0; TABLE.len()] }
    }

    /// All but one, to show that it is needed.
    pub fn without(rule: Rule) -> Self {
        Self { removed: Some(rule), ..Self::all() }
    }

    /// The same rules, not yet applied.
    pub fn cleared(&self) -> Self {
        Self { applied: [0; TABLE.len()], ..*self }
    }

    /// Counts an application. Returns whether the rule is in use.
    pub fn apply(&mut self, rule: Rule) -> bool {
        let in_use = self.removed != Some(rule);
        self.applied[rule as usize] += u64::from(in_use);
        in_use
    }

    pub fn applied(&self, rule: Rule) -> u64 {
        self.applied[rule as usize]
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.applied.iter_mut().zip(other.applied) {
            *sum += count;
        }
    }

    /// The table, with the number of applications in front.
    pub fn report(&self) -> String {
        TABLE.iter().fold(String::new(), |mut text, row| {
            let Row { rule, name, state, access, there, here, until } = row;
            let then = if until.is_empty() { String::new() } else { format!("; then: {until}") };
            let applied = self.applied(*rule);
            writeln!(text, "{applied:>9}  {name} | {state} | {access} | QEMU: {there} | here: {here}{then}").unwrap();
            text
        })
    }
}

#[test]
fn the_table_has_every_rule_in_order() {
    for (index, row) in TABLE.iter().enumerate() {
        assert_eq!(row.rule as usize, index, "{}", row.name);
    }
    assert_eq!(TABLE.len(), Rule::Sizing as usize + 1);
}

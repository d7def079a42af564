//! The steps of the built-in guests. Their accesses are those of the Linux drivers (`i6300esb.c`, `wdat_wdt.c`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vm_watchdog::DeviceModel;

/// The built-in guests. The first one is for users; the others are for tests on a real vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltInGuest {
    /// Feeds the watchdog three times and stops. After the reset it reads that the watchdog caused it.
    #[default]
    Expiring,
    /// Feeds the watchdog for nine seconds, stops it and powers off.
    Feeding,
    /// Arms the watchdog, and then reads the clock all the time.
    Spinning,
    /// Arms the watchdog and halts with interrupts off.
    Halting,
    /// Enables MSI, and feeds the watchdog only when it interrupts.
    Interrupted,
    /// As `Expiring`, with the watchdog of the ACPI table.
    Wdat,
}

/// One thing that the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Shows a remark in the timeline.
    Say(&'static str),
    /// Writes.
    Write(Place, Data),
    /// Reads, and gives up unless the bits of the mask are as expected.
    Expect(Place, Mask, Data),
    /// Reads, and if any bit of the mask is set says so and powers the machine off.
    EndIf(Place, Mask, &'static str),
    /// Waits so many milliseconds of the VM's clock.
    Wait(u32),
    /// Takes interrupts from here on.
    TakeInterrupts,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An I/O port.
    Port(u16),
    /// An offset in the BAR0 of the first i6300esb.
    Bar(u16),
    /// An address of the processor's interrupt controller.
    Apic(u32),
}

/// One to four bytes, little-endian, and so the width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// 8 bits.
    Byte(u8),
    /// 16 bits.
    Word(u16),
    /// 32 bits.
    Long(u32),
}

/// The bits that matter, as wide as the access.
pub type Mask = Data;

impl Data {
    /// The bytes as they lie in memory, and how many of them count.
    pub fn to_bytes(self) -> ([u8; 4], usize) {
        (self.value().to_le_bytes(), self.width())
    }

    /// The value.
    pub fn value(self) -> u32 {
        match self {
            Self::Byte(value) => value.into(),
            Self::Word(value) => value.into(),
            Self::Long(value) => value,
        }
    }

    /// The width in bytes.
    pub fn width(self) -> usize {
        match self {
            Self::Byte(_) => 1,
            Self::Word(_) => 2,
            Self::Long(_) => 4,
        }
    }
}

use Data::{Byte, Long, Word};
use Place::{Apic, Bar, Port};
use Step::{EndIf, Expect, Say, TakeInterrupts, Wait, Write};

const CONFIG_DATA: Place = Port(0xCFC);
const PRELOAD_1: Place = Bar(0x00);
const PRELOAD_2: Place = Bar(0x04);
const GINTSR: Place = Bar(0x08);
const RELOAD: Place = Bar(0x0C);

/// Makes the configuration data port mean this register of the device at 00:03.0.
const fn select(register: u32) -> Step {
    Write(Port(0xCF8), Long(0x8000_1800 | register))
}

const UNLOCK_FIRST: Step = Write(RELOAD, Word(0x80));
const UNLOCK_SECOND: Step = Write(RELOAD, Word(0x86));
const HEARTBEAT: Step = Write(RELOAD, Word(1 << 8));
const WDT_TIMEOUT: Data = Word(1 << 9);
/// How a guest that does not read the ACPI tables powers this machine off.
pub const POWER_OFF: (u16, u16) = (0x604, 1 << 13);

/// Finds the device and arms it.
const ARM: &[Step] = &[
    // Find the device, and let it decode the memory that firmware has assigned.
    select(0x00),
    Expect(CONFIG_DATA, Long(u32::MAX), Long(0x25AB_8086)),
    select(0x04),
    Write(CONFIG_DATA, Word(0x0002)),
    // Did it cause the last reset?
    EndIf(RELOAD, WDT_TIMEOUT, "the watchdog caused the last reset; powering off"),
    Say("the watchdog did not cause the last reset"),
    // Output enabled, 1 kHz prescaler, no interrupt; stopped and unlocked.
    select(0x60),
    Write(CONFIG_DATA, Word(0x0003)),
    select(0x68),
    Expect(CONFIG_DATA, Byte(0x03), Byte(0x00)),
];

/// Feeds it, whether it runs or not.
const FEED: &[Step] = &[UNLOCK_FIRST, UNLOCK_SECOND, HEARTBEAT];

/// The registers of a wdat, whose ports this guest does not look up in the table.
const WDAT_RELOAD: Place = Port(0x620);
const WDAT_COUNT: Place = Port(0x624);
const WDAT_CONTROL: Place = Port(0x628);
const WDAT_STATUS: Place = Port(0x62C);

/// All that it does with a wdat, which it starts with a countdown of two seconds.
const EXPIRE_WDAT: &[Step] = &[
    EndIf(WDAT_STATUS, Long(1), "the watchdog caused the last reset; powering off"),
    Say("the watchdog did not cause the last reset"),
    Expect(WDAT_CONTROL, Long(1), Long(0)),
    Write(WDAT_RELOAD, Long(2000)),
    Write(WDAT_CONTROL, Long(1)),
    Say("armed the watchdog for 2 s; feeding it every 300 ms"),
    Wait(300),
    Write(WDAT_COUNT, Long(1)),
    Wait(300),
    Write(WDAT_COUNT, Long(1)),
    Say("no more heartbeats"),
    Wait(2500),
    // The guest reaches this only if the action of the timeout leaves it running.
    Expect(WDAT_STATUS, Long(1), Long(1)),
    Say("the watchdog has expired and the guest still runs; stopping it and powering off"),
    Write(WDAT_CONTROL, Long(0)),
    Write(Port(POWER_OFF.0), Word(POWER_OFF.1)),
];

/// The interrupt vector of the watchdog.
pub const VECTOR: u8 = 0x41;
/// Registers of the local APIC (Intel SDM volume 3, section 10.4.1).
const APIC: u32 = 0xFEE0_0000;
const SPURIOUS_INTERRUPT_VECTOR: Place = Apic(APIC + 0xF0);
const END_OF_INTERRUPT: Place = Apic(APIC + 0xB0);

/// Has the watchdog interrupt at the end of stage 1, by a message to this processor.
const ENABLE_MSI: &[Step] = &[
    // Bus master and memory.
    select(0x04),
    Write(CONFIG_DATA, Word(0x0006)),
    select(0x60),
    Write(CONFIG_DATA, Word(0x0000)),
    // The capability, disabled; address and data; enabled.
    select(0x40),
    Expect(CONFIG_DATA, Long(u32::MAX), Long(0x0080_0005)),
    select(0x44),
    Write(CONFIG_DATA, Long(APIC)),
    select(0x48),
    Write(CONFIG_DATA, Long(0)),
    select(0x4C),
    Write(CONFIG_DATA, Word(VECTOR as u16)),
    select(0x40),
    Write(CONFIG_DATA, Long(0x0001_0000)),
    // Enable the APIC.
    Write(SPURIOUS_INTERRUPT_VECTOR, Long(0x1FF)),
    TakeInterrupts,
    select(0x68),
];

/// What the interrupt handler does: it clears the interrupt, feeds the watchdog and ends the interrupt.
pub const HANDLE_INTERRUPT: [Step; 5] =
    [Write(GINTSR, Long(1)), UNLOCK_FIRST, UNLOCK_SECOND, HEARTBEAT, Write(END_OF_INTERRUPT, Long(0))];

/// Stops it and powers the machine off.
const STOP: &[Step] = &[
    select(0x68),
    Write(CONFIG_DATA, Byte(0x00)),
    Expect(CONFIG_DATA, Byte(0x02), Byte(0x00)),
    Write(Port(POWER_OFF.0), Word(POWER_OFF.1)),
];

impl BuiltInGuest {
    /// Every guest.
    pub const ALL: [Self; 6] =
        [Self::Expiring, Self::Feeding, Self::Spinning, Self::Halting, Self::Interrupted, Self::Wdat];

    /// Its name on the command line and in snapshots.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expiring => "expiring",
            Self::Feeding => "feeding",
            Self::Spinning => "spinning",
            Self::Halting => "halting",
            Self::Interrupted => "interrupted",
            Self::Wdat => "wdat",
        }
    }

    /// The model of the watchdog that it drives.
    pub fn drives(self) -> DeviceModel {
        if self == Self::Wdat { DeviceModel::Wdat } else { DeviceModel::I6300esb }
    }

    /// What the guest does.
    pub fn steps(self) -> Vec<Step> {
        let mut steps = if self.drives() == DeviceModel::Wdat { EXPIRE_WDAT } else { ARM }.to_vec();
        match self {
            Self::Wdat => {}
            Self::Expiring => {
                // Two stages of 512 units of 2^15 * 30 ns: 1.007 s, which Linux calls one second.
                arm(&mut steps, 512, "armed the watchdog for 1.007 s; feeding it every 300 ms");
                feed(&mut steps, 3);
                steps.extend([Say("no more heartbeats"), Wait(1500)]);
                // The guest reaches this only if the action of the timeout leaves it running.
                steps.push(Expect(RELOAD, WDT_TIMEOUT, WDT_TIMEOUT));
                steps.push(Say("the watchdog has expired and the guest still runs; stopping it and powering off"));
                steps.extend(STOP);
            }
            Self::Feeding => {
                arm(&mut steps, 1024, "armed the watchdog for 2.013 s; feeding it for 9 s");
                feed(&mut steps, 30);
                steps.push(Say("stopping the watchdog and powering off"));
                steps.extend(STOP);
            }
            Self::Spinning => {
                arm(&mut steps, 1024, "armed the watchdog for 2.013 s; spinning");
                steps.push(Wait(u32::MAX));
            }
            Self::Halting => arm(&mut steps, 1024, "armed the watchdog for 2.013 s; halting"),
            Self::Interrupted => {
                steps.extend(ENABLE_MSI);
                arm(&mut steps, 1024, "armed the watchdog for 2.013 s; feeding it when it interrupts");
                // Three times the end of stage 1, after 1.007 s each.
                steps.extend([Wait(3500), Say("stopping the watchdog and powering off")]);
                steps.extend(STOP);
            }
        }
        steps
    }
}

impl FromStr for BuiltInGuest {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let guest = Self::ALL.into_iter().find(|guest| guest.as_str() == name);
        guest.ok_or_else(|| format!("accepted are {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// Starts two stages of `stage` units each.
fn arm(steps: &mut Vec<Step>, stage: u32, remark: &'static str) {
    for preload in [PRELOAD_1, PRELOAD_2] {
        steps.extend([UNLOCK_FIRST, UNLOCK_SECOND, Write(preload, Long(stage))]);
    }
    steps.extend(FEED);
    // WDT_ENABLE, in the lock register, which is selected.
    steps.extend([Write(CONFIG_DATA, Byte(0x02)), Say(remark)]);
}

/// Feeds it every 300 ms, so many times.
fn feed(steps: &mut Vec<Step>, times: usize) {
    for _ in 0..times {
        steps.push(Wait(300));
        steps.extend(FEED);
    }
}

/// What the guest says, by the number that it writes to the remark port: the number of the step, or after the last one
/// those of an NMI and of an interrupt.
pub fn remarks(steps: &[Step]) -> Vec<Option<&'static str>> {
    let remark = |step: &Step| match *step {
        Say(remark) | EndIf(_, _, remark) => Some(remark),
        _ => None,
    };
    steps.iter().map(remark).chain([Some("got an NMI"), Some("got an interrupt; feeding the watchdog")]).collect()
}

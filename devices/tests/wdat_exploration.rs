//! Every state that a guest can bring the watchdog of the ACPI table into, in steps of half a second, beside a description
//! of it that has nothing in common with its code: the same registers, deadlines and expiries in all of them.

use std::collections::{BTreeSet, VecDeque};

use vm_watchdog_devices::wdat::Wdat;
use vm_watchdog_devices::{Model, VmInstant};

/// All durations are multiples of this many milliseconds.
const TICK: u32 = 500;
/// An expiry that is never polled grows older for ever; the exploration polls it at this age.
const OLDEST: u32 = 3 * TICK;

/// What the guest and the VMM can know of it. Durations are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expected {
    written: u32,
    running: bool,
    left: u32,
    status: bool,
    unpolled_for: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reload(u32),
    Heartbeat,
    Run,
    Stop,
    ClearStatus,
    Wait,
    Poll,
    Reset,
    Restore,
}

const STEPS: [Step; 11] = [
    // Below the minimum of 1 s, at it, and above it.
    Step::Reload(TICK),
    Step::Reload(2 * TICK),
    Step::Reload(3 * TICK),
    Step::Heartbeat,
    Step::Run,
    Step::Stop,
    Step::ClearStatus,
    Step::Wait,
    Step::Poll,
    Step::Reset,
    Step::Restore,
];

impl Expected {
    const POWER_ON: Self = Self { written: 60_000, running: false, left: 0, status: false, unpolled_for: None };

    fn countdown(&self) -> u32 {
        self.written.max(1_000)
    }

    /// The state after the step, and the age of the timeout that it reports.
    fn after(mut self, step: Step) -> (Self, Option<u32>) {
        let mut reported = None;
        match step {
            Step::Reload(milliseconds) => self.written = milliseconds,
            Step::Heartbeat if self.running => self.left = self.countdown(),
            Step::Run if !self.running => (self.running, self.left) = (true, self.countdown()),
            Step::Heartbeat | Step::Run | Step::Restore => {}
            Step::Stop => (self.running, self.left) = (false, 0),
            Step::ClearStatus => self.status = false,
            Step::Wait => {
                self.unpolled_for = self.unpolled_for.map(|age| age + TICK);
                if self.left == TICK {
                    self.status = true;
                    self.unpolled_for = self.unpolled_for.or(Some(0));
                }
                self.left = self.left.saturating_sub(TICK);
            }
            Step::Poll => reported = self.unpolled_for.take(),
            Step::Reset => self = Self { status: self.status, ..Self::POWER_ON },
        }
        (self, reported)
    }

    fn registers(&self) -> [u32; 4] {
        [self.countdown(), self.left, self.running.into(), self.status.into()]
    }
}

fn later(now: VmInstant, milliseconds: u32) -> VmInstant {
    VmInstant::from_nanos(now.as_nanos() + u64::from(milliseconds) * 1_000_000)
}

fn earlier(now: VmInstant, milliseconds: u32) -> VmInstant {
    VmInstant::from_nanos(now.as_nanos() - u64::from(milliseconds) * 1_000_000)
}

/// Takes the step on the device. Returns the timeout that it reports.
fn take(device: &mut Wdat, step: Step, now: &mut VmInstant) -> Option<VmInstant> {
    let mut write = |register: u64, value: u32| {
        let _ = device.write(register, &value.to_le_bytes(), *now);
    };
    match step {
        Step::Reload(milliseconds) => write(0x0, milliseconds),
        Step::Heartbeat => write(0x4, 1),
        Step::Run => write(0x8, 1),
        Step::Stop => write(0x8, 0),
        Step::ClearStatus => write(0xC, 1),
        Step::Wait => {
            *now = later(*now, TICK);
            // The time passes with a read.
            device.read(0x0, &mut [0; 16], *now);
        }
        Step::Poll => return device.poll(*now).timeout,
        Step::Reset => device.reset(),
        Step::Restore => {
            let state = device.save(*now);
            // On a clock that shows another time.
            *now = VmInstant::from_nanos(7_777_777_777_777);
            *device = Wdat::default().restored(&state, *now).unwrap();
            assert_eq!(device.save(*now), state);
        }
    }
    None
}

#[test]
fn all_states_that_a_guest_can_reach_are_as_described() {
    let mut known = BTreeSet::from([Expected::POWER_ON]);
    let start = VmInstant::from_nanos(1_000_000_000_000);
    let mut open = VecDeque::from([(Expected::POWER_ON, Wdat::default(), start)]);
    let mut steps = 0;
    while let Some((expected, device, now)) = open.pop_front() {
        for step in STEPS {
            if matches!(step, Step::Wait) && expected.unpolled_for == Some(OLDEST) {
                continue;
            }
            steps += 1;
            let (mut device, mut now) = (device.clone(), now);
            let reported = take(&mut device, step, &mut now);
            let (after, age) = expected.after(step);
            let context = format!("{expected:?}, {step:?}");
            assert_eq!(reported, age.map(|age| earlier(now, age)), "{context}");

            let mut bytes = [0; 16];
            device.read(0x0, &mut bytes, now);
            let registers = [0, 4, 8, 12].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
            assert_eq!(registers, after.registers(), "{context}");
            assert_eq!(
                (device.is_armed(), device.last_reset().by_watchdog),
                (after.running, after.status),
                "{context}"
            );
            let timeout_at = (after.left > 0).then(|| later(now, after.left));
            assert_eq!(device.timeout_at(), timeout_at, "{context}");
            let unpolled = after.unpolled_for.map(|age| earlier(now, age));
            assert_eq!(device.poll_at(), unpolled.or(timeout_at), "{context}");
            if known.insert(after) {
                open.push_back((after, device, now));
            }
        }
    }
    // There are no others: each step from each of them leads to one of them.
    assert_eq!((known.len(), steps), (1_186, 12_980));
}

//! A hostile guest and a VMM that polls at arbitrary times, on the model of the Generic Watchdog of Arm's BSA.
//!
//! The device must not panic, expire early or lose an expiry, whatever the frequency of the counter and its value. A read
//! changes nothing, and so does setting the counter with the time that is left.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/sbsa
//! cargo +nightly fuzz run sbsa fuzz/corpus/sbsa fuzz/seeds/sbsa -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use std::num::NonZeroU32;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::sbsa::{Frame, Sbsa, SbsaConfig, SbsaStateV1};
use vm_watchdog_devices::{Access, LastReset, Model, VmInstant};
use vm_watchdog_fuzz::Machine;

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitSeconds { seconds: u16 },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SetLastReset { by_watchdog: bool },
    SetCounter { value: u64 },
    SaveAndRestore,
    RestoreAnything { state: State },
    Read { refresh: bool, offset: u16, length: u8 },
    Write { refresh: bool, offset: u16, data: Vec<u8> },
    Offset { ticks: u64 },
    Compare { after_counter: i64 },
    Control { value: u8 },
    Refresh,
}

#[derive(Arbitrary, Debug)]
struct State {
    enabled: bool,
    ws0: bool,
    ws1: bool,
    wor: u64,
    wcv: u64,
    counter: u64,
    counter_fraction: u32,
    pretimeout_age_ns: Option<u64>,
    timeout_age_ns: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct Run {
    frequency: NonZeroU32,
    start: u64,
    steps: Vec<Step>,
}

fuzz_target!(|run: Run| {
    let mut machine = Machine::new(Sbsa::new(SbsaConfig::new(run.frequency)), run.start);
    for step in run.steps {
        take(&mut machine, step);
        let mut advanced = machine.device.clone();
        advanced.save(machine.now());
        let timeout = advanced.timeout_at();
        assert!(timeout.is_none_or(|timeout| timeout > machine.now() || timeout == VmInstant::MAX), "it has passed");
    }
    machine.poll_exact();
});

fn take(machine: &mut Machine<Sbsa>, step: Step) {
    match step {
        Step::Wait { nanos } => machine.wait(nanos),
        Step::WaitSeconds { seconds } => machine.wait_seconds(seconds),
        Step::WaitForDeadline { further } => machine.wait_for_deadline(further),
        Step::Poll => machine.poll_exact(),
        Step::Reset => machine.reset(),
        Step::SetLastReset { by_watchdog } => machine.device.set_last_reset(LastReset::new(by_watchdog)),
        Step::SetCounter { value } => set_counter(machine, value),
        Step::SaveAndRestore => machine.save_and_restore(),
        Step::RestoreAnything { state } => restore_anything(machine, state),
        Step::Read { refresh, offset, length } => {
            machine.read(length, |device, data, now| device.read(frame(refresh), offset.into(), data, now));
        }
        Step::Write { refresh, offset, data } => {
            write(machine, frame(refresh), offset.into(), &data);
        }
        Step::Offset { ticks } => {
            let was_armed = machine.device.is_armed();
            let access = write(machine, Frame::Control, 0x008, &ticks.to_le_bytes());
            assert_eq!(access == Access::Heartbeat, was_armed);
            let state = machine.save();
            assert_eq!(state.wor, ticks & 0xFFFF_FFFF_FFFF);
            assert_eq!(state.wcv, state.counter.saturating_add(state.wor));
            assert!(!state.ws0 && !state.ws1);
        }
        Step::Compare { after_counter } => {
            let compare = machine.save().counter.saturating_add_signed(after_counter);
            write(machine, Frame::Control, 0x010, &compare.to_le_bytes());
        }
        Step::Control { value } => {
            write(machine, Frame::Control, 0x000, &[value]);
            assert_eq!(machine.device.is_armed(), value & 1 == 1);
        }
        Step::Refresh => {
            let access = write(machine, Frame::Refresh, 0x000, &[0; 4]);
            let expected = if machine.device.is_armed() { Access::Heartbeat } else { Access::HeartbeatWhileDisarmed };
            assert_eq!(access, expected);
            assert!(!machine.device.interrupt_level());
        }
    }
}

fn frame(refresh: bool) -> Frame {
    if refresh { Frame::Refresh } else { Frame::Control }
}

fn write(machine: &mut Machine<Sbsa>, frame: Frame, offset: u64, data: &[u8]) -> Access {
    machine.write(|device, now| device.write(frame, offset, data, now))
}

fn set_counter(machine: &mut Machine<Sbsa>, value: u64) {
    let before = machine.save();
    let times = |device: &Sbsa| (device.poll_at(), device.timeout_at());
    let times_before = times(&machine.device);
    let now = machine.now();
    machine.device.set_counter(value, now);
    assert_eq!(machine.save().counter, value);
    // Far from the end of the counter, where there is no time left to keep.
    if value < u64::MAX / 4 && before.wcv < u64::MAX / 4 {
        assert_eq!(times(&machine.device), times_before);
    }
}

fn restore_anything(machine: &mut Machine<Sbsa>, state: State) {
    let State { enabled, ws0, ws1, wor, wcv, counter, counter_fraction, pretimeout_age_ns, timeout_age_ns } = state;
    let state =
        SbsaStateV1 { enabled, ws0, ws1, wor, wcv, counter, counter_fraction, pretimeout_age_ns, timeout_age_ns };
    let refused = ["ws0", "ws1", "wor", "wcv", "counter_fraction"];
    machine.restore_anything(&state, &refused, &[pretimeout_age_ns, timeout_age_ns]);
}

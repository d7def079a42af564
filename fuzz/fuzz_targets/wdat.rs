//! A hostile guest and a VMM that polls at arbitrary times, on the model of the watchdog behind an ACPI table.
//!
//! The device must not panic, expire early or lose an expiry. A countdown stays between the limits of the table, and a
//! read changes nothing.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/wdat
//! cargo +nightly fuzz run wdat fuzz/corpus/wdat fuzz/seeds/wdat -- -max_total_time=30 -timeout=5
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_devices::wdat::{TimerPeriod, Wdat, WdatConfig, WdatStateV1};
use vm_watchdog_devices::{Access, LastReset, Model};
use vm_watchdog_fuzz::Machine;

#[derive(Arbitrary, Debug)]
enum Step {
    Wait { nanos: u64 },
    WaitSeconds { seconds: u16 },
    WaitForDeadline { further: i8 },
    Poll,
    Reset,
    SetLastReset { by_watchdog: bool },
    SaveAndRestore,
    RestoreAnything { state: State },
    Read { offset: u64, length: u8 },
    Write { offset: u64, data: Vec<u8> },
    Register { register: Register, value: u32 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Register {
    Reload,
    Count,
    Control,
    Status,
}

#[derive(Arbitrary, Debug)]
struct State {
    reload: u32,
    running: bool,
    remaining_ns: Option<u64>,
    timed_out: bool,
    timeout_age_ns: Option<u64>,
}

#[derive(Arbitrary, Debug)]
struct Run {
    seconds: bool,
    start: u64,
    steps: Vec<Step>,
}

fuzz_target!(|run: Run| {
    let period = if run.seconds { TimerPeriod::OneSecond } else { TimerPeriod::OneMillisecond };
    let mut machine = Machine::new(Wdat::new(WdatConfig::default().with_period(period)), run.start);
    for step in run.steps {
        take(&mut machine, step);
    }
    machine.poll_exact();
});

fn take(machine: &mut Machine<Wdat>, step: Step) {
    match step {
        Step::Wait { nanos } => machine.wait(nanos),
        Step::WaitSeconds { seconds } => machine.wait_seconds(seconds),
        Step::WaitForDeadline { further } => machine.wait_for_deadline(further),
        Step::Poll => machine.poll_exact(),
        Step::Reset => machine.reset(),
        Step::SetLastReset { by_watchdog } => machine.device.set_last_reset(LastReset::new(by_watchdog)),
        Step::SaveAndRestore => machine.save_and_restore(),
        Step::RestoreAnything { state } => {
            let State { reload, running, remaining_ns, timed_out, timeout_age_ns } = state;
            let state = WdatStateV1 { reload, running, remaining_ns, timed_out, timeout_age_ns };
            machine.restore_anything(&state, &["remaining_ns", "running"], &[timeout_age_ns]);
        }
        Step::Read { offset, length } => machine.read(length, |device, data, now| device.read(offset, data, now)),
        Step::Write { offset, data } => {
            machine.write(|device, now| device.write(offset, &data, now));
            check_limits(machine);
        }
        Step::Register { register, value } => {
            let offset = 4 * register as u64;
            let access = machine.write(|device, now| device.write(offset, &value.to_le_bytes(), now));
            match register {
                Register::Count if machine.device.is_armed() => assert_eq!(access, Access::Heartbeat),
                Register::Count => assert_eq!(access, Access::HeartbeatWhileDisarmed),
                _ => assert_eq!(access, Access::Accepted),
            }
            check_limits(machine);
        }
    }
}

/// The countdown of a running watchdog is never longer than the longest one of the table.
fn check_limits(machine: &mut Machine<Wdat>) {
    let now = machine.now();
    let period = machine.device.config().period;
    let longest = period.as_duration() * period.max_count();
    if let Some(deadline) = machine.device.timeout_at() {
        assert!(deadline.saturating_duration_since(now) <= longest);
    }
    let mut reload = [0; 4];
    machine.device.read(0, &mut reload, now);
    assert!((period.min_count()..=period.max_count()).contains(&u32::from_le_bytes(reload)));
}

//! Properties for arbitrary guests: the model behaves as the one in `reference`, and the times of the polls do not
//! change the result.

use proptest::prelude::*;
use vm_watchdog_devices::Model;
use vm_watchdog_devices::sbsa::{Frame, Sbsa};

use crate::guest::*;
use crate::reference::Reference;

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    /// Waits to the next deadline plus this many nanoseconds.
    WaitForDeadline(i64),
    Poll,
    Reset,
    /// Saves and restores in another process, whose clock shows the same time.
    SaveAndRestore,
    SetCounter(u64),
    Write(Frame, u64, Vec<u8>),
    /// WCV, this many ticks after the counter.
    Compare(i64),
}

fn hz() -> impl Strategy<Value = u32> {
    prop_oneof![Just(HZ), Just(24_000_000), Just(1_000_000_000), Just(u32::MAX), Just(1), Just(3), 1..u32::MAX]
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![0..100_u64, 0..10_000_000_u64, 0..1_000_000_000_000_u64];
    let offset = prop_oneof![Just(0), Just(1), 0..100_u64, 0..1_000_000_000_u64, any::<u64>()];
    let control = |register: u64, data: Vec<u8>| Step::Write(Frame::Control, register, data);
    let access = prop_oneof![
        4 => offset.prop_map(move |ticks| control(WOR_LOW, ticks.to_le_bytes().into())),
        1 => (0..1_000_u32).prop_map(move |ticks| control(WOR_LOW, ticks.to_le_bytes().into())),
        1 => any::<u32>().prop_map(move |ticks| control(WOR_HIGH, ticks.to_le_bytes().into())),
        4 => prop_oneof![3 => Just(EN), 1 => Just(0), 1 => any::<u32>()].prop_map(move |value| control(WCS, value.to_le_bytes().into())),
        3 => prop::collection::vec(any::<u8>(), 1..=8).prop_map(|data| Step::Write(Frame::Refresh, 0, data)),
        1 => (-3..100_i64).prop_map(Step::Compare),
        2 => (any::<bool>(), 0..0x20_u64, prop::collection::vec(any::<u8>(), 0..=9)).prop_map(|(is_control, offset, data)| {
            Step::Write(if is_control { Frame::Control } else { Frame::Refresh }, offset, data)
        }),
        1 => (0xFC0..0x1010_u64, prop::collection::vec(any::<u8>(), 0..=9))
            .prop_map(move |(offset, data)| control(offset, data)),
    ];
    prop_oneof![
        6 => access,
        2 => wait.prop_map(Step::Wait),
        4 => (-1..=1_i64).prop_map(Step::WaitForDeadline),
        1 => Just(Step::Poll),
        1 => Just(Step::Reset),
        1 => Just(Step::SaveAndRestore),
        1 => (0..1_u64 << 56).prop_map(Step::SetCounter),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

/// All state of a device that a guest or a VMM can observe.
#[derive(Debug, PartialEq)]
struct Picture {
    control: Vec<u8>,
    poll_at: Option<u64>,
    timeout_at: Option<u64>,
    interrupt_level: bool,
    is_armed: bool,
    timed_out: bool,
}

impl Picture {
    fn of_model(model: &mut Sbsa, now: u64) -> Self {
        let mut control = vec![0; 0x20];
        model.read(Frame::Control, 0, &mut control, at(now));
        Self {
            control,
            poll_at: model.poll_at().map(|instant| instant.as_nanos()),
            timeout_at: model.timeout_at().map(|instant| instant.as_nanos()),
            interrupt_level: model.interrupt_level(),
            is_armed: model.is_armed(),
            timed_out: model.last_reset().by_watchdog,
        }
    }

    fn of_reference(reference: &mut Reference, now: u64) -> Self {
        reference.advance(now);
        Self {
            control: reference.control(),
            poll_at: reference.poll_at(),
            timeout_at: reference.timeout_at(),
            interrupt_level: reference.ws0,
            is_armed: reference.enabled,
            timed_out: reference.ws1,
        }
    }
}

fn polled(model: &mut Sbsa, now: u64) -> [Option<u64>; 2] {
    let expired = model.poll(at(now));
    [expired.pretimeout, expired.timeout].map(|instant| instant.map(|instant| instant.as_nanos()))
}

/// No run lasts longer than a year, so that nothing saturates but what is far beyond.
const LONGEST: u64 = 365 * 86_400 * SECOND;

fn after(step: &Step, now: u64, poll_at: Option<u64>) -> u64 {
    let then = match step {
        Step::Wait(nanos) => now + nanos,
        Step::WaitForDeadline(further) => poll_at.map_or(now, |at| at.saturating_add_signed(*further)),
        _ => now,
    };
    if then > LONGEST { now } else { then.max(now) }
}

proptest! {
    #[test]
    fn the_model_matches_the_reference(steps in steps(), hz in hz()) {
        let (mut model, mut reference) = (device(hz), Reference::new(hz));
        let mut now = 0;
        for step in &steps {
            now = after(step, now, reference.poll_at());
            match step {
                Step::Poll => {
                    let expired = polled(&mut model, now);
                    prop_assert_eq!(expired, reference.poll(now));
                    prop_assert!(expired.iter().flatten().all(|&instant| instant <= now), "early");
                }
                Step::Reset => {
                    model.reset();
                    reference.reset();
                }
                Step::SaveAndRestore => {
                    let state = model.save(at(now));
                    model = device(hz).restored(&state, at(now)).unwrap();
                }
                Step::SetCounter(value) => {
                    model.set_counter(*value, at(now));
                    reference.set_counter(*value, now);
                }
                Step::Write(frame, offset, data) => {
                    let expected = reference.write(*frame, *offset, data, now);
                    prop_assert_eq!(model.write(*frame, *offset, data, at(now)), expected);
                }
                Step::Compare(ticks) => {
                    reference.advance(now);
                    let data = reference.counter().saturating_add_signed(*ticks).to_le_bytes();
                    let expected = reference.write(Frame::Control, WCV_LOW, &data, now);
                    prop_assert_eq!(model.write(Frame::Control, WCV_LOW, &data, at(now)), expected);
                }
                Step::Wait(_) | Step::WaitForDeadline(_) => {}
            }
            prop_assert_eq!(
                Picture::of_model(&mut model, now),
                Picture::of_reference(&mut reference, now),
                "after {:x?} at {}", step, now
            );
        }
    }

    #[test]
    fn intermediate_polls_and_saves_change_nothing(steps in steps(), hz in hz(), cuts: [u16; 4], polls: [bool; 4]) {
        let (mut whole, mut cut) = (device(hz), device(hz));
        let mut now = 0;
        for step in &steps {
            let begin = now;
            now = after(step, now, whole.poll_at().map(|instant| instant.as_nanos()));
            let seen_whole = polled(&mut whole, now);
            let mut cuts = cuts.map(|cut| begin + ((now - begin) as u128 * u128::from(cut) / (1 << 16)) as u64);
            cuts.sort();
            let mut seen_cut = [None, None];
            for (instant, is_poll) in cuts.into_iter().zip(polls).chain([(now, true)]) {
                if is_poll {
                    let seen = polled(&mut cut, instant);
                    seen_cut = std::array::from_fn(|stage| seen_cut[stage].or(seen[stage]));
                } else {
                    let state = cut.save(at(instant));
                    cut = device(hz).restored(&state, at(instant)).unwrap();
                }
            }
            prop_assert_eq!(seen_cut, seen_whole, "the first expiry of each kind");
            for device in [&mut whole, &mut cut] {
                match step {
                    Step::Reset => device.reset(),
                    Step::SetCounter(value) => device.set_counter(*value, at(now)),
                    Step::Write(frame, offset, data) => {
                        device.write(*frame, *offset, data, at(now));
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(&cut, &whole);
        }
    }
}

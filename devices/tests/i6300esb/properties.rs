//! Properties for arbitrary guests: the model behaves as the one in `reference`, and the times of the polls do not
//! change the result.

use proptest::prelude::*;
use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig, InterruptPin};
use vm_watchdog_devices::{Access, Expired, Model, VmInstant};

use crate::guest::{KHZ, MHZ};
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
    /// Sends the message that is due, or fails to.
    SendMessage(bool),
    WriteConfig(u16, Vec<u8>),
    WriteBar(u64, Vec<u8>),
    /// The unlock keys with a width, then a write.
    Unlocked(usize, u64, Vec<u8>),
}

fn bytes(lengths: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0x00), Just(0x01), Just(0x80), Just(0x86), Just(0xFF), any::<u8>()];
    prop::collection::vec(byte, lengths)
}

fn preload() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(0xF_FFFF), 0..10_u32, 0..2000_u32, any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![
        0..100_u64,
        (0..5_u64, 0..3_u64).prop_map(|(units, nanos)| units * MHZ + nanos),
        (0..2000_u64, 0..3_u64).prop_map(|(units, nanos)| units * KHZ + nanos),
        0..3_000_000_000_000_u64,
    ];
    let configuration = prop_oneof![Just(0x00), Just(0x03), Just(0x04), Just(0x20), Just(0x27), any::<u8>()];
    let lock = prop_oneof![4 => Just(0x02), 2 => Just(0x00), 2 => Just(0x06), 1 => Just(0x03), 1 => any::<u8>()];
    let reload = prop_oneof![4 => Just(0x0100_u16), 1 => Just(0x0200), 1 => Just(0x1100), 1 => any::<u16>()];
    let access = prop_oneof![
        4 => (1..5_usize, prop_oneof![Just(0), Just(4)], preload())
            .prop_map(|(width, register, preload)| Step::Unlocked(width, register, preload.to_le_bytes().into())),
        4 => (1..5_usize, reload).prop_map(|(width, reload)| Step::Unlocked(width, 0xC, reload.to_le_bytes().into())),
        2 => (1..5_usize, 0..0x14_u64, bytes(1..=4)).prop_map(|(width, offset, data)| Step::Unlocked(width, offset, data)),
        2 => (0..0x14_u64, bytes(0..=9)).prop_map(|(offset, data)| Step::WriteBar(offset, data)),
        2 => bytes(1..=2).prop_map(|data| Step::WriteBar(0xC, data)),
        1 => Just(Step::WriteBar(0x8, vec![1])),
        1 => Just(Step::WriteConfig(0x04, vec![0x06])),
        1 => prop_oneof![Just(0xFFFF_FFFF_u32), Just(0), any::<u32>()]
            .prop_map(|address| Step::WriteConfig(0x10, address.to_le_bytes().into())),
        1 => Just(Step::WriteConfig(0x42, vec![0x01])),
        1 => (0x40..0x50_u16, bytes(0..=8)).prop_map(|(offset, data)| Step::WriteConfig(offset, data)),
        3 => configuration.prop_map(|value| Step::WriteConfig(0x60, vec![value])),
        4 => lock.prop_map(|value| Step::WriteConfig(0x68, vec![value])),
        1 => (0x5E..0x6C_u16, bytes(0..=8)).prop_map(|(offset, data)| Step::WriteConfig(offset, data)),
        1 => (0..0x110_u16, bytes(0..=8)).prop_map(|(offset, data)| Step::WriteConfig(offset, data)),
    ];
    prop_oneof![
        6 => access,
        2 => wait.prop_map(Step::Wait),
        3 => (-1..=1_i64).prop_map(Step::WaitForDeadline),
        1 => Just(Step::Poll),
        1 => Just(Step::Reset),
        1 => Just(Step::SaveAndRestore),
        1 => any::<bool>().prop_map(Step::SendMessage),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

fn new_model(has_pin: bool, has_msi: bool) -> I6300esb {
    let interrupt_pin = if has_pin { InterruptPin::IntA } else { InterruptPin::None };
    let config = I6300esbConfig::default().with_interrupt_pin(interrupt_pin);
    I6300esb::new(if has_msi { config.with_msi() } else { config })
}

/// All state of a device that a guest or a VMM can observe.
#[derive(Debug, PartialEq)]
struct Picture {
    config: Vec<u8>,
    bar: Vec<u8>,
    poll_at: Option<u64>,
    interrupt_level: bool,
    message: Option<(u64, u32)>,
    is_armed: bool,
    timed_out: bool,
    bar0: Option<u32>,
}

impl Picture {
    fn of_model(model: &mut I6300esb, now: u64) -> Self {
        let (mut config, mut bar) = (vec![0; 256], vec![0; 16]);
        model.read_config(0, &mut config, VmInstant::from_nanos(now));
        model.read_bar(0, &mut bar, VmInstant::from_nanos(now));
        Self {
            config,
            bar,
            poll_at: model.poll_at().map(VmInstant::as_nanos),
            interrupt_level: model.interrupt_level(),
            message: model.message().map(|message| (message.address, message.data)),
            is_armed: model.is_armed(),
            timed_out: model.timed_out(),
            bar0: model.bar0(),
        }
    }

    fn of_reference(reference: &mut Reference, now: u64) -> Self {
        reference.advance(now);
        Self {
            config: reference.config_image().into(),
            bar: reference.bar_image().into(),
            poll_at: reference.poll_at(),
            interrupt_level: reference.interrupt_level(),
            message: reference.message(),
            is_armed: reference.is_enabled(),
            timed_out: reference.timed_out(),
            bar0: reference.bar0(),
        }
    }
}

fn instants(expired: Expired) -> [Option<u64>; 2] {
    [expired.pretimeout, expired.timeout].map(|at| at.map(VmInstant::as_nanos))
}

/// The writes of a step, in bus order.
fn writes(step: &Step) -> Vec<(bool, u64, Vec<u8>)> {
    match step {
        Step::WriteConfig(offset, data) => vec![(true, (*offset).into(), data.clone())],
        Step::WriteBar(offset, data) => vec![(false, *offset, data.clone())],
        Step::Unlocked(width, offset, data) => {
            let key = |value: u32| (false, 0xC, value.to_le_bytes()[..*width].to_vec());
            vec![key(0x80), key(0x86), (false, *offset, data.clone())]
        }
        _ => vec![],
    }
}

/// Tells the model the time as the runtime does: not for a key. The reference is told it for every write.
fn write(model: &mut I6300esb, (is_config, offset, data): &(bool, u64, Vec<u8>), now: u64) -> Access {
    match I6300esb::unlock_key(*offset, data) {
        Some(key) if !is_config => model.write_unlock_key(key),
        _ if *is_config => model.write_config(*offset as u16, data, VmInstant::from_nanos(now)),
        _ => model.write_bar(*offset, data, VmInstant::from_nanos(now)),
    }
}

fn after(step: &Step, now: u64, poll_at: Option<u64>) -> u64 {
    match step {
        Step::Wait(nanos) => now + nanos,
        Step::WaitForDeadline(further) => {
            poll_at.map_or(now, |at| at.checked_add_signed(*further).unwrap_or(at).max(now))
        }
        _ => now,
    }
}

proptest! {
    #[test]
    fn the_model_matches_the_reference(steps in steps(), has_pin: bool, has_msi: bool) {
        let (mut model, mut reference) = (new_model(has_pin, has_msi), Reference::new(has_pin, has_msi));
        let mut now = 0;
        for step in &steps {
            now = after(step, now, reference.poll_at()).min(now + reference.longest_wait());
            match step {
                Step::Poll => {
                    let expired = instants(model.poll(VmInstant::from_nanos(now)));
                    prop_assert_eq!(expired, reference.poll(now));
                    prop_assert!(expired.iter().flatten().all(|&at| at <= now), "early");
                }
                Step::Reset => {
                    model.reset();
                    reference.reset();
                }
                Step::SaveAndRestore => {
                    let state = model.save(VmInstant::from_nanos(now));
                    model = new_model(has_pin, has_msi).restored(&state, VmInstant::from_nanos(now)).unwrap();
                }
                Step::SendMessage(is_sent) => {
                    model.take_message();
                    reference.take_message();
                    if !is_sent {
                        model.put_back_message();
                        reference.put_back_message();
                    }
                }
                _ => {}
            }
            for access in writes(step) {
                let (is_config, offset, data) = &access;
                let expected = if *is_config {
                    reference.write_config(*offset as u16, data, now)
                } else {
                    reference.write_bar(*offset, data, now)
                };
                prop_assert_eq!(write(&mut model, &access, now), expected, "{:x?}", access);
            }
            prop_assert_eq!(
                Picture::of_model(&mut model, now),
                Picture::of_reference(&mut reference, now),
                "after {:x?} at {}", step, now
            );
        }
    }

    #[test]
    fn poll_at_is_exact(steps in steps(), has_pin: bool, has_msi: bool) {
        let mut model = new_model(has_pin, has_msi);
        let mut now = 0;
        for step in &steps {
            now = after(step, now, model.poll_at().map(VmInstant::as_nanos));
            if let Step::Reset = step {
                model.reset();
            }
            for access in writes(step) {
                write(&mut model, &access, now);
            }
            model.poll(VmInstant::from_nanos(now));
            let Some(wake_up) = model.poll_at().map(VmInstant::as_nanos) else { continue };
            prop_assert!(wake_up > now, "a poll leaves no expiry");

            let mut early = model.clone();
            prop_assert_eq!(instants(early.poll(VmInstant::from_nanos(wake_up - 1))), [None, None]);
            prop_assert_eq!(early.interrupt_level(), model.interrupt_level());
            prop_assert_eq!(early.timed_out(), model.timed_out());
            prop_assert_eq!(early.poll_at(), model.poll_at());

            let mut exact = model.clone();
            let mut configuration = [0];
            exact.read_config(0x60, &mut configuration, VmInstant::from_nanos(now));
            let expired = instants(exact.poll(VmInstant::from_nanos(wake_up)));
            let is_output_disabled = configuration[0] & 0x20 != 0;
            prop_assert!(expired != [None, None] || (is_output_disabled && exact.timed_out()));
            prop_assert!(expired.iter().flatten().all(|&at| at == wake_up));

            let timeout_at = model.timeout_at().map(VmInstant::as_nanos);
            let Some(timeout_at) = timeout_at.filter(|_| !is_output_disabled) else { continue };
            let mut late = model.clone();
            prop_assert_eq!(instants(late.poll(VmInstant::from_nanos(timeout_at - 1)))[1], None);
            prop_assert_eq!(instants(late.poll(VmInstant::from_nanos(timeout_at)))[1], Some(timeout_at));
        }
    }

    #[test]
    fn intermediate_polls_and_saves_change_nothing(steps in steps(), has_pin: bool, has_msi: bool, cuts: [u16; 4], polls: [bool; 4]) {
        let (mut whole, mut cut) = (new_model(has_pin, has_msi), new_model(has_pin, has_msi));
        let mut now = 0;
        for step in &steps {
            let begin = now;
            now = after(step, now, whole.poll_at().map(VmInstant::as_nanos));

            let seen_whole = instants(whole.poll(VmInstant::from_nanos(now)));
            let mut cuts = cuts.map(|cut| begin + ((now - begin) as u128 * u128::from(cut) / (1 << 16)) as u64);
            cuts.sort();
            let mut seen_cut = [None, None];
            for (at, is_poll) in cuts.into_iter().zip(polls).chain([(now, true)]) {
                if is_poll {
                    let seen = instants(cut.poll(VmInstant::from_nanos(at)));
                    seen_cut = std::array::from_fn(|stage| seen_cut[stage].or(seen[stage]));
                } else {
                    cut.read_bar(0xC, &mut [0; 4], VmInstant::from_nanos(at));
                }
            }
            prop_assert_eq!(seen_cut, seen_whole, "the first expiry of each kind");

            if let Step::Reset = step {
                whole.reset();
                cut.reset();
            }
            for access in writes(step) {
                prop_assert_eq!(write(&mut cut, &access, now), write(&mut whole, &access, now));
            }
            prop_assert_eq!(Picture::of_model(&mut cut, now), Picture::of_model(&mut whole, now));
        }
    }
}

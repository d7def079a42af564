//! A guest with the z/VM flavour: its commands are read from its memory and become the VMM's actions.

mod common;

use std::time::Duration;

use common::{arrived, recorder};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
#[cfg(feature = "serde")]
use vm_watchdog::diag288::Diag288StateV1;
use vm_watchdog::diag288::{Diag288, Intercept, ProgramInterruption, UnknownCommands};
use vm_watchdog::{Action, Policy, Stage, VmClock, Watchdog};

const INIT: u64 = 0;
const INIT_WITH_CONCEAL: u64 = 0x8000_0000;
const CHANGE: u64 = 1;

const REFUSED: Intercept = Intercept::Inject(ProgramInterruption::Specification);
const OUTSIDE: Intercept = Intercept::Inject(ProgramInterruption::Addressing);

/// Where two regions of memory meet, and where the memory ends.
const BOUNDARY: u64 = 0x1_0000;
const END: u64 = 0x2_0000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), BOUNDARY as usize),
        (GuestAddress(BOUNDARY), (END - BOUNDARY) as usize),
    ])
    .unwrap()
}

/// Capital letters and spaces in EBCDIC.
fn ebcdic(text: &str) -> Vec<u8> {
    let byte = |letter: u8| match letter {
        b' ' => 0x40,
        b'A'..=b'I' => letter - b'A' + 0xC1,
        b'J'..=b'R' => letter - b'J' + 0xD1,
        _ => letter - b'S' + 0xE2,
    };
    text.bytes().map(byte).collect()
}

/// How a VMM with `vm-memory` reads a guest's memory.
fn reading(memory: &GuestMemoryMmap) -> impl FnOnce(u64, &mut [u8]) -> bool {
    |address, bytes| memory.read_slice(bytes, GuestAddress(address)).is_ok()
}

fn diag(
    watchdog: &Watchdog<Diag288>,
    memory: &GuestMemoryMmap,
    function: u64,
    address: u64,
    length: usize,
) -> Intercept {
    let mut gprs = [0; 16];
    (gprs[2], gprs[3], gprs[4], gprs[5]) = (function, 15, address, length as u64);
    watchdog.intercept_with_memory(4, 0x8324, 0x0288_0000, &gprs, reading(memory))
}

#[test]
fn the_guests_command_selects_the_action() {
    for (text, action) in [
        ("SYSTEM RESTART", Action::InjectNmi),
        ("SYSTEM RESET", Action::Reset),
        ("IPL CMS", Action::Reset),
        ("LOGOFF", Action::Poweroff),
        ("STOP", Action::Pause),
        ("VMDUMP", Action::Dump),
        ("BEGIN", Action::None),
        // Without a meaning for a VMM: the action of the policy.
        ("MSG OPERATOR HELP", Action::Shutdown),
    ] {
        let memory = memory();
        let (clock, time) = VmClock::manual();
        let (handler, events) = recorder();
        let watchdog = Watchdog::builder("wd", Diag288::zvm(UnknownCommands::Accepted))
            .clock(clock)
            .policy(Policy::new(Action::Shutdown))
            .build(handler)
            .unwrap();
        let command = ebcdic(text);
        // Across the boundary of two regions.
        memory.write_slice(&command, GuestAddress(BOUNDARY - 2)).unwrap();
        assert_eq!(diag(&watchdog, &memory, INIT_WITH_CONCEAL, BOUNDARY - 2, command.len()), Intercept::Done);
        memory.write_slice(&[0; 40], GuestAddress(BOUNDARY - 2)).unwrap();
        time.advance(Duration::from_secs(15));
        watchdog.on_readable();
        assert_eq!(arrived(&events), [(Stage::Timeout, action)], "{text}");
        assert_eq!(watchdog.timeout_command().map(|command| command.to_string()).as_deref(), Some(text));
    }
}

#[test]
fn whether_a_heartbeat_cancels_the_escalation_depends_on_the_guests_own_action() {
    for (text, escalated) in [("BEGIN", false), ("SYSTEM RESTART", false), ("LOGOFF", true)] {
        for policy in [Action::Shutdown, Action::None] {
            let memory = memory();
            let (clock, time) = VmClock::manual();
            let (handler, events) = recorder();
            let watchdog = Watchdog::builder("wd", Diag288::zvm(UnknownCommands::Refused))
                .clock(clock)
                .policy(Policy::new(policy).with_escalation(Duration::from_secs(30), Action::Reset))
                .build(handler)
                .unwrap();
            let command = ebcdic(text);
            memory.write_slice(&command, GuestAddress(0)).unwrap();
            assert_eq!(diag(&watchdog, &memory, INIT, 0, command.len()), Intercept::Done);
            time.advance(Duration::from_secs(15));
            watchdog.on_readable();
            assert_eq!(arrived(&events).len(), 1);
            for function in [INIT, CHANGE, CHANGE, CHANGE, CHANGE] {
                assert_eq!(diag(&watchdog, &memory, function, 0, command.len()), Intercept::Done);
                time.advance(Duration::from_secs(10));
                watchdog.on_readable();
            }
            let expected: &[_] = if escalated { &[(Stage::Escalation, Action::Reset)] } else { &[] };
            assert_eq!(arrived(&events), expected, "{text} with the policy {policy}");
        }
    }
}

#[test]
fn an_unknown_command_is_refused_if_that_is_the_policy() {
    let memory = memory();
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::zvm(UnknownCommands::Refused)).build(handler).unwrap();
    let command = ebcdic("MSG OPERATOR HELP");
    memory.write_slice(&command, GuestAddress(0x3000)).unwrap();
    assert_eq!(diag(&watchdog, &memory, INIT_WITH_CONCEAL, 0x3000, command.len()), REFUSED);
    assert!(!watchdog.stats().armed);
}

#[test]
fn a_command_outside_memory_is_an_addressing_exception_and_changes_nothing() {
    let memory = memory();
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::zvm(UnknownCommands::Accepted)).build(handler).unwrap();
    memory.write_slice(&[0xC1; 230], GuestAddress(END - 230)).unwrap();
    for (address, length) in [(END, 1), (END - 229, 230), (u64::MAX, 1), (u64::MAX, 230), (u64::MAX - 229, 230)] {
        assert_eq!(diag(&watchdog, &memory, INIT_WITH_CONCEAL, address, length), OUTSIDE, "{address:#x}+{length}");
        assert!(!watchdog.stats().armed);
    }
    assert_eq!(diag(&watchdog, &memory, INIT_WITH_CONCEAL, END - 230, 230), Intercept::Done);
    assert_eq!(diag(&watchdog, &memory, CHANGE, END, 1), OUTSIDE);
    assert_eq!(diag(&watchdog, &memory, CHANGE, END - 230, 231), REFUSED, "too long, at any address");
}

/// The same call for a watchdog without the z/VM flavour: the register is an action.
#[test]
fn a_watchdog_of_the_other_flavour_takes_no_command() {
    let (handler, _events) = recorder();
    let watchdog = Watchdog::builder("wd", Diag288::new()).build(handler).unwrap();
    let memory = memory();
    assert_eq!(diag(&watchdog, &memory, 0, 0x3000, 3), REFUSED);
    assert_eq!(diag(&watchdog, &memory, 0, 0, 3), Intercept::Done, "action 0");
    let other = watchdog.intercept_with_memory(4, 0x8324, 0x0500_0000, &[0; 16], reading(&memory));
    assert_eq!(other, Intercept::NotOurs);
}

/// The files are of version 1: without the fields of episodes, without fields that are false or none, and as it is written now.
#[cfg(feature = "serde")]
#[test]
fn a_state_is_saved_as_in_the_golden_file() {
    let (clock, time) = VmClock::manual();
    let (handler, _events) = recorder();
    let unknown = UnknownCommands::Refused;
    let watchdog = Watchdog::builder("wd", Diag288::zvm(unknown)).clock(clock).build(handler).unwrap();
    let memory = memory();
    for (command, seconds) in [("IPL", 16), ("BEGIN", 5)] {
        memory.write_slice(&ebcdic(command), GuestAddress(0x3000)).unwrap();
        assert_eq!(diag(&watchdog, &memory, INIT_WITH_CONCEAL, 0x3000, command.len()), Intercept::Done);
        time.advance(Duration::from_secs(seconds));
    }
    let golden = include_str!("golden/diag288-v1-action-rate.json");
    let state = watchdog.save();
    assert_eq!(serde_json::to_string_pretty(&state).unwrap() + "\n", golden);
    assert_eq!(
        bitcode::deserialize::<vm_watchdog::diag288::Diag288State>(&bitcode::serialize(&state).unwrap()).unwrap(),
        state
    );

    let first = include_str!("golden/diag288-v1.json");
    let (second, third) =
        (include_str!("golden/diag288-v1-episodes.json"), include_str!("golden/diag288-v1-every-field.json"));
    for golden in [first, second, third, golden] {
        let (handler, events) = recorder();
        let restored = Watchdog::builder("wd", Diag288::zvm(unknown)).build(handler).unwrap();
        restored.restore(&serde_json::from_str(golden).unwrap()).unwrap();
        restored.on_readable();
        let first = [(Stage::Timeout, Action::Reset)];
        assert_eq!(arrived(&events), first, "the first command's timeout, which was not delivered yet");
    }

    let too_long = golden.replacen("201,", &"201,".repeat(230), 1);
    let error = serde_json::from_str::<vm_watchdog::WatchdogState<Diag288StateV1>>(&too_long).unwrap_err();
    assert!(error.to_string().contains("expected 1 to 230 bytes of EBCDIC"), "{error}");
}

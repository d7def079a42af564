//! DIAGNOSE X'288' with the z/VM flavour: the guest passes the command to execute at the timeout.

use vm_watchdog_devices::diag288::{
    CommandOperand, CpCommand, Diag288, Diagnose, ProgramInterruption, UnknownCommands,
};
use vm_watchdog_devices::{Access, AfterTimeout, Model, Request, VmInstant};

use Access::{Accepted, Heartbeat};
use ProgramInterruption::{Addressing, PrivilegedOperation, Specification};

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;

const IPL: &[u8] = &[0xC9, 0xD7, 0xD3];
const BEGIN: &[u8] = &[0xC2, 0xC5, 0xC7, 0xC9, 0xD5];

type Outcome = Result<Access, ProgramInterruption>;

/// Name, call, bytes at its address, outcome when stopped, outcome when armed.
type Case<'a> = (&'a str, Diagnose, Option<&'a [u8]>, Outcome, Outcome);

fn at(seconds: u64) -> VmInstant {
    VmInstant::from_nanos(seconds * 1_000_000_000)
}

/// Encodes letters, digits and a few signs as Linux does.
fn ebcdic(text: &str) -> Vec<u8> {
    let byte = |character: u8| match character {
        b'A'..=b'I' => character - b'A' + 0xC1,
        b'J'..=b'R' => character - b'J' + 0xD1,
        b'S'..=b'Z' => character - b'S' + 0xE2,
        b'a'..=b'i' => character - b'a' + 0x81,
        b'j'..=b'r' => character - b'j' + 0x91,
        b's'..=b'z' => character - b's' + 0xA2,
        b'0'..=b'9' => character - b'0' + 0xF0,
        b' ' => 0x40,
        b'.' => 0x4B,
        b'\n' => 0x15,
        0 => 0,
        other => panic!("{other:#x}"),
    };
    text.bytes().map(byte).collect()
}

/// `diag 2,4,0x288` with the command's address in register 4 and its length in 5.
fn call(function: u64, timeout: u64, length: u64) -> Diagnose {
    let mut gprs = [0xDEAD_BEEF_DEAD_BEEF; 16];
    (gprs[2], gprs[3], gprs[4], gprs[5]) = (function, timeout, 0x1000, length);
    Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'")
}

/// Performs a call with this command, as a VMM does.
fn give(watchdog: &mut Diag288, function: u64, timeout: u64, command: &[u8], now: VmInstant) -> Outcome {
    watchdog.diagnose_with_command(&call(function, timeout, command.len() as u64), Some(command), now)
}

fn strict() -> Diag288 {
    Diag288::zvm(UnknownCommands::Refused)
}

#[test]
fn each_call_has_the_outcome_of_the_contract() {
    let long = vec![0x40; 231];
    #[rustfmt::skip]
    let table: &[Case] = &[
        ("INIT", call(INIT, 15, 3), Some(IPL), Ok(Accepted), Ok(Heartbeat)),
        ("INIT with CONCEAL", call(INIT | CONCEAL, 15, 3), Some(IPL), Ok(Accepted), Ok(Heartbeat)),
        ("CHANGE", call(CHANGE, 15, 3), Some(IPL), Err(Specification), Ok(Heartbeat)),
        ("CHANGE with CONCEAL", call(CHANGE | CONCEAL, 15, 3), Some(IPL), Err(Specification), Ok(Heartbeat)),
        ("CANCEL as Linux calls it", call(CANCEL, 0, 0), None, Err(Specification), Ok(Accepted)),
        ("CANCEL with CONCEAL", call(CANCEL | CONCEAL, 15, 3), Some(IPL), Err(Specification), Err(Specification)),
        ("function 3", call(3, 15, 3), Some(IPL), Err(Specification), Err(Specification)),
        ("function 2^32", call(1 << 32, 15, 3), Some(IPL), Err(Specification), Err(Specification)),
        ("INIT with 14", call(INIT, 14, 3), Some(IPL), Err(Specification), Err(Specification)),
        ("INIT without a command", call(INIT, 15, 0), Some(&[]), Err(Specification), Err(Specification)),
        ("INIT with a command too long", call(INIT, 15, 231), Some(&long), Err(Specification), Err(Specification)),
        ("INIT with 2^32 + 3 bytes", call(INIT, 15, (1 << 32) + 3), Some(IPL), Err(Specification), Err(Specification)),
        ("INIT outside memory", call(INIT, 15, 3), None, Err(Addressing), Err(Addressing)),
        ("CHANGE outside memory", call(CHANGE, 15, 3), None, Err(Specification), Err(Addressing)),
        ("INIT with 14 outside memory", call(INIT, 14, 3), None, Err(Specification), Err(Specification)),
        ("INIT half in memory", call(INIT, 15, 3), Some(&IPL[..2]), Err(Addressing), Err(Addressing)),
    ];
    for (case, call, command, when_stopped, when_armed) in table {
        let mut stopped = strict();
        assert_eq!(stopped.diagnose_with_command(call, *command, at(10)), *when_stopped, "{case}, stopped");
        assert_eq!(stopped.poll_at(), when_stopped.is_ok().then(|| at(25)), "{case}, stopped");

        let mut armed = strict();
        assert_eq!(give(&mut armed, INIT, 30, BEGIN, at(0)), Ok(Accepted));
        assert_eq!(armed.diagnose_with_command(call, *command, at(10)), *when_armed, "{case}, armed");
        let deadline = match when_armed {
            Ok(Accepted) => None,
            Ok(_) => Some(at(25)),
            Err(_) => Some(at(30)),
        };
        assert_eq!(armed.poll_at(), deadline, "{case}, armed");
    }
}

#[test]
fn the_operand_gives_the_address_and_length_of_the_command() {
    let operand = |length| Some(CommandOperand { address: 0x1000, length });
    assert_eq!(call(INIT, 15, 1).command(), operand(1));
    assert_eq!(call(CHANGE | CONCEAL, 15, 230).command(), operand(230));
    assert_eq!(call(CHANGE, 15, 231).command(), None);
    assert_eq!(call(INIT, 15, 0).command(), None);
    assert_eq!(call(CANCEL, 15, 3).command(), None);
    assert_eq!(call(42, 15, 3).command(), None);

    let mut gprs = [0; 16];
    gprs[5] = 3;
    let odd_r3 = Diagnose::from_intercept(4, 0x8325, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(odd_r3.command(), None);
    let odd_r1 = Diagnose::from_intercept(4, 0x8334, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(odd_r1.command(), None);
    assert_eq!(strict().diagnose_with_command(&odd_r1, Some(IPL), at(0)), Err(Specification));
    let odd_r3 = Diagnose::from_intercept(4, 0x832F, 0x0288_0000, &[15; 16]).expect("DIAGNOSE X'288'");
    assert_eq!(strict().diagnose_with_command(&odd_r3, Some(IPL), at(0)), Err(Specification));
}

#[test]
fn problem_state_is_checked_first() {
    let call = Diagnose::from_instruction([0x83, 0x24, 0x02, 0x88], 1 << 48, &[0; 16]).expect("DIAGNOSE X'288'");
    assert_eq!(strict().diagnose_with_command(&call, None, at(0)), Err(PrivilegedOperation));
}

#[test]
fn a_command_translates_to_its_request() {
    for (text, request) in [
        ("SYSTEM RESTART", Some(Request::Restart)),
        ("system restart", Some(Request::Restart)),
        ("  SYSTEM   RESTART  ", Some(Request::Restart)),
        ("SYSTEM RESTART\n", Some(Request::Restart)),
        ("SYSTEM RESTART NOW", None),
        ("SYSTEM RESTARTED", None),
        ("SYSTEM", None),
        ("SYSTEMRESTART", None),
        ("SYSTEM RESET", Some(Request::Reset)),
        ("SYSTEM CLEAR", Some(Request::Reset)),
        ("IPL", Some(Request::Reset)),
        ("IPL 0150 CLEAR PARM DUMPER", Some(Request::Reset)),
        ("IPLE", None),
        ("LOGOFF", Some(Request::Poweroff)),
        ("LOGOUT", Some(Request::Poweroff)),
        ("STOP", Some(Request::Pause)),
        ("STOP CPU ALL", Some(Request::Pause)),
        ("VMDUMP 0.END", Some(Request::Dump)),
        ("BEGIN", Some(Request::Nothing)),
        ("BEGIN\0", Some(Request::Nothing)),
        ("MSG OP DEAD", None),
        ("MSG OP DEAD\nIPL CMS", None),
        ("   ", None),
        ("\0", None),
    ] {
        let command = CpCommand::from_ebcdic(&ebcdic(text)).expect("not empty");
        assert_eq!(command.request(), request, "{text:?}");

        let mut watchdog = strict();
        let outcome = give(&mut watchdog, INIT, 15, &ebcdic(text), at(0));
        assert_eq!(outcome, if request.is_some() { Ok(Accepted) } else { Err(Specification) }, "{text:?}");
        assert_eq!(watchdog.is_armed(), request.is_some());

        let mut watchdog = Diag288::zvm(UnknownCommands::Accepted);
        assert_eq!(give(&mut watchdog, INIT, 15, &ebcdic(text), at(0)), Ok(Accepted), "{text:?}");
        assert_eq!(watchdog.poll(at(15)).timeout, Some(at(15)));
        assert_eq!(watchdog.timeout_request(), request, "{text:?}");
        assert_eq!(watchdog.timeout_command().map(CpCommand::as_ebcdic), Some(&*ebcdic(text)));
    }
}

#[test]
fn a_command_prints_as_capitals_with_full_stops_for_other_bytes() {
    let shown = |bytes: &[u8]| CpCommand::from_ebcdic(bytes).expect("not empty").to_string();
    assert_eq!(shown(&ebcdic("msg op IPL 0150.\n\0")), "MSG OP IPL 0150.");
    assert_eq!(shown(&[0x4C, 0x6E, 0xFF, 0x15, 0x7D, 0x00]), "<>..'");
    for byte in 0..=u8::MAX {
        assert!(shown(&[0xC1, byte, 0xC1]).is_ascii());
    }
}

#[test]
fn the_timeout_reports_the_last_command_and_disarms_under_every_policy() {
    for after in [AfterTimeout::Armed, AfterTimeout::Disarmed] {
        let mut watchdog = strict();
        watchdog.set_after_timeout(after);
        assert!(watchdog.takes_commands());
        assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(0)), Ok(Accepted));
        assert_eq!(watchdog.timeout_request(), None, "nothing has timed out");
        assert_eq!(give(&mut watchdog, CHANGE, 15, IPL, at(10)), Ok(Heartbeat));
        assert_eq!(watchdog.poll(at(24)).timeout, None);
        assert_eq!(watchdog.poll(at(26)).timeout, Some(at(25)));
        assert_eq!(watchdog.timeout_request(), Some(Request::Reset));
        assert!(!watchdog.is_armed());
        assert_eq!(give(&mut watchdog, CHANGE, 15, IPL, at(27)), Err(Specification));
        assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(27)), Ok(Heartbeat));
        assert_eq!(watchdog.timeout_request(), Some(Request::Reset), "the request of the last timeout");
        assert_eq!(watchdog.poll(at(42)).timeout, Some(at(42)));
        assert_eq!(watchdog.timeout_request(), Some(Request::Nothing));
        watchdog.reset();
        assert_eq!(watchdog.timeout_command(), None);
        assert!(watchdog.takes_commands(), "a reset keeps the flavour");
    }
}

#[test]
fn a_poll_after_two_timeouts_reports_the_first() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 15, IPL, at(0)), Ok(Accepted));
    assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(20)), Ok(Heartbeat));
    assert_eq!(watchdog.poll(at(50)).timeout, Some(at(15)));
    assert_eq!(watchdog.timeout_request(), Some(Request::Reset));
}

/// The probe of Linux' driver, then its heartbeats, which are INIT.
#[test]
fn the_sequence_of_linux_on_zvm() {
    let mut watchdog = strict();
    let restart = ebcdic("SYSTEM RESTART");
    assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(0)), Ok(Accepted));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0, 0), at(0)), Ok(Accepted));
    assert_eq!(give(&mut watchdog, INIT, 30, &restart, at(1)), Ok(Accepted));
    assert_eq!(give(&mut watchdog, INIT | CONCEAL, 30, &restart, at(3)), Ok(Heartbeat));
    assert_eq!(watchdog.poll(at(33)).timeout, Some(at(33)));
    assert_eq!(watchdog.timeout_request(), Some(Request::Restart));
}

#[test]
fn a_restored_watchdog_keeps_its_commands() {
    let mut saved = strict();
    assert_eq!(give(&mut saved, INIT, 15, IPL, at(0)), Ok(Accepted));
    assert_eq!(give(&mut saved, INIT, 15, BEGIN, at(20)), Ok(Heartbeat));
    let state = saved.save(at(22));
    let mut restored = strict().restored(&state, at(100)).expect("a possible state");
    assert_eq!(restored.save(at(100)), state);
    assert_eq!(restored.poll(at(100)).timeout, Some(at(93)));
    assert_eq!(restored.timeout_request(), Some(Request::Reset));
    assert_eq!(restored.poll(at(113)).timeout, Some(at(113)));
    assert_eq!(restored.timeout_request(), Some(Request::Nothing));

    assert_eq!(give(&mut saved, CANCEL, 0, &[], at(22)), Ok(Accepted));
    assert!(strict().restored(&saved.save(at(22)), at(0)).is_ok(), "no command without an armed watchdog");
}

#[test]
fn a_state_of_the_other_flavour_is_refused() {
    let mut zvm = strict();
    assert_eq!(give(&mut zvm, INIT, 15, IPL, at(0)), Ok(Accepted));
    let refused = |device: Diag288, state| device.restored(&state, at(0)).unwrap_err().to_string();
    let running = zvm.save(at(1));
    assert_eq!(refused(Diag288::new(), running), "command is 0x1 in the saved state: accepted is none here");
    let expired = zvm.save(at(20));
    assert_eq!(refused(Diag288::new(), expired), "timeout_command is 0x1 in the saved state: accepted is none here");

    let without = vm_watchdog_devices::diag288::Diag288StateV1 { command: None, ..running };
    assert_eq!(
        refused(strict(), without),
        "command is 0x0 in the saved state: accepted is a command while time remains"
    );
}

/// Any 1 to 230 bytes are a command.
#[test]
fn a_command_has_1_to_230_bytes() {
    assert_eq!(CpCommand::from_ebcdic(&[]), None);
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 230]).map(|command| command.as_ebcdic().len()), Some(230));
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 231]), None);
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 256]), None);
}

#[cfg(feature = "serde")]
#[test]
fn a_saved_command_is_its_1_to_230_bytes() {
    for bytes in [IPL, &[0xC1; 230]] {
        let command = CpCommand::from_ebcdic(bytes).expect("1 to 230 bytes");
        let saved = serde_json::to_value(command).unwrap();
        assert_eq!(saved, serde_json::json!(bytes));
        assert_eq!(serde_json::from_value::<CpCommand>(saved).unwrap(), command);
    }
    for (length, at) in [(0, 0), (231, 231), (100_000, 231)] {
        let saved = serde_json::json!(vec![0xC1; length]);
        let error = serde_json::from_value::<CpCommand>(saved).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid length {at}, expected 1 to 230 bytes of EBCDIC"));
    }
}

/// A refused call changes nothing, including the command of an armed watchdog.
#[test]
fn a_refused_call_keeps_the_command() {
    let unknown = ebcdic("MSG OP DEAD");
    let refused: [(Diagnose, Option<&[u8]>, ProgramInterruption); 4] = [
        (call(INIT, 15, unknown.len() as u64), Some(&unknown), Specification),
        (call(INIT, 14, 3), Some(IPL), Specification),
        (call(INIT, 15, 3), None, Addressing),
        (call(42, 15, 3), Some(IPL), Specification),
    ];
    for (refused, text, interruption) in refused {
        let mut watchdog = strict();
        assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(0)), Ok(Accepted));
        assert_eq!(watchdog.diagnose_with_command(&refused, text, at(1)), Err(interruption));
        assert_eq!(watchdog.poll(at(15)).timeout, Some(at(15)));
        assert_eq!(watchdog.timeout_request(), Some(Request::Nothing), "BEGIN, from the successful call");
    }
}

#[test]
fn a_cancel_after_the_timeout_is_refused_and_keeps_the_timeout() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 15, IPL, at(0)), Ok(Accepted));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0, 0), at(16)), Err(Specification));
    // The guest arms it again and cancels it before the host polls.
    assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(17)), Ok(Heartbeat));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0, 0), at(18)), Ok(Accepted));
    assert_eq!(watchdog.poll(at(19)).timeout, Some(at(15)));
    assert_eq!(watchdog.timeout_request(), Some(Request::Reset));
}

#[test]
fn all_64_bits_of_an_operand_count() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 1 << 32, IPL, at(0)), Ok(Accepted), "a timeout whose low half is 0");
    assert_eq!(watchdog.poll_at(), Some(at(1 << 32)));
    let more = ebcdic("IPL 0150");
    assert_eq!(strict().diagnose_with_command(&call(INIT, 15, 3), Some(&more), at(0)), Err(Addressing));

    let mut gprs = [0; 16];
    (gprs[3], gprs[4], gprs[5]) = (15, 0xFEDC_BA98_8765_4321, 3);
    let high = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(high.command(), Some(CommandOperand { address: 0xFEDC_BA98_8765_4321, length: 3 }));
}

#[test]
fn both_kinds_of_the_zvm_flavour_take_commands() {
    assert!(Diag288::zvm(UnknownCommands::Refused).takes_commands());
    assert!(Diag288::zvm(UnknownCommands::Accepted).takes_commands());
    assert!(!Diag288::new().takes_commands());
}

#[test]
fn only_some_commands_take_operands() {
    for (text, request) in [
        ("SYSTEM RESET NOW", None),
        ("SYSTEM CLEAR NOW", None),
        ("BEGIN 0", None),
        ("LOGOFF HOLD", Some(Request::Poweroff)),
        ("LOGOUT HOLD", Some(Request::Poweroff)),
    ] {
        assert_eq!(CpCommand::from_ebcdic(&ebcdic(text)).expect("not empty").request(), request, "{text}");
    }
    let line_feed = [IPL, &[0x25]].concat();
    assert_eq!(CpCommand::from_ebcdic(&line_feed).and_then(|command| command.request()), Some(Request::Reset));
}

#[test]
fn every_letter_and_digit_prints() {
    let shown = |text: &str| CpCommand::from_ebcdic(&ebcdic(text)).expect("not empty").to_string();
    let capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    assert_eq!(shown(capitals), capitals);
    assert_eq!(shown(&capitals.to_lowercase()), capitals);
}

/// Signs that have the same byte in every EBCDIC code page (of IBM's syntactic character set, 640).
#[test]
fn the_common_signs_print() {
    let bytes =
        [0x4B, 0x4C, 0x4D, 0x4E, 0x50, 0x5C, 0x5D, 0x5E, 0x60, 0x61, 0x6B, 0x6C, 0x6D, 0x6E, 0x6F, 0x7A, 0x7D, 0x7E];
    let signs = ".<(+&*);-/,%_>?:'=";
    assert_eq!(CpCommand::from_ebcdic(&bytes).expect("not empty").to_string(), signs);
}

#[test]
fn arming_anew_clears_the_cause_of_the_last_reset() {
    for function in [INIT, INIT | CONCEAL] {
        let mut watchdog = strict();
        assert_eq!(give(&mut watchdog, INIT, 15, IPL, at(0)), Ok(Accepted));
        assert!(watchdog.poll(at(15)).timeout.is_some());
        watchdog.reset();
        assert!(watchdog.last_reset().by_watchdog);
        assert_eq!(give(&mut watchdog, function, 15, IPL, at(20)), Ok(Accepted));
        assert!(!watchdog.last_reset().by_watchdog, "function {function:#x}");
    }
}

/// With this flavour every timeout has a command: a state without one belongs to the other flavour.
#[test]
fn a_timeout_without_a_command_is_refused() {
    let mut lpar = Diag288::new();
    let mut gprs = [0; 16];
    gprs[3] = 15;
    let init = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(lpar.diagnose(&init, at(0)), Ok(Accepted));
    for poll in [false, true] {
        if poll {
            assert!(!lpar.poll(at(16)).is_empty());
        }
        let error = strict().restored(&lpar.save(at(16)), at(0)).unwrap_err();
        assert_eq!(error.field, "timeout_command", "polled: {poll}");
    }
}

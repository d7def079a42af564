//! DIAGNOSE X'288' in the flavour of z/VM: the guest brings the command to execute at the timeout.

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

/// A name, a call, what is at its address, and the outcomes when stopped and when armed.
type Case<'a> = (&'a str, Diagnose, Option<&'a [u8]>, Outcome, Outcome);

fn at(seconds: u64) -> VmInstant {
    VmInstant::from_nanos(seconds * 1_000_000_000)
}

/// Capitals, digits and a few signs, as Linux' conversion gives them.
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
    Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("ours")
}

/// A call with this command, as a VMM performs it.
fn give(watchdog: &mut Diag288, function: u64, timeout: u64, command: &[u8], now: VmInstant) -> Outcome {
    watchdog.diagnose_with_command(&call(function, timeout, command.len() as u64), Some(command), now)
}

fn strict() -> Diag288 {
    Diag288::zvm(UnknownCommands::Refused)
}

#[test]
fn each_call_is_performed_or_refused() {
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
fn the_operand_says_what_to_read() {
    let operand = |length| Some(CommandOperand { address: 0x1000, length });
    assert_eq!(call(INIT, 15, 1).command(), operand(1));
    assert_eq!(call(CHANGE | CONCEAL, 15, 230).command(), operand(230));
    assert_eq!(call(CHANGE, 15, 231).command(), None);
    assert_eq!(call(INIT, 15, 0).command(), None);
    assert_eq!(call(CANCEL, 15, 3).command(), None);
    assert_eq!(call(42, 15, 3).command(), None);

    let mut gprs = [0; 16];
    gprs[5] = 3;
    let uneven_r3 = Diagnose::from_intercept(4, 0x8325, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(uneven_r3.command(), None);
    let uneven_r1 = Diagnose::from_intercept(4, 0x8334, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(uneven_r1.command(), None);
    assert_eq!(strict().diagnose_with_command(&uneven_r1, Some(IPL), at(0)), Err(Specification));
    let uneven_r3 = Diagnose::from_intercept(4, 0x832F, 0x0288_0000, &[15; 16]).expect("ours");
    assert_eq!(strict().diagnose_with_command(&uneven_r3, Some(IPL), at(0)), Err(Specification));
}

#[test]
fn problem_state_comes_first() {
    let call = Diagnose::from_instruction([0x83, 0x24, 0x02, 0x88], 1 << 48, &[0; 16]).expect("ours");
    assert_eq!(strict().diagnose_with_command(&call, None, at(0)), Err(PrivilegedOperation));
}

#[test]
fn commands_come_to_what_they_are_in_another_vmm() {
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
fn a_command_is_shown_in_capitals_with_full_stops_for_the_rest() {
    let shown = |bytes: &[u8]| CpCommand::from_ebcdic(bytes).expect("not empty").to_string();
    assert_eq!(shown(&ebcdic("msg op IPL 0150.\n\0")), "MSG OP IPL 0150.");
    assert_eq!(shown(&[0x4C, 0x6E, 0xFF, 0x15, 0x7D, 0x00]), "<>..'");
    for byte in 0..=u8::MAX {
        assert!(shown(&[0xC1, byte, 0xC1]).is_ascii());
    }
}

#[test]
fn the_timeout_brings_the_last_command_and_disarms_whatever_the_policy() {
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
        assert_eq!(watchdog.timeout_request(), Some(Request::Reset), "still that of the last timeout");
        assert_eq!(watchdog.poll(at(42)).timeout, Some(at(42)));
        assert_eq!(watchdog.timeout_request(), Some(Request::Nothing));
        watchdog.reset();
        assert_eq!(watchdog.timeout_command(), None);
        assert!(watchdog.takes_commands(), "z/VM for ever");
    }
}

#[test]
fn of_two_timeouts_that_nobody_has_polled_the_first_one_counts() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 15, IPL, at(0)), Ok(Accepted));
    assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(20)), Ok(Heartbeat));
    assert_eq!(watchdog.poll(at(50)).timeout, Some(at(15)));
    assert_eq!(watchdog.timeout_request(), Some(Request::Reset));
}

/// The probe of Linux' driver, then its life: it feeds the watchdog with INIT.
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
fn a_restored_watchdog_has_its_commands() {
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

/// Any 230 bytes are a command; none more, and none at all is none.
#[test]
fn a_command_has_1_to_230_bytes() {
    assert_eq!(CpCommand::from_ebcdic(&[]), None);
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 230]).map(|command| command.as_ebcdic().len()), Some(230));
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 231]), None);
    assert_eq!(CpCommand::from_ebcdic(&[0xC1; 256]), None);
}

/// A call that is refused leaves the command of an armed watchdog as it was, like all else.
#[test]
fn a_refused_call_leaves_the_command() {
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
        assert_eq!(watchdog.timeout_request(), Some(Request::Nothing), "BEGIN, of the call that was performed");
    }
}

#[test]
fn a_timed_out_watchdog_cannot_be_cancelled_and_keeps_its_bite() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 15, IPL, at(0)), Ok(Accepted));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0, 0), at(16)), Err(Specification));
    // Armed anew and cancelled before the host came to poll.
    assert_eq!(give(&mut watchdog, INIT, 15, BEGIN, at(17)), Ok(Heartbeat));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0, 0), at(18)), Ok(Accepted));
    assert_eq!(watchdog.poll(at(19)).timeout, Some(at(15)));
    assert_eq!(watchdog.timeout_request(), Some(Request::Reset));
}

#[test]
fn operands_count_in_full() {
    let mut watchdog = strict();
    assert_eq!(give(&mut watchdog, INIT, 1 << 32, IPL, at(0)), Ok(Accepted), "a timeout whose low half is 0");
    assert_eq!(watchdog.poll_at(), Some(at(1 << 32)));
    let more = ebcdic("IPL 0150");
    assert_eq!(strict().diagnose_with_command(&call(INIT, 15, 3), Some(&more), at(0)), Err(Addressing));

    let mut gprs = [0; 16];
    (gprs[3], gprs[4], gprs[5]) = (15, 0xFEDC_BA98_8765_4321, 3);
    let high = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(high.command(), Some(CommandOperand { address: 0xFEDC_BA98_8765_4321, length: 3 }));
}

#[test]
fn commands_are_taken_whatever_becomes_of_unknown_ones() {
    assert!(Diag288::zvm(UnknownCommands::Refused).takes_commands());
    assert!(Diag288::zvm(UnknownCommands::Accepted).takes_commands());
    assert!(!Diag288::new().takes_commands());
}

#[test]
fn operands_are_for_the_commands_that_have_them() {
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
fn every_letter_and_digit_is_shown() {
    let shown = |text: &str| CpCommand::from_ebcdic(&ebcdic(text)).expect("not empty").to_string();
    let capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    assert_eq!(shown(capitals), capitals);
    assert_eq!(shown(&capitals.to_lowercase()), capitals);
}

/// A guest of this flavour cannot time out without a command: such a state is one of the other flavour.
#[test]
fn a_timeout_without_a_command_is_refused() {
    let mut lpar = Diag288::new();
    let mut gprs = [0; 16];
    gprs[3] = 15;
    let init = Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(lpar.diagnose(&init, at(0)), Ok(Accepted));
    for poll in [false, true] {
        if poll {
            assert!(!lpar.poll(at(16)).is_empty());
        }
        let error = strict().restored(&lpar.save(at(16)), at(0)).unwrap_err();
        assert_eq!(error.field, "timeout_command", "polled: {poll}");
    }
}

//! The contract of DIAGNOSE X'288', case by case, as a guest sees it.
//!
//! The tests restate the numbers instead of importing them, so that a wrong number in the model fails.

use std::time::Duration;

use vm_watchdog_devices::diag288::{Diag288, Diag288StateV1, Diagnose, ProgramInterruption};
use vm_watchdog_devices::{Access, AfterTimeout, Model, VmInstant};

use Access::{Accepted, Heartbeat};
use ProgramInterruption::{PrivilegedOperation, Specification};

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;

/// Outcome of a call, and the deadline after it.
type Outcome = (Result<Access, ProgramInterruption>, Option<VmInstant>);

fn at(seconds: u64) -> VmInstant {
    VmInstant::from_nanos(seconds * 1_000_000_000)
}

fn just_before(instant: VmInstant) -> VmInstant {
    VmInstant::from_nanos(instant.as_nanos() - 1)
}

/// `diag 2,4,0x288` as Linux executes it, with action 0.
fn call(function: u64, timeout: u64) -> Diagnose {
    call_with_action(function, timeout, 0)
}

fn call_with_action(function: u64, timeout: u64, action: u64) -> Diagnose {
    let mut gprs = [0xDEAD_BEEF_DEAD_BEEF; 16];
    (gprs[2], gprs[3], gprs[4]) = (function, timeout, action);
    Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'")
}

/// State of a watchdog that is not yet armed.
const STOPPED: Diag288StateV1 = Diag288StateV1 {
    remaining_ns: None,
    timed_out: false,
    timeout_age_ns: None,
    command: None,
    timeout_command: None,
    has_timed_out: false,
};

fn armed() -> Diag288 {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, 30), at(0)), Ok(Accepted));
    watchdog
}

/// Each call comes at 10 s: once to a stopped watchdog, once to one armed at 0 s with 30 s.
#[test]
fn each_call_has_the_outcome_of_the_contract() {
    let refused = Err(Specification);
    let before = Some(at(30));
    #[rustfmt::skip]
    let table: &[(&str, Diagnose, Outcome, Outcome)] = &[
        ("INIT with 15", call(INIT, 15), (Ok(Accepted), Some(at(25))), (Ok(Heartbeat), Some(at(25)))),
        ("INIT with 3600", call(INIT, 3600), (Ok(Accepted), Some(at(3610))), (Ok(Heartbeat), Some(at(3610)))),
        ("INIT with 14", call(INIT, 14), (refused, None), (refused, before)),
        ("INIT with 0", call(INIT, 0), (refused, None), (refused, before)),
        ("INIT with 2^32, whose low half is 0", call(INIT, 1 << 32), (Ok(Accepted), Some(at((1 << 32) + 10))), (Ok(Heartbeat), Some(at((1 << 32) + 10)))),
        ("INIT with 2^64 - 1", call(INIT, u64::MAX), (Ok(Accepted), Some(VmInstant::MAX)), (Ok(Heartbeat), Some(VmInstant::MAX))),
        ("CHANGE with 15", call(CHANGE, 15), (refused, None), (Ok(Heartbeat), Some(at(25)))),
        ("CHANGE with 14", call(CHANGE, 14), (refused, None), (refused, before)),
        ("CHANGE with 2^64 - 1", call(CHANGE, u64::MAX), (refused, None), (Ok(Heartbeat), Some(VmInstant::MAX))),
        ("CANCEL", call(CANCEL, 0), (refused, None), (Ok(Accepted), None)),
        ("CANCEL with 14", call(CANCEL, 14), (refused, None), (Ok(Accepted), None)),
        ("action 42", call_with_action(INIT, 15, 42), (refused, None), (refused, before)),
        ("action 2^32, whose low half is 0", call_with_action(INIT, 15, 1 << 32), (refused, None), (refused, before)),
        ("CHANGE with action 1", call_with_action(CHANGE, 15, 1), (refused, None), (refused, before)),
        ("CANCEL with action 1", call_with_action(CANCEL, 15, 1), (refused, None), (refused, before)),
        ("function 3", call(3, 15), (refused, None), (refused, before)),
        ("function 42", call(42, 15), (refused, None), (refused, before)),
        ("function 42 with 0", call(42, 0), (refused, None), (refused, before)),
        ("function 2^32, whose low half is INIT", call(1 << 32, 15), (refused, None), (refused, before)),
        ("INIT with CONCEAL", call(INIT | CONCEAL, 15), (refused, None), (refused, before)),
        ("CHANGE with CONCEAL", call(CHANGE | CONCEAL, 15), (refused, None), (refused, before)),
        ("CANCEL with CONCEAL", call(CANCEL | CONCEAL, 15), (refused, None), (refused, before)),
    ];
    for (case, call, when_stopped, when_armed) in table {
        let mut stopped = Diag288::new();
        let outcome = stopped.diagnose(call, at(10));
        assert_eq!((outcome, stopped.poll_at()), *when_stopped, "{case}, stopped");
        assert_eq!(stopped.is_armed(), when_stopped.1.is_some(), "{case}, stopped");

        let mut armed = armed();
        let outcome = armed.diagnose(call, at(10));
        assert_eq!((outcome, armed.poll_at()), *when_armed, "{case}, armed");
        assert_eq!(armed.is_armed(), when_armed.1.is_some(), "{case}, armed");
    }
}

/// The model refuses an odd r1 before it reads r1 + 1: there is no register 16.
#[test]
fn an_odd_r1_is_a_specification_exception() {
    for r1 in (1..16).step_by(2) {
        for r3 in 0..16 {
            for function in [INIT, CHANGE, CANCEL] {
                // Register r3 holds action 0, unless it is r1 and holds the function.
                let mut gprs = [15; 16];
                gprs[r3] = 0;
                gprs[r1] = function;
                let ipa = 0x8300 | (r1 << 4 | r3) as u16;
                let call = Diagnose::from_intercept(4, ipa, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
                let mut watchdog = armed();
                assert_eq!(watchdog.diagnose(&call, at(10)), Err(Specification), "diag {r1},{r3} function {function}");
                assert_eq!(watchdog.poll_at(), Some(at(30)));
            }
        }
    }
}

#[test]
fn the_instruction_selects_the_registers_of_its_operands() {
    for r1 in (0..16).step_by(2) {
        for r3 in (0..16).filter(|r3| ![r1, r1 + 1].contains(r3)) {
            let mut gprs = [0xBAD; 16];
            (gprs[r1], gprs[r1 + 1], gprs[r3]) = (CHANGE, 77, 0);
            let ipa = 0x8300 | (r1 << 4 | r3) as u16;
            let call = Diagnose::from_intercept(4, ipa, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
            let mut watchdog = armed();
            assert_eq!(watchdog.diagnose(&call, at(0)), Ok(Heartbeat), "diag {r1},{r3}");
            assert_eq!(watchdog.poll_at(), Some(at(77)), "diag {r1},{r3}");
        }
    }
}

/// Register r3 may be r1 (INIT and the action are both 0) or r1 + 1 (the timeout is then 0, which CANCEL accepts).
#[test]
fn r3_may_be_one_of_the_pair_of_r1() {
    let mut gprs = [0; 16];
    (gprs[2], gprs[3]) = (INIT, 20);
    let mut watchdog = Diag288::new();
    let init = Diagnose::from_intercept(4, 0x8322, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(watchdog.diagnose(&init, at(0)), Ok(Accepted));
    (gprs[2], gprs[3]) = (CANCEL, 0);
    let cancel = Diagnose::from_intercept(4, 0x8323, 0x0288_0000, &gprs).expect("DIAGNOSE X'288'");
    assert_eq!(watchdog.diagnose(&cancel, at(0)), Ok(Accepted));
}

#[test]
fn a_call_in_problem_state_is_refused_first_and_changes_nothing() {
    let problem_state = 0x0001_0000_0000_0000;
    for (function, timeout) in [(INIT, 15), (INIT, 0), (CHANGE, 15), (CANCEL, 0), (42, 0)] {
        for registers in [0x24, 0x35, 0xF0] {
            let mut gprs = [0; 16];
            (gprs[2], gprs[3]) = (function, timeout);
            let call = Diagnose::from_instruction([0x83, registers, 0x02, 0x88], problem_state, &gprs)
                .expect("DIAGNOSE X'288'");
            let mut watchdog = armed();
            assert_eq!(watchdog.diagnose(&call, at(10)), Err(PrivilegedOperation));
            assert_eq!(watchdog.poll_at(), Some(at(30)));
        }
    }
    let every_other_bit = !problem_state;
    let call =
        Diagnose::from_instruction([0x83, 0x20, 0x02, 0x88], every_other_bit, &[0; 16]).expect("DIAGNOSE X'288'");
    assert_eq!(Diag288::new().diagnose(&call, at(0)), Err(Specification), "a timeout of 0");
}

#[test]
fn interruption_codes_match_the_architecture() {
    assert_eq!(PrivilegedOperation.code(), 0x0002);
    assert_eq!(Specification.code(), 0x0006);
}

#[test]
fn other_intercepts_and_instructions_decode_to_none() {
    let gprs = [0; 16];
    let ours = |icptcode, ipa, ipb| Diagnose::from_intercept(icptcode, ipa, ipb, &gprs).is_some();
    assert!(ours(4, 0x8324, 0x0288_0000));
    for icptcode in (0..=u8::MAX).filter(|&code| code != 4) {
        assert!(!ours(icptcode, 0x8324, 0x0288_0000), "icptcode {icptcode:#x}");
    }
    for opcode in (0..=u8::MAX).filter(|&opcode| opcode != 0x83) {
        assert!(!ours(4, u16::from_be_bytes([opcode, 0x24]), 0x0288_0000), "opcode {opcode:#x}");
    }
    for code in (0..=0xFFF).filter(|&code| code != 0x288) {
        assert!(!ours(4, 0x8324, code << 16), "diag {code:#x}");
    }
    assert!(ours(4, 0x8324, 0x0288_FFFF), "the low half of ipb is not part of the instruction");
}

#[test]
fn the_diagnose_code_is_the_low_16_bits_of_base_plus_displacement() {
    for base in 0..16 {
        for displacement in [0, 1, 0x287, 0x288, 0x289, 0xFFF] {
            for contents in [0x288u64.wrapping_sub(displacement), 0xFFFF_FFFF_FFFF_0288 - displacement, 0, 0x288] {
                let mut gprs = [0x5555_5555_5555_5555; 16];
                gprs[base as usize] = contents;
                let sum = if base == 0 { displacement } else { contents.wrapping_add(displacement) };
                let ipb = base << 28 | (displacement as u32) << 16;
                let decoded = Diagnose::from_intercept(4, 0x8324, ipb, &gprs);
                assert_eq!(decoded.is_some(), sum & 0xFFFF == 0x288, "{displacement:#x}({base}), {contents:#x}");
            }
        }
    }
}

#[test]
fn the_timeout_comes_at_the_deadline_and_not_a_nanosecond_earlier() {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(100)), Ok(Accepted));
    assert!(watchdog.poll(just_before(at(115))).is_empty());
    assert_eq!(watchdog.poll(at(115)).timeout, Some(at(115)));
    assert!(watchdog.poll(at(1000)).is_empty(), "one timeout");
    assert_eq!(watchdog.poll_at(), None);
    assert!(!watchdog.interrupt_level());
}

#[test]
fn a_late_poll_reports_the_exact_instant() {
    let mut watchdog = armed();
    assert_eq!(watchdog.poll(at(5000)).timeout, Some(at(30)));
}

#[test]
fn init_while_armed_restarts_with_the_new_timeout() {
    let mut watchdog = armed();
    assert_eq!(watchdog.diagnose(&call(INIT, 100), at(29)), Ok(Heartbeat));
    assert!(watchdog.poll(at(128)).is_empty());
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(128)), Ok(Heartbeat), "a shorter timeout");
    assert_eq!(watchdog.poll(at(150)).timeout, Some(at(143)));
}

#[test]
fn change_after_cancel_is_refused_until_the_next_init() {
    let mut watchdog = armed();
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0), at(1)), Ok(Accepted));
    assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(2)), Err(Specification));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0), at(2)), Err(Specification));
    assert!(watchdog.poll(at(3600)).is_empty());
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(3600)), Ok(Accepted));
    assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(3601)), Ok(Heartbeat));
}

#[test]
fn a_platform_reset_disarms_and_clears_an_unpolled_expiry() {
    for reset_at in [10, 40] {
        let mut watchdog = armed();
        assert_eq!(watchdog.diagnose(&call(CHANGE, 20), at(10)), Ok(Heartbeat));
        assert_eq!(watchdog.diagnose(&call(42, 0), at(reset_at)), Err(Specification), "a refused call");
        watchdog.reset();
        assert!(!watchdog.is_armed());
        assert_eq!(watchdog.poll_at(), None);
        assert!(watchdog.poll(at(3600)).is_empty());
        assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(3600)), Err(Specification));
    }
}

#[test]
fn a_timeout_that_does_not_affect_the_guest_leaves_the_watchdog_armed() {
    for (function, outcome, armed_after) in
        [(INIT, Ok(Heartbeat), true), (CHANGE, Ok(Heartbeat), true), (CANCEL, Ok(Accepted), false)]
    {
        let mut watchdog = armed();
        watchdog.set_after_timeout(AfterTimeout::Armed);
        assert_eq!(watchdog.poll(at(30)).timeout, Some(at(30)));
        assert!(watchdog.is_armed());
        assert_eq!(watchdog.poll_at(), None, "no deadline after the timeout");
        assert_eq!(watchdog.diagnose(&call(function, 15), at(60)), outcome, "function {function}");
        assert_eq!(watchdog.is_armed(), armed_after);
        assert_eq!(watchdog.poll_at(), armed_after.then(|| at(75)));
    }
}

#[test]
fn after_a_timeout_that_disarms_only_init_arms_again() {
    let mut watchdog = armed();
    watchdog.set_after_timeout(AfterTimeout::Disarmed);
    assert!(watchdog.is_armed(), "armed before the timeout");
    assert_eq!(watchdog.poll(at(30)).timeout, Some(at(30)));
    assert!(!watchdog.is_armed());
    assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(31)), Err(Specification));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 15), at(31)), Err(Specification));
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(31)), Ok(Heartbeat), "the guest survived");
    assert_eq!(watchdog.poll(at(46)).timeout, Some(at(46)));
    watchdog.reset();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(50)), Ok(Accepted));
    assert!(watchdog.poll(at(65)).timeout.is_some());
    assert!(!watchdog.is_armed(), "a reset keeps the setting");
}

/// A guest's call may come after the deadline and before the host's timer: the watchdog has timed out by then.
#[test]
fn a_call_before_a_late_poll_finds_the_watchdog_expired_and_keeps_the_timeout() {
    let mut disarming = armed();
    disarming.set_after_timeout(AfterTimeout::Disarmed);
    assert_eq!(disarming.diagnose(&call(CHANGE, 15), at(30)), Err(Specification));
    assert_eq!(disarming.poll_at(), Some(at(30)), "the timeout is latched");
    assert_eq!(disarming.poll(at(31)).timeout, Some(at(30)));

    let mut staying_armed = armed();
    assert_eq!(staying_armed.diagnose(&call(CHANGE, 15), at(30)), Ok(Heartbeat));
    assert_eq!(staying_armed.poll_at(), Some(at(30)), "the timeout is latched");
    assert_eq!(staying_armed.poll(at(31)).timeout, Some(at(30)));
    assert_eq!(staying_armed.poll_at(), Some(at(45)), "deadline of the restart");
}

#[test]
fn an_earlier_instant_does_not_move_time_back() {
    let mut polled = Diag288::new();
    assert!(polled.poll(at(100)).is_empty());
    let state = Diag288::new().save(at(0));
    let restored = Diag288::new().restored(&state, at(100)).expect("a possible state");
    for mut watchdog in [polled, restored] {
        assert_eq!(watchdog.diagnose(&call(INIT, 15), at(50)), Ok(Accepted));
        assert_eq!(watchdog.poll_at(), Some(at(115)));
    }
}

#[test]
fn a_deadline_beyond_the_range_of_the_clock_is_never_reached() {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, u64::MAX), at(10)), Ok(Accepted));
    assert!(watchdog.poll(VmInstant::MAX).is_empty());
    assert!(watchdog.is_armed());
}

#[test]
fn the_cause_of_the_last_reset_is_kept_until_the_guest_arms_anew() {
    let mut watchdog = armed();
    assert!(!watchdog.last_reset().by_watchdog);
    assert!(watchdog.poll(at(30)).timeout.is_some());
    assert!(watchdog.last_reset().by_watchdog);
    assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(31)), Ok(Heartbeat));
    assert!(watchdog.last_reset().by_watchdog, "a heartbeat does not arm it anew");
    watchdog.reset();
    assert!(watchdog.last_reset().by_watchdog);

    // A platform that makes its devices anew at a reset.
    let mut anew = Diag288::new();
    anew.set_last_reset(watchdog.last_reset());
    assert!(anew.last_reset().by_watchdog);
    assert_eq!(anew.diagnose(&call(INIT, 15), at(40)), Ok(Accepted));
    assert!(!anew.last_reset().by_watchdog);
    anew.reset();
    assert!(!anew.last_reset().by_watchdog);
}

/// A device that is restored in another process, on another clock, behaves as the saved one does.
#[test]
fn a_restored_watchdog_behaves_as_the_saved_one() {
    type Life = fn(&mut Diag288);
    let lives: &[(&str, Life, Diag288StateV1)] = &[
        ("never armed", |_| {}, STOPPED),
        (
            "running",
            |watchdog| assert!(watchdog.diagnose(&call(INIT, 30), at(100)).is_ok()),
            Diag288StateV1 { remaining_ns: Some(10_000_000_000), ..STOPPED },
        ),
        (
            "expired and reported",
            |watchdog| {
                assert!(watchdog.diagnose(&call(INIT, 15), at(100)).is_ok());
                assert!(!watchdog.poll(at(115)).is_empty());
            },
            Diag288StateV1 { timed_out: true, has_timed_out: true, ..STOPPED },
        ),
        (
            "expired, not polled",
            |watchdog| assert!(watchdog.diagnose(&call(INIT, 15), at(100)).is_ok()),
            Diag288StateV1 { timed_out: true, timeout_age_ns: Some(5_000_000_000), has_timed_out: true, ..STOPPED },
        ),
        (
            "expired, not polled, and running again",
            |watchdog| {
                watchdog.set_after_timeout(AfterTimeout::Armed);
                assert!(watchdog.diagnose(&call(INIT, 15), at(100)).is_ok());
                assert!(watchdog.diagnose(&call(CHANGE, 20), at(117)).is_ok());
            },
            Diag288StateV1 {
                remaining_ns: Some(17_000_000_000),
                timeout_age_ns: Some(5_000_000_000),
                has_timed_out: true,
                ..STOPPED
            },
        ),
    ];
    for (life, live, state) in lives {
        for after in [AfterTimeout::Armed, AfterTimeout::Disarmed] {
            let mut saved = Diag288::new();
            saved.set_after_timeout(after);
            live(&mut saved);
            saved.set_after_timeout(after);
            assert_eq!(saved.save(at(120)), *state, "{life}");

            let mut fresh = Diag288::new();
            fresh.set_after_timeout(after);
            let mut restored = fresh.restored(state, at(7000)).expect("a possible state");
            assert_eq!(restored.save(at(7000)), *state, "{life}");
            let shifted = |instant: VmInstant| instant + Duration::from_secs(7000 - 120);
            assert_eq!(restored.is_armed(), saved.is_armed(), "{life}");
            assert_eq!(restored.poll_at(), saved.poll_at().map(shifted), "{life}");
            assert_eq!(
                restored.diagnose(&call(CHANGE, 15), at(7001)),
                saved.diagnose(&call(CHANGE, 15), at(121)),
                "{life}"
            );
            for _ in 0..2 {
                assert_eq!(restored.poll(at(7016)).timeout, saved.poll(at(136)).timeout.map(shifted), "{life}");
            }
        }
    }
}

#[test]
fn an_impossible_state_is_refused_with_the_name_of_its_field() {
    for (remaining_ns, timed_out, message) in [
        (Some(0), false, "remaining_ns is 0x0 in the saved state: accepted is at least 1"),
        (Some(5), true, "timed_out is 0x1 in the saved state: accepted is false while time remains"),
    ] {
        let state = Diag288StateV1 { remaining_ns, timed_out, ..STOPPED };
        let error = Diag288::new().restored(&state, at(0)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let far = Diag288StateV1 { remaining_ns: Some(u64::MAX), timeout_age_ns: Some(u64::MAX), ..STOPPED };
    let mut restored = Diag288::new().restored(&far, at(10)).expect("a possible state");
    assert_eq!(restored.poll(at(11)).timeout, Some(VmInstant::ZERO), "the earliest instant of the clock");
    assert_eq!(restored.poll_at(), Some(VmInstant::MAX));
}

/// Trace of Debian's kernel: module loaded, device opened, `watchdog -t 2 -T 15`, SIGKILL.
#[test]
fn the_sequence_of_linux_times_out_15_s_after_its_last_heartbeat() {
    let mut watchdog = Diag288::new();
    for (function, timeout, now, outcome) in [
        (INIT, 30, 2, Accepted),
        (CANCEL, 0, 2, Accepted),
        (INIT, 30, 3, Accepted),
        (CHANGE, 15, 3, Heartbeat),
        (CHANGE, 15, 3, Heartbeat),
        (CHANGE, 15, 3, Heartbeat),
        (CHANGE, 15, 5, Heartbeat),
        (CHANGE, 15, 7, Heartbeat),
        (CHANGE, 15, 8, Heartbeat),
    ] {
        assert_eq!(watchdog.diagnose(&call(function, timeout), at(now)), Ok(outcome));
        assert!(watchdog.poll(at(now)).is_empty());
    }
    assert!(watchdog.poll(just_before(at(23))).is_empty());
    assert_eq!(watchdog.poll(at(23)).timeout, Some(at(23)));
}

#[test]
fn a_cancel_after_the_deadline_keeps_the_timeout() {
    let mut watchdog = armed();
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0), at(31)), Ok(Accepted));
    assert!(!watchdog.is_armed());
    assert_eq!(watchdog.poll_at(), Some(at(30)), "the timeout is latched");
    assert_eq!(watchdog.poll(at(32)).timeout, Some(at(30)));
    assert!(watchdog.poll(at(3600)).is_empty());
}

#[test]
fn a_reset_does_not_move_time_back() {
    let mut watchdog = armed();
    assert!(watchdog.poll(at(20)).is_empty());
    watchdog.reset();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(1)), Ok(Accepted));
    assert_eq!(watchdog.poll_at(), Some(at(35)));
}

#[test]
fn a_state_with_one_nanosecond_left_can_be_restored() {
    let state = armed().save(just_before(at(30)));
    assert_eq!(state.remaining_ns, Some(1));
    let restored = Diag288::new().restored(&state, at(100)).expect("a possible state");
    assert_eq!(restored.poll_at(), Some(VmInstant::from_nanos(at(100).as_nanos() + 1)));
}

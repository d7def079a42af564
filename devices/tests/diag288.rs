//! The contract of DIAGNOSE X'288', case by case, in the words of a guest.
//!
//! Numbers are restated here, not imported: a wrong one in the model must not pass.

use std::time::Duration;

use vm_watchdog_devices::diag288::{Diag288, Diag288StateV1, Diagnose, ProgramInterruption};
use vm_watchdog_devices::{Access, AfterTimeout, Model, VmInstant};

use Access::{Accepted, Heartbeat};
use ProgramInterruption::{PrivilegedOperation, Specification};

const INIT: u64 = 0;
const CHANGE: u64 = 1;
const CANCEL: u64 = 2;
const CONCEAL: u64 = 0x8000_0000;

/// How a call ends, and the deadline after it.
type Outcome = (Result<Access, ProgramInterruption>, Option<VmInstant>);

fn at(seconds: u64) -> VmInstant {
    VmInstant::from_nanos(seconds * 1_000_000_000)
}

fn just_before(instant: VmInstant) -> VmInstant {
    VmInstant::from_nanos(instant.as_nanos() - 1)
}

/// `diag 2,4,0x288` as Linux has it, action 0.
fn call(function: u64, timeout: u64) -> Diagnose {
    call_with_action(function, timeout, 0)
}

fn call_with_action(function: u64, timeout: u64, action: u64) -> Diagnose {
    let mut gprs = [0xDEAD_BEEF_DEAD_BEEF; 16];
    (gprs[2], gprs[3], gprs[4]) = (function, timeout, action);
    Diagnose::from_intercept(4, 0x8324, 0x0288_0000, &gprs).expect("ours")
}

/// The state of a watchdog that was never armed.
const STOPPED: Diag288StateV1 =
    Diag288StateV1 { remaining_ns: None, timed_out: false, timeout_age_ns: None, command: None, timeout_command: None };

fn armed() -> Diag288 {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, 30), at(0)), Ok(Accepted));
    watchdog
}

/// Every call at 10 s, against a stopped watchdog and against one armed at 0 s with 30 s.
#[test]
fn each_call_is_performed_or_refused_as_the_contract_says() {
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

/// An uneven r1 is refused before r1 + 1 is looked at: register 15 has no successor.
#[test]
fn an_uneven_r1_designates_no_pair() {
    for r1 in (1..16).step_by(2) {
        for r3 in 0..16 {
            for function in [INIT, CHANGE, CANCEL] {
                // Register r3 holds action 0, unless it is r1 and holds the function.
                let mut gprs = [15; 16];
                gprs[r3] = 0;
                gprs[r1] = function;
                let ipa = 0x8300 | (r1 << 4 | r3) as u16;
                let call = Diagnose::from_intercept(4, ipa, 0x0288_0000, &gprs).expect("ours");
                let mut watchdog = armed();
                assert_eq!(watchdog.diagnose(&call, at(10)), Err(Specification), "diag {r1},{r3} function {function}");
                assert_eq!(watchdog.poll_at(), Some(at(30)));
            }
        }
    }
}

#[test]
fn every_even_r1_and_every_r3_is_read_where_the_instruction_says() {
    for r1 in (0..16).step_by(2) {
        for r3 in (0..16).filter(|r3| ![r1, r1 + 1].contains(r3)) {
            let mut gprs = [0xBAD; 16];
            (gprs[r1], gprs[r1 + 1], gprs[r3]) = (CHANGE, 77, 0);
            let ipa = 0x8300 | (r1 << 4 | r3) as u16;
            let call = Diagnose::from_intercept(4, ipa, 0x0288_0000, &gprs).expect("ours");
            let mut watchdog = armed();
            assert_eq!(watchdog.diagnose(&call, at(0)), Ok(Heartbeat), "diag {r1},{r3}");
            assert_eq!(watchdog.poll_at(), Some(at(77)), "diag {r1},{r3}");
        }
    }
}

/// Register r3 may be r1 itself (INIT is 0, as the action is) or r1 + 1 (then the timeout is 0, enough for CANCEL).
#[test]
fn the_action_may_lie_in_the_pair_of_r1() {
    let mut gprs = [0; 16];
    (gprs[2], gprs[3]) = (INIT, 20);
    let mut watchdog = Diag288::new();
    let init = Diagnose::from_intercept(4, 0x8322, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(watchdog.diagnose(&init, at(0)), Ok(Accepted));
    (gprs[2], gprs[3]) = (CANCEL, 0);
    let cancel = Diagnose::from_intercept(4, 0x8323, 0x0288_0000, &gprs).expect("ours");
    assert_eq!(watchdog.diagnose(&cancel, at(0)), Ok(Accepted));
}

#[test]
fn problem_state_is_refused_before_anything_else_and_changes_nothing() {
    let problem_state = 0x0001_0000_0000_0000;
    for (function, timeout) in [(INIT, 15), (INIT, 0), (CHANGE, 15), (CANCEL, 0), (42, 0)] {
        for registers in [0x24, 0x35, 0xF0] {
            let mut gprs = [0; 16];
            (gprs[2], gprs[3]) = (function, timeout);
            let call = Diagnose::from_instruction([0x83, registers, 0x02, 0x88], problem_state, &gprs).expect("ours");
            let mut watchdog = armed();
            assert_eq!(watchdog.diagnose(&call, at(10)), Err(PrivilegedOperation));
            assert_eq!(watchdog.poll_at(), Some(at(30)));
        }
    }
    let every_other_bit = !problem_state;
    let call = Diagnose::from_instruction([0x83, 0x20, 0x02, 0x88], every_other_bit, &[0; 16]).expect("ours");
    assert_eq!(Diag288::new().diagnose(&call, at(0)), Err(Specification), "a timeout of 0");
}

#[test]
fn interruption_codes_are_those_of_the_architecture() {
    assert_eq!(PrivilegedOperation.code(), 0x0002);
    assert_eq!(Specification.code(), 0x0006);
}

#[test]
fn an_intercept_for_another_reason_or_instruction_is_not_ours() {
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
fn the_code_is_base_plus_displacement_in_its_low_16_bits() {
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
fn an_armed_watchdog_bites_at_its_deadline_and_not_a_nanosecond_earlier() {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(100)), Ok(Accepted));
    assert!(watchdog.poll(just_before(at(115))).is_empty());
    assert_eq!(watchdog.poll(at(115)).timeout, Some(at(115)));
    assert!(watchdog.poll(at(1000)).is_empty(), "it bites once");
    assert_eq!(watchdog.poll_at(), None);
    assert!(!watchdog.interrupt_level());
}

#[test]
fn a_late_poll_learns_the_exact_instant() {
    let mut watchdog = armed();
    assert_eq!(watchdog.poll(at(5000)).timeout, Some(at(30)));
}

#[test]
fn init_while_armed_starts_over_with_the_new_timeout() {
    let mut watchdog = armed();
    assert_eq!(watchdog.diagnose(&call(INIT, 100), at(29)), Ok(Heartbeat));
    assert!(watchdog.poll(at(128)).is_empty());
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(128)), Ok(Heartbeat), "a shorter one as well");
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
fn a_platform_reset_disarms_and_forgets_an_expiry_that_nobody_saw() {
    for reset_at in [10, 40] {
        let mut watchdog = armed();
        assert_eq!(watchdog.diagnose(&call(CHANGE, 20), at(10)), Ok(Heartbeat));
        assert_eq!(watchdog.diagnose(&call(42, 0), at(reset_at)), Err(Specification), "time passes");
        watchdog.reset();
        assert!(!watchdog.is_armed());
        assert_eq!(watchdog.poll_at(), None);
        assert!(watchdog.poll(at(3600)).is_empty());
        assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(3600)), Err(Specification));
    }
}

#[test]
fn after_a_timeout_that_only_the_host_notices_the_guest_finds_it_armed() {
    for (function, outcome, armed_after) in
        [(INIT, Ok(Heartbeat), true), (CHANGE, Ok(Heartbeat), true), (CANCEL, Ok(Accepted), false)]
    {
        let mut watchdog = armed();
        watchdog.set_after_timeout(AfterTimeout::Armed);
        assert_eq!(watchdog.poll(at(30)).timeout, Some(at(30)));
        assert!(watchdog.is_armed());
        assert_eq!(watchdog.poll_at(), None, "its time stands still");
        assert_eq!(watchdog.diagnose(&call(function, 15), at(60)), outcome, "function {function}");
        assert_eq!(watchdog.is_armed(), armed_after);
        assert_eq!(watchdog.poll_at(), armed_after.then(|| at(75)));
    }
}

#[test]
fn after_a_timeout_that_ends_the_guest_only_init_arms_it_again() {
    let mut watchdog = armed();
    watchdog.set_after_timeout(AfterTimeout::Disarmed);
    assert!(watchdog.is_armed(), "until then");
    assert_eq!(watchdog.poll(at(30)).timeout, Some(at(30)));
    assert!(!watchdog.is_armed());
    assert_eq!(watchdog.diagnose(&call(CHANGE, 15), at(31)), Err(Specification));
    assert_eq!(watchdog.diagnose(&call(CANCEL, 15), at(31)), Err(Specification));
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(31)), Ok(Heartbeat), "the guest survived");
    assert_eq!(watchdog.poll(at(46)).timeout, Some(at(46)));
    watchdog.reset();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(50)), Ok(Accepted));
    assert!(watchdog.poll(at(65)).timeout.is_some());
    assert!(!watchdog.is_armed(), "what follows a timeout outlives a reset");
}

/// The guest's call may come between the deadline and the host's timer: it meets a watchdog that has timed out.
#[test]
fn a_call_that_overtakes_a_late_timer_meets_an_expired_watchdog_and_does_not_hide_the_bite() {
    let mut disarming = armed();
    disarming.set_after_timeout(AfterTimeout::Disarmed);
    assert_eq!(disarming.diagnose(&call(CHANGE, 15), at(30)), Err(Specification));
    assert_eq!(disarming.poll_at(), Some(at(30)), "the bite is due");
    assert_eq!(disarming.poll(at(31)).timeout, Some(at(30)));

    let mut staying_armed = armed();
    assert_eq!(staying_armed.diagnose(&call(CHANGE, 15), at(30)), Ok(Heartbeat));
    assert_eq!(staying_armed.poll_at(), Some(at(30)), "the bite is due");
    assert_eq!(staying_armed.poll(at(31)).timeout, Some(at(30)));
    assert_eq!(staying_armed.poll_at(), Some(at(45)), "and the restart counts");
}

#[test]
fn time_does_not_run_backwards() {
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
fn a_timeout_beyond_the_end_of_the_clock_never_comes() {
    let mut watchdog = Diag288::new();
    assert_eq!(watchdog.diagnose(&call(INIT, u64::MAX), at(10)), Ok(Accepted));
    assert!(watchdog.poll(VmInstant::MAX).is_empty());
    assert!(watchdog.is_armed());
}

/// A device that is restored in another process, on another clock, goes on as the saved one would have.
#[test]
fn a_restored_watchdog_cannot_be_told_from_the_saved_one() {
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
            Diag288StateV1 { timed_out: true, ..STOPPED },
        ),
        (
            "expired, and nobody has seen it",
            |watchdog| assert!(watchdog.diagnose(&call(INIT, 15), at(100)).is_ok()),
            Diag288StateV1 { timed_out: true, timeout_age_ns: Some(5_000_000_000), ..STOPPED },
        ),
        (
            "expired unseen, and running again",
            |watchdog| {
                watchdog.set_after_timeout(AfterTimeout::Armed);
                assert!(watchdog.diagnose(&call(INIT, 15), at(100)).is_ok());
                assert!(watchdog.diagnose(&call(CHANGE, 20), at(117)).is_ok());
            },
            Diag288StateV1 { remaining_ns: Some(17_000_000_000), timeout_age_ns: Some(5_000_000_000), ..STOPPED },
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
fn an_impossible_state_is_refused_by_the_name_of_its_field() {
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
    assert_eq!(restored.poll(at(11)).timeout, Some(VmInstant::ZERO), "the clock has nothing earlier");
    assert_eq!(restored.poll_at(), Some(VmInstant::MAX));
}

/// What Debian's kernel was traced to do: module loaded, device opened, `watchdog -t 2 -T 15`, SIGKILL.
#[test]
fn the_sequence_of_linux_is_performed_and_bites_15_s_after_its_last_ping() {
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
fn a_cancel_that_comes_too_late_does_not_hide_the_bite() {
    let mut watchdog = armed();
    assert_eq!(watchdog.diagnose(&call(CANCEL, 0), at(31)), Ok(Accepted));
    assert!(!watchdog.is_armed());
    assert_eq!(watchdog.poll_at(), Some(at(30)), "the bite is due");
    assert_eq!(watchdog.poll(at(32)).timeout, Some(at(30)));
    assert!(watchdog.poll(at(3600)).is_empty());
}

#[test]
fn a_reset_does_not_forget_the_time() {
    let mut watchdog = armed();
    assert!(watchdog.poll(at(20)).is_empty());
    watchdog.reset();
    assert_eq!(watchdog.diagnose(&call(INIT, 15), at(1)), Ok(Accepted));
    assert_eq!(watchdog.poll_at(), Some(at(35)));
}

#[test]
fn the_last_nanosecond_of_a_timeout_can_be_restored() {
    let state = armed().save(just_before(at(30)));
    assert_eq!(state.remaining_ns, Some(1));
    let restored = Diag288::new().restored(&state, at(100)).expect("a possible state");
    assert_eq!(restored.poll_at(), Some(VmInstant::from_nanos(at(100).as_nanos() + 1)));
}

//! The built-in guest, through the binary: on a vCPU where there is KVM, and in-process where there is none.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::support::{NO_KVM, Run, Running, Temporary, boot, each, has_kvm, number};

/// Two stages of 512 << 15 ticks of 30 ns.
const PERIOD_NS: u64 = 1_006_632_960;

/// Checks a timeout: due exactly one period after the last heartbeat, and never early.
fn assert_timed_out(run: &Run, action: &str) {
    let expiry = run.expiry("timeout");
    assert_eq!(expiry["action"], action);
    assert_eq!(expiry["id"], "watchdog0");
    // The reload before the start does not count: the watchdog did not run yet.
    assert_eq!(number(&expiry, "heartbeats"), 3);
    assert_eq!(number(&expiry, "deadline_ns") - number(&expiry, "last_heartbeat_ns"), PERIOD_NS);
    assert!(number(&expiry, "observed_ns") >= number(&expiry, "deadline_ns"));
    assert!(number(&expiry, "vm_time_ns") >= number(&expiry, "observed_ns"));
    assert_eq!(number(&expiry, "lateness_ns"), number(&expiry, "observed_ns") - number(&expiry, "deadline_ns"));
    assert_eq!(run.all("armed").len(), 1);
    assert_eq!(run.all("heartbeat").len(), 3);
}

fn assert_reset_and_cause_seen(run: &Run) {
    assert_eq!(run.status, Some(0), "{}", run.messages);
    assert_timed_out(run, "reset");
    assert_eq!(run.all("reset")[0]["cause"], "watchdog");
    assert_eq!(run.remarks().last().unwrap(), "the watchdog caused the last reset; powering off");
    assert_eq!(run.events().last().unwrap()["status"], 0);
}

#[test]
fn a_timeout_on_a_vcpu_resets_in_place_and_the_guest_sees_the_cause() {
    if has_kvm() {
        let run = boot(&["--events=json"]);
        assert_eq!(run.all("boot")[0]["runs_on"], "kvm");
        assert_reset_and_cause_seen(&run);
    }
}

#[test]
fn without_kvm_the_same_guest_is_played_in_process() {
    let run = boot(&["--events=json", NO_KVM]);
    assert_eq!(run.all("boot")[0]["runs_on"], "in-process");
    assert_reset_and_cause_seen(&run);
}

#[test]
fn the_first_line_says_that_there_is_no_kvm_and_why() {
    let run = boot(&[NO_KVM, "--watchdog=i6300esb,action=poweroff"]);
    let first = run.messages.lines().next().unwrap();
    assert!(first.contains("in-process") && first.contains("/nonexistent/kvm"), "{first}");
    assert!(first.contains("No such file or directory"), "{first}");
}

#[test]
fn a_timeout_that_powers_off_has_its_own_status() {
    let arguments = ["--events=json", "--watchdog=i6300esb,action=poweroff"];
    for run in on_each(&arguments) {
        assert_eq!(run.status, Some(3), "{}", run.messages);
        assert_timed_out(&run, "poweroff");
        assert_eq!(run.events().last().unwrap()["event"], "exit");
    }
}

#[test]
fn a_guest_whose_action_is_none_continues() {
    for run in on_each(&["--events=json", "--watchdog=i6300esb,action=none"]) {
        assert_eq!(run.status, Some(0), "{}", run.messages);
        assert_timed_out(&run, "none");
        assert!(run.remarks().last().unwrap().contains("the guest still runs"));
        assert_eq!(run.all("disarmed").len(), 1);
    }
}

#[test]
fn an_nmi_reaches_the_guest_before_the_timeout() {
    for run in on_each(&["--events=json", "--watchdog=i6300esb,pretimeout=inject-nmi,interrupt=intx"]) {
        assert_reset_and_cause_seen(&run);
        assert_eq!(run.expiry("pretimeout")["action"], "inject-nmi");
        assert_eq!(run.all("nmi").len(), 1);
        assert_eq!(run.remarks().iter().filter(|remark| *remark == "got an NMI").count(), 1);
    }
}

/// Without its interrupts the guest would not feed, and time out after 2.013 s of its 3.5 s.
#[test]
fn a_guest_takes_the_watchdogs_interrupt_by_msi_and_lives_on_it() {
    if !has_kvm() {
        return;
    }
    let run = boot(&["--events=json", "--built-in=interrupted", "--watchdog=i6300esb,action=poweroff,interrupt=msi"]);
    assert_eq!(run.status, Some(0), "{}", run.messages);
    let interrupts = run.remarks().iter().filter(|remark| *remark == "got an interrupt; feeding the watchdog").count();
    // The third may be late on a busy host.
    assert!((2..=3).contains(&interrupts), "{}", run.messages);
    assert_eq!(run.all("expiry").len(), 0, "{}", run.messages);
    assert_eq!(run.all("disarmed").len(), 1);
}

#[test]
fn a_guest_that_finds_no_msi_gives_up() {
    for run in on_each(&["--events=json", "--built-in=interrupted", "--watchdog=i6300esb,interrupt=intx"]) {
        assert_ne!(run.status, Some(0), "{}", run.messages);
        assert!(!run.remarks().iter().any(|remark| remark.contains("interrupt")), "{}", run.messages);
    }
}

#[test]
fn a_guest_that_ignores_its_power_button_is_powered_off_after_the_grace() {
    for run in on_each(&["--events=json", "--watchdog=i6300esb,action=shutdown,grace=200ms,then=poweroff"]) {
        assert_eq!(run.status, Some(3), "{}", run.messages);
        assert_timed_out(&run, "shutdown");
        assert_eq!(run.all("power-button").len(), 1);
        let (asked, forced) = (run.expiry("timeout"), run.expiry("escalation"));
        assert_eq!(forced["action"], "poweroff");
        let waited = number(&forced, "observed_ns") - number(&asked, "observed_ns");
        assert!(waited >= 200_000_000, "{waited}");
    }
}

#[test]
fn the_action_pause_stops_the_guest_and_its_clock() {
    for kvm in each() {
        let arguments =
            [&["--events=json", "--watchdog=i6300esb,action=pause,grace=100ms,then=poweroff"], kvm].concat();
        let mut running = Running::start(&arguments);
        running.wait_for("paused");
        // Ten times the grace.
        let run = running.finish(Duration::from_secs(1));
        assert_eq!(run.status, None, "killed by us: {}", run.messages);
        assert_eq!(run.events().last().unwrap()["event"], "paused", "{}", run.messages);
    }
}

#[test]
fn a_dump_is_an_elf_core_with_the_guest_in_it() {
    if !has_kvm() {
        return;
    }
    let core = Temporary::new("guest.core");
    let run = boot(&["--events=json", "--watchdog=i6300esb,action=dump", "--dump-file", core.path(), "--memory=32M"]);
    assert_eq!(run.status, Some(0), "{}", run.messages);
    let dump = &run.all("dump")[0];
    let file = std::fs::File::open(&core.0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), number(dump, "bytes"));

    let read = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_le_bytes(bytes)
    };
    assert_eq!(read(0), u64::from_le_bytes(*b"\x7FELF\x02\x01\x01\0"));
    let (note, memory) = (read(64 + 8), read(120 + 8));
    assert_eq!(read(120 + 32), 32 << 20);
    let instruction_pointer = read(note + 20 + 112 + 16 * 8);
    assert!((0x1_0000..0x1_1000).contains(&instruction_pointer), "{instruction_pointer:#x}");
    assert_ne!(read(memory + instruction_pointer), 0, "there is code where it ran");
}

#[test]
fn a_guest_without_memory_cannot_be_dumped_and_continues() {
    let run = boot(&["--events=json", "--watchdog=i6300esb,action=dump", NO_KVM]);
    assert_eq!(run.status, Some(0), "{}", run.messages);
    assert_eq!(run.all("action-failed")[0]["action"], "dump");
}

#[test]
fn several_watchdogs_share_the_bus() {
    for run in on_each(&["--events=json", "--watchdog=i6300esb", "--watchdog=i6300esb,id=spare"]) {
        assert_reset_and_cause_seen(&run);
        assert_eq!(run.all("boot")[0]["watchdogs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn events_can_go_to_a_file() {
    let events = Temporary::new("events");
    let run = boot(&["--events=json", "--events-file", events.path(), NO_KVM, "--watchdog=i6300esb,action=poweroff"]);
    assert_eq!(run.messages, "");
    let written = std::fs::read_to_string(&events.0).unwrap();
    assert!(written.starts_with("{\"event\":\"boot\"") && written.contains("\"event\":\"exit\""), "{written}");
}

fn on_each(arguments: &[&str]) -> Vec<Run> {
    each().into_iter().map(|kvm| boot(&[arguments, kvm].concat())).collect()
}

#[test]
fn a_guest_that_drives_the_watchdog_of_the_acpi_table_is_reset_and_sees_the_cause() {
    for run in on_each(&["--events=json", "--built-in=wdat", "--watchdog=i6300esb", "--watchdog=wdat"]) {
        assert_eq!(run.status, Some(0), "{}", run.messages);
        let expiry = run.expiry("timeout");
        assert_eq!((&expiry["id"], &expiry["action"]), (&"watchdog1".into(), &"reset".into()));
        assert_eq!(number(&expiry, "heartbeats"), 2);
        assert_eq!(number(&expiry, "deadline_ns") - number(&expiry, "last_heartbeat_ns"), 2_000_000_000);
        assert!(number(&expiry, "observed_ns") >= number(&expiry, "deadline_ns"));
        for event in ["armed", "heartbeat"] {
            assert!(run.all(event).iter().all(|event| event["id"] == "watchdog1"), "{}", run.messages);
        }
        assert_eq!((run.all("armed").len(), run.all("heartbeat").len()), (1, 2));
        assert_eq!(run.remarks().last().unwrap(), "the watchdog caused the last reset; powering off");
    }
}

#[test]
fn the_built_in_guest_finds_its_watchdog_behind_one_of_the_other_kind() {
    for run in on_each(&["--events=json", "--watchdog=wdat", "--watchdog=i6300esb,action=poweroff"]) {
        assert_eq!(run.status, Some(3), "{}", run.messages);
        assert_eq!(run.expiry("timeout")["id"], "watchdog1");
    }
}

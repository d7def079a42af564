//! A VM that is paused, saved and restored while its watchdog runs: real time, a real vCPU where there is KVM.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{NO_KVM, Run, Running, Temporary, boot, each, number, while_the_machine_runs};

/// Two stages of 512 << 15 ticks of 30 ns.
const PERIOD_NS: u64 = 1_006_632_960;
const END: Duration = Duration::from_secs(60);

/// Pauses the guest after it has fed its watchdog for the last time.
fn paused_after_the_last_heartbeat(arguments: &[&str]) -> (Running, u64, u64) {
    let mut running = Running::start(&[&["--events=json"], arguments].concat());
    let last_heartbeat =
        (0..3).map(|_| number(&running.wait_for("heartbeat"), "last_heartbeat_ns")).last().unwrap_or_default();
    running.signal(Signal::USR1);
    let paused = number(&running.wait_for("paused"), "vm_time_ns");
    assert!(paused < last_heartbeat + PERIOD_NS, "paused after the deadline");
    (running, last_heartbeat, paused)
}

fn left_until_timeout(run: &Run, since: u64) -> u64 {
    let expiry = run.expiry("timeout");
    assert!(number(&expiry, "observed_ns") >= number(&expiry, "deadline_ns"));
    number(&expiry, "deadline_ns") - since
}

#[test]
fn a_guest_paused_longer_than_its_timeout_times_out_after_the_remaining_time() {
    for kvm in each() {
        while_the_machine_runs(|| {
            let (running, last_heartbeat, paused) =
                paused_after_the_last_heartbeat(&[&["--watchdog=i6300esb,action=poweroff"], kvm].concat());
            std::thread::sleep(Duration::from_millis(2500));
            let resumed = Instant::now();
            running.signal(Signal::USR2);
            let run = running.finish(END);
            let waited = resumed.elapsed();
            assert_eq!(run.status, Some(3), "{}", run.messages);
            let names: Vec<_> = run.events().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
            let at = |name: &str| names.iter().position(|other| other == name).unwrap();
            assert_eq!(at("resumed"), at("paused") + 1, "no event in between: {names:?}");
            assert_eq!(number(&run.all("resumed")[0], "vm_time_ns"), paused);
            let left = last_heartbeat + PERIOD_NS - paused;
            assert_eq!(left_until_timeout(&run, paused), left);
            assert!(waited >= Duration::from_nanos(left), "timed out after {waited:?} of {left} ns");
        });
    }
}

#[test]
fn a_guest_restored_in_another_process_times_out_after_the_remaining_time() {
    for kvm in each() {
        while_the_machine_runs(|| {
            let snapshot = Temporary::new("snapshot");
            let saving = [&["--watchdog=i6300esb,action=poweroff,id=wd", "--snapshot", snapshot.path()], kvm].concat();
            let (mut running, last_heartbeat, paused) = paused_after_the_last_heartbeat(&saving);
            running.wait_for("saved");
            running.signal(Signal::KILL);
            running.finish(END);

            std::thread::sleep(Duration::from_millis(1500));
            let restored = boot(&["--events=json", "--restore", snapshot.path()]);
            assert_eq!(restored.status, Some(3), "{}", restored.messages);
            let restored_at = number(&restored.all("restored")[0], "vm_time_ns");
            assert!((paused..paused + 1_000_000).contains(&restored_at), "the VM's time goes on: {restored_at}");
            assert_eq!(left_until_timeout(&restored, restored_at), last_heartbeat + PERIOD_NS - paused);
            assert_eq!(restored.expiry("timeout")["id"], "wd");
            assert_eq!(restored.expiry("timeout")["action"], "poweroff", "the policy is part of the state");
            assert_eq!(restored.all("armed").len(), 0, "it was armed");
        });
    }
}

#[test]
fn a_restored_guest_continues_to_feed() {
    for kvm in each() {
        while_the_machine_runs(|| {
            let snapshot = Temporary::new("feeding");
            let mut running = Running::start(
                &[&["--events=json", "--built-in=feeding", "--snapshot", snapshot.path()], kvm].concat(),
            );
            (0..28).for_each(|_| drop(running.wait_for("heartbeat")));
            running.signal(Signal::USR1);
            running.wait_for("saved");
            drop(running);
            let restored = boot(&["--events=json", "--restore", snapshot.path()]);
            assert_eq!(restored.status, Some(0), "{}", restored.messages);
            assert!((1..=2).contains(&restored.all("heartbeat").len()), "{}", restored.messages);
            assert_eq!(restored.all("expiry").len(), 0);
            assert_eq!(restored.remarks(), ["stopping the watchdog and powering off"]);
        });
    }
}

#[test]
fn a_restored_guest_still_sees_that_the_watchdog_expired() {
    for kvm in each() {
        let snapshot = Temporary::new("expired");
        let policy = "--watchdog=i6300esb,action=pause,grace=100ms,then=reset";
        let mut running = Running::start(&[&["--events=json", policy, "--snapshot", snapshot.path()], kvm].concat());
        running.wait_for("paused");
        running.signal(Signal::USR1);
        running.wait_for("saved");
        drop(running);

        // The escalation continues: it resets the guest, which reads WDT_TIMEOUT after its boot.
        let restored = boot(&["--events=json", "--restore", snapshot.path()]);
        assert_eq!(restored.status, Some(0), "{}", restored.messages);
        assert_eq!(restored.expiry("escalation")["action"], "reset");
        assert_eq!(restored.remarks().last().unwrap(), "the watchdog caused the last reset; powering off");
    }
}

#[test]
fn a_restored_guest_keeps_what_is_left_of_its_acpi_watchdog() {
    for kvm in each() {
        while_the_machine_runs(|| {
            let snapshot = Temporary::new("wdat");
            let watchdogs = ["--built-in=wdat", "--watchdog=i6300esb", "--watchdog=wdat,action=poweroff,id=wd"];
            let mut running =
                Running::start(&[&["--events=json", "--snapshot", snapshot.path()], &watchdogs[..], kvm].concat());
            running.wait_for("heartbeat");
            let last_heartbeat = number(&running.wait_for("heartbeat"), "last_heartbeat_ns");
            running.signal(Signal::USR1);
            let paused = number(&running.wait_for("paused"), "vm_time_ns");
            running.wait_for("saved");
            drop(running);
            let restored = boot(&["--events=json", "--restore", snapshot.path()]);
            assert_eq!(restored.status, Some(3), "{}", restored.messages);
            assert_eq!(restored.expiry("timeout")["id"], "wd");
            let restored_at = number(&restored.all("restored")[0], "vm_time_ns");
            assert_eq!(left_until_timeout(&restored, restored_at), last_heartbeat + 2_000_000_000 - paused);
        });
    }
}

#[test]
fn a_snapshot_that_cannot_be_written_leaves_the_vm_paused() {
    let mut running = Running::start(&["--events=json", "--snapshot=/nonexistent/snapshot", NO_KVM]);
    running.wait_for("armed");
    running.signal(Signal::USR1);
    let failed = running.wait_for("action-failed");
    assert!(failed["reason"].as_str().unwrap().contains("/nonexistent/snapshot"), "{failed}");
    running.signal(Signal::USR2);
    assert_eq!(running.finish(END).status, Some(0));
}

#[test]
fn an_invalid_snapshot_is_refused_by_its_field_and_starts_nothing() {
    let file = Temporary::new("good");
    let mut running = Running::start(&["--events=json", "--snapshot", file.path(), NO_KVM]);
    running.wait_for("armed");
    running.signal(Signal::USR1);
    running.wait_for("saved");
    drop(running);
    let good = std::fs::read_to_string(&file.0).unwrap();

    let cases: [(&str, &str, &str); 12] = [
        ("\"version\":2,\"guest\"", "\"version\":1,\"guest\"", "version: 1, accepted is 2"),
        ("\"guest\":\"expiring\"", "\"guest\":\"linux\"", "guest: unknown variant `linux`"),
        ("\"vm_time_ns\":", "\"vm_time_ns\":-", "vm_time_ns: invalid value"),
        ("\"memory_bytes\":268435456", "\"memory_bytes\":268435457", "memory_bytes: memory size"),
        ("\"memory\":[]", "\"memory\":[{\"address\":3221225472,\"bytes\":[1]}]", "memory[0].address: "),
        ("\"preload1\":512", "\"preload1\":2000000", "watchdogs[0].state: preload1 is 0x1e8480"),
        ("\"model\":\"i6300esb\"", "\"model\":\"diag288\"", "watchdogs[0].state: "),
        ("\"stage\":1", "\"stage\":9", "watchdogs[0].state: counter.stage"),
        ("\"wdt_timeout\":false", "\"wdt_timeout\":7", "watchdogs[0].state: invalid type: integer `7`"),
        (
            "\"i6300esb,action",
            "\"i6300esb,zvm=refuse,action",
            "watchdogs[0].config: zvm=... does not apply to i6300esb",
        ),
        ("\"watchdogs\":[", "\"watchdogs\":[7,", "watchdogs[0]: invalid type"),
        ("\"played\":{", "\"played\":{\"colour\":1,", "processor.played.colour: unknown field"),
    ];
    for (from, to, message) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        assert_refused(text.as_bytes(), message);
    }
    for text in ["x".repeat(10_000), "\\u001b[2J".repeat(1_000)] {
        for (from, to) in [
            ("{\"version\"", format!("{{\"{text}\":1,\"version\"")),
            ("\"played\":{", format!("\"played\":{{\"{text}\":1,")),
            ("\"memory\":[", format!("\"memory\":[\"{text}\",")),
        ] {
            assert_refused(good.replacen(from, &to, 1).as_bytes(), "...");
        }
    }
    let vm_time = good.split("\"vm_time_ns\":").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    let at_the_end_of_time = good.replacen(vm_time, &u64::MAX.to_string(), 1);
    assert_refused(at_the_end_of_time.as_bytes(), "vm_time_ns: 18446744073709551615, accepted is at most");
    assert_refused(b"", "EOF");
    assert_refused(&good.as_bytes()[..good.len() / 2], "EOF");
    assert_refused(&[0xFF; 100], "expected value");
    let run = boot(&["--restore=/nonexistent/snapshot"]);
    assert_eq!(run.status, Some(8), "{}", run.messages);
}

fn assert_refused(content: &[u8], message: &str) {
    let file = Temporary::with("bad", content);
    let run = boot(&["--restore", file.path()]);
    assert_eq!(run.status, Some(8), "{}", run.messages);
    assert_eq!(run.messages.lines().count(), 1, "{}", run.messages);
    assert!(run.messages.contains(message), "{message:?} in {}", run.messages);
    assert!(run.messages.chars().count() < 700, "{}", run.messages);
    assert!(!run.messages.trim_end().contains(char::is_control), "{:?}", run.messages);
}

//! The health of a stock Debian guest in QEMU: its watchdog, and liveness and readiness probes of a KubeVirt manifest.

mod agent;
mod vm;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::Guest;
use crate::health::agent::Agent;
use crate::health::vm::{Answer, LIMIT, NOTICED, Port, Vm, connect_application, get, pieces};
use crate::qmp::Operator;
use crate::{CARD_RESET, LATEST, expect_timeout, with};

/// How long the test waits for an agent that does not run.
const SILENCE: Duration = Duration::from_secs(1);

/// The guest without a server. If this fails, the other tests say nothing about the server.
#[test]
fn the_guest_does_what_the_tests_of_its_health_ask_for() {
    with("a guest with an application", pieces, |pieces| {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let port = Port::reserve().unwrap();
        let mut machine = pieces.with_parameter("crash_after=2").machine_without_watchdog(folder.path());
        connect_application(&mut machine, folder.path(), &port);
        let mut guest = Guest::boot(machine);
        guest.boot_status();
        assert_eq!(get(port.number, "/cgi-bin/liveness").0, 200);
        assert_eq!(Answer::next(&mut guest).what(), ("liveness", 200));
        guest.run("answer readiness 503 200");
        for status in [503, 200, 200] {
            assert_eq!(get(port.number, "/cgi-bin/readiness").0, status);
            assert_eq!(Answer::next(&mut guest).what(), ("readiness", status));
        }

        assert!(Agent::connect(&socket, SILENCE).is_err());
        guest.run("start_agent");
        let mut agent = Agent::connect(&socket, LIMIT).unwrap();
        agent.execute("guest-ping", &json!({}));
        assert_eq!(agent.run("cat", &["/tmp/healthy.txt"]), 1);
        guest.run("touch /tmp/healthy.txt");
        assert_eq!(agent.run("cat", &["/tmp/healthy.txt"]), 0);
        guest.run("kill_agent");
        drop(agent);
        assert!(Agent::connect(&socket, SILENCE).is_err());
        guest.run("start_agent");
        Agent::connect(&socket, LIMIT).unwrap().execute("guest-ping", &json!({}));

        for status in [200, 500, 500] {
            assert_eq!(get(port.number, "/cgi-bin/liveness").0, status);
            assert_eq!(Answer::next(&mut guest).what(), ("liveness", status));
        }
        Operator::connect(&folder.path().join("test-qmp")).execute("system_reset");
        assert_eq!(Answer::until_boot(&mut guest), []);
        assert_eq!(get(port.number, "/cgi-bin/liveness").0, 200);
    });
}

/// The period of every probe.
const PERIOD: Duration = Duration::from_secs(1);
/// The grace period of the liveness probe beside a watchdog.
const GRACE_PERIOD: Duration = Duration::from_secs(5);
/// How long the second of two restarts is put off, as by kubelet.
const BACK_OFF: Duration = Duration::from_secs(10);

#[test]
fn a_crashy_application_is_restarted_and_the_second_time_later() {
    with("a crashy application", pieces, |pieces| {
        let manifest = include_str!("crashy.yaml");
        let mut vm = Vm::start(&pieces.with_parameter("crash_after=3"), manifest, "--liveness-action reset");
        vm.guest.boot_status();
        for (restarts, delay) in [(1.0, Duration::ZERO), (2.0, BACK_OFF)] {
            let (success, failures) = answers_until_the_third_failure(&mut vm.guest);
            let [first, _, third] = failures.map(|answer| answer.uptime);
            // An attempt ends before the next one begins, so two whole periods pass after the last success.
            assert!(third - success.uptime >= 2 * PERIOD, "from {success:?} to {third:?}");
            assert!(third - first < 5 * PERIOD, "from {first:?} to {third:?}");

            let failure = vm.expect_result("liveness", "failure");
            let reason = "3 failures in a row, the last one: HTTP probe failed with statuscode: 500";
            assert_eq!(failure["reason"], reason);
            let performed = vm.server.expect("performed");
            assert_eq!((&performed["id"], &performed["action"]), (&json!("liveness"), &json!("reset")));
            let waited = time(&performed) - time(&failure);
            assert!((delay..delay + LATEST).contains(&waited), "{waited:?} instead of {delay:?}");
            assert_eq!(vm.server.expect("vm")["name"], "reset");
            assert_eq!(Answer::until_boot(&mut vm.guest), [], "no attempt between the failure and the reset");
            assert_eq!(vm.metric("liveness_actions_total"), restarts);
        }
        assert_eq!(Answer::next(&mut vm.guest).what(), ("liveness", 200));
    });
}

/// The last success before three failures in a row, and those.
fn answers_until_the_third_failure(guest: &mut Guest) -> (Answer, [Answer; 3]) {
    let mut success = Answer::next(guest);
    assert_eq!(success.status, 200, "the application has recovered");
    let first = loop {
        match Answer::next(guest) {
            answer if answer.status == 200 => success = answer,
            answer => break answer,
        }
    };
    let failures = [first, Answer::next(guest), Answer::next(guest)];
    assert!(failures.iter().all(|answer| answer.status == 500), "{failures:?}");
    (success, failures)
}

/// The time of the VM at an event.
fn time(event: &Value) -> Duration {
    Duration::from_nanos(event["vm_time_ns"].as_u64().unwrap())
}

#[test]
fn readiness_follows_the_guest_agent_and_what_it_executes() {
    with("a guest agent", pieces, |pieces| {
        let mut vm = Vm::start(pieces, include_str!("guest-agent-ping.yaml"), "--agent agent");
        vm.guest.boot_status();
        assert_eq!(vm.readyz(), 503);
        vm.guest.run("start_agent");
        vm.expect_result("readiness", "success");
        assert_eq!(vm.readyz(), 200);
        let alive = Instant::now();
        vm.guest.run("kill_agent");
        vm.expect_result("readiness", "failure");
        // An attempt may be under way when the agent is killed; two more take their timeout of 2 s each.
        assert!(alive.elapsed() >= 2 * Duration::from_secs(2), "{:?}", alive.elapsed());
        assert_eq!(vm.readyz(), 503);
        vm.guest.run("start_agent");
        vm.expect_result("readiness", "success");
        assert_eq!(vm.readyz(), 200);

        let mut vm = vm.served_by_another(include_str!("exec.yaml"), "--agent agent");
        let attempt = vm.server.expect("attempt");
        assert_eq!((&attempt["id"], &attempt["outcome"]), (&json!("readiness"), &json!("failure")));
        assert_eq!(vm.readyz(), 503);
        vm.guest.run("echo yes > /tmp/healthy.txt");
        vm.expect_result("readiness", "success");
        assert_eq!(vm.readyz(), 200);
        vm.guest.run("rm /tmp/healthy.txt");
        vm.expect_result("readiness", "failure");
        assert_eq!(vm.readyz(), 503);
    });
}

#[test]
fn the_watchdog_and_the_probes_of_a_manifest_act_each_alone() {
    with("a watchdog and two probes", pieces, |pieces| {
        let mut vm = Vm::start(pieces, include_str!("watchdog-and-probes.yaml"), "--socket s");
        vm.guest.boot_status();
        vm.guest.feed();
        vm.expect_result("readiness", "success");
        assert_eq!(vm.readyz(), 200);

        // Readiness alone: two failures in a row are not three, nor are two successes. Nothing else follows.
        vm.guest.run("answer readiness 503 503 200 503 503 503 200 200 503 200 200 200");
        for (failures, result, status) in [(5, "failure", 503), (1, "success", 200)] {
            for _ in 0..failures {
                vm.server.expect_before("attempt", "probe");
            }
            let change = vm.server.expect_before("probe", "attempt");
            assert_eq!((&change["id"], &change["result"]), (&json!("readiness"), &json!(result)));
            assert_eq!(vm.readyz(), status);
        }
        assert_eq!(vm.metric("timeouts_total{id=\"dog\"}"), 0.0);
        assert_eq!(vm.metric("liveness_actions_total"), 0.0);

        // The watchdog alone: the application answers.
        let alive = vm.guest.kill_feeder();
        let expiry = expect_timeout(&vm.server, alive);
        assert_eq!(expiry["id"], "dog");
        assert_eq!(vm.server.expect("performed")["action"], "reset");
        assert_eq!(vm.guest.boot_status(), CARD_RESET);
        assert_eq!(vm.metric("timeouts_total{id=\"dog\"}"), 1.0);
        assert_eq!(vm.metric("liveness_actions_total"), 0.0);

        // Liveness alone: the watchdog is fed. The guest ignores the power button, and is powered off.
        vm.guest.feed();
        vm.guest.run("answer liveness 500");
        let (_, shutdown) = vm.server.find_within(NOTICED, "expiry", |_| true);
        assert_eq!((&shutdown["id"], &shutdown["action"]), (&json!("liveness"), &json!("shutdown")));
        let poweroff = vm.server.expect("expiry");
        assert_eq!((&poweroff["id"], &poweroff["action"]), (&json!("liveness"), &json!("poweroff")));
        assert!(time(&poweroff) - time(&shutdown) >= GRACE_PERIOD, "{shutdown} {poweroff}");
        assert_eq!(vm.metric("timeouts_total{id=\"dog\"}"), 1.0);
        vm.guest.end();
    });
}

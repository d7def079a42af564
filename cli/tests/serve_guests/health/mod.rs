//! The health of a stock Debian guest in QEMU: its watchdog, and liveness and readiness probes of a KubeVirt manifest.

mod agent;
mod vm;

use std::time::Duration;

use serde_json::json;

use crate::guest::Guest;
use crate::health::agent::Agent;
use crate::health::vm::{Answer, LIMIT, Port, connect_application, get, pieces};
use crate::qmp::Operator;

/// How long the test waits for an agent that does not run.
const SILENCE: Duration = Duration::from_secs(1);

/// The guest without a server. If this fails, the other tests say nothing about the server.
#[test]
fn the_guest_does_what_the_tests_of_its_health_ask_for() {
    crate::with("a guest with an application", pieces, |pieces| {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let port = Port::reserve().unwrap();
        let mut machine = pieces.with_parameter("crash_after=10").machine_without_watchdog(folder.path());
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

        guest.run("until [ $(cat /answers/liveness) = 500 ]; do sleep 0.1; done");
        assert_eq!(get(port.number, "/cgi-bin/liveness").0, 500);
        assert_eq!(Answer::next(&mut guest).what(), ("liveness", 500));
        Operator::connect(&folder.path().join("test-qmp")).execute("system_reset");
        assert_eq!(Answer::until_boot(&mut guest), []);
        assert_eq!(get(port.number, "/cgi-bin/liveness").0, 200);
    });
}

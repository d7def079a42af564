//! `guestAgentPing`, and how probes share an agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_watchdog_probes::handlers::{Guest, GuestAgent};
use vm_watchdog_probes::{Handler, Outcome};

use crate::support::{Agent, assert_fails, brief, command_of, prober, serve_commands, times_out};

#[test]
fn an_agent_that_answers_passes() {
    let agent = Agent::answering(|command| {
        assert_eq!(command, r#"{"arguments":{},"execute":"guest-ping"}"#);
        r#"{"return": {}}"#.to_owned()
    });
    assert_eq!(agent.ping(), Outcome::Success);
    assert_eq!(agent.ping(), Outcome::Success);
}

#[test]
fn an_agent_that_is_not_there_is_a_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("qga.sock");
    let guest = Guest { address: None, agent: Some(Arc::new(GuestAgent::new(&path))) };
    let mut ping = prober(Handler::GuestAgentPing, &guest);
    let expected = format!("guest agent probe failed: guest agent {}: No such file or directory", path.display());
    assert_fails(&ping.attempt(), &expected);
    // A VM that has ended leaves its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert_fails(&ping.attempt(), "Connection refused");
}

#[test]
fn a_socket_that_cannot_be_used_is_an_error_of_the_host() {
    let guest = Guest { address: None, agent: Some(Arc::new(GuestAgent::new("/".repeat(200)))) };
    let outcome = prober(Handler::GuestAgentPing, &guest).attempt();
    assert!(matches!(&outcome, Outcome::Error(_)), "{outcome:?}");
}

#[test]
fn an_agent_that_refuses_the_command_fails() {
    let agent = Agent::answering(|_| {
        r#"{"error": {"class": "GenericError", "desc": "Command guest-ping has been disabled"}}"#.to_owned()
    });
    let expected = "guest agent probe failed: guest-ping: Command guest-ping has been disabled";
    assert_eq!(agent.ping(), Outcome::Failure(expected.to_owned()));
}

#[test]
fn a_guest_without_an_agent_behind_the_socket_times_out() {
    let agent = Agent::new(|stream| {
        thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    agent.ping_times_out();
}

#[test]
fn what_the_agent_sent_to_an_earlier_client_is_skipped() {
    let late = b"\"return\": {}}\n{\"return\": {}}\n{\"return\": 1}\n\xff{\"return\": 2}\n\xffgarbage\n";
    let agent = Agent::new(move |stream| {
        let mut answer = |_: &str| r#"{"error": {"class": "GenericError", "desc": "this is the answer"}}"#.to_owned();
        serve_commands(stream, late, &mut answer);
    });
    assert_fails(&agent.ping(), "this is the answer");
}

#[test]
fn after_a_timeout_the_connection_is_synchronized_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let agent = Agent::new(move |stream| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let mut answer = |_: &str| {
            if first {
                thread::sleep(Duration::from_millis(1500));
            }
            r#"{"return": {}}"#.to_owned()
        };
        serve_commands(stream, b"", &mut answer);
    });
    times_out(&mut brief(Handler::GuestAgentPing, &agent.guest()));
    assert_eq!(agent.ping(), Outcome::Success);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[test]
fn the_connection_ends_with_the_attempt_so_that_others_can_use_the_agent() {
    let is_free = Arc::new(AtomicBool::new(false));
    let free = is_free.clone();
    let agent = Agent::new(move |stream| {
        serve_commands(stream, b"", &mut |_| r#"{"return": {}}"#.to_owned());
        free.store(true, Ordering::Release);
    });
    assert_eq!(agent.ping(), Outcome::Success);
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_free.load(Ordering::Acquire) {
        assert!(Instant::now() < limit, "the probe still has its connection");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_command_that_runs_for_long_blocks_no_ping() {
    let pings = Arc::new(AtomicUsize::new(0));
    let seen = pings.clone();
    let agent = Agent::answering(move |command| {
        let command: serde_json::Value = serde_json::from_str(command).expect("JSON");
        match command["execute"].as_str() {
            Some("guest-exec") => r#"{"return": {"pid": 7}}"#.to_owned(),
            Some("guest-exec-status") if seen.load(Ordering::Relaxed) < 3 => {
                r#"{"return": {"exited": false}}"#.to_owned()
            }
            Some("guest-exec-status") => r#"{"return": {"exited": true, "exitcode": 0}}"#.to_owned(),
            _ => {
                seen.fetch_add(1, Ordering::Relaxed);
                r#"{"return": {}}"#.to_owned()
            }
        }
    });
    let mut exec = prober(command_of(&["sleep", "5"]), &agent.guest());
    let running = thread::spawn(move || exec.attempt());
    for _ in 0..3 {
        assert_eq!(agent.ping(), Outcome::Success);
    }
    assert_eq!(running.join().expect("no panic"), Outcome::Success);
}

//! Actions that are performed by a command of the operator, and the end of the command.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::actions::is_timeout;
use crate::fakes::FakeQmp;
use crate::server::{Builder, Server, TIMEOUT};

/// The process ids that a command has written to this file, one a line.
pub fn pids(server: &Server, name: &str, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let text = fs::read_to_string(server.path(name)).unwrap_or_default();
        let pids: Vec<_> = text.lines().map(|line| line.parse().unwrap()).collect();
        if pids.len() == count {
            return pids;
        }
        assert!(Instant::now() < deadline, "{name}: {text:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs. One that has ended and was not reaped does not.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

pub fn wait_for_the_end_of(pids: &[u32]) {
    let deadline = Instant::now() + TIMEOUT;
    while let Some(pid) = pids.iter().find(|pid| is_running(**pid)) {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_command_receives_the_event_and_its_status_decides() {
    let script = "cat > event.$WATCHDOG_ATTEMPT; env | grep ^WATCHDOG_ | sort > env.$WATCHDOG_ATTEMPT; \
                  [ $WATCHDOG_ATTEMPT = 2 ]";
    let server =
        Builder::new().options("--socket s --watchdog i6300esb,action=poweroff,id=wd").option("--exec", script).start();
    let mut client = server.client();
    client.arm(1);
    let failed = server.expect("action-failed");
    assert_eq!(failed["reason"], "the command failed: exit status: 1");
    server.expect("performed");

    let event: Value = serde_json::from_str(&fs::read_to_string(server.path("event.2")).unwrap()).unwrap();
    assert_eq!(
        (&event["id"], &event["stage"], &event["action"]),
        (&"wd".into(), &"timeout".into(), &"poweroff".into())
    );
    assert_eq!((&event["attempt"], &event["socket"]), (&2.into(), &"s".into()));
    let env = fs::read_to_string(server.path("env.2")).unwrap();
    let names: Vec<_> = env.lines().map(|line| line.split_once('=').unwrap().0).collect();
    assert_eq!(
        names,
        [
            "WATCHDOG_ACTION",
            "WATCHDOG_ATTEMPT",
            "WATCHDOG_DEADLINE_NS",
            "WATCHDOG_ID",
            "WATCHDOG_LATENESS_NS",
            "WATCHDOG_OBSERVED_NS",
            "WATCHDOG_SOCKET",
            "WATCHDOG_STAGE"
        ]
    );
    assert!(env.contains("WATCHDOG_ID=wd\n") && env.contains("WATCHDOG_ACTION=poweroff\n"));
}

#[test]
fn a_command_that_does_not_read_a_long_event_blocks_nothing() {
    // Its child keeps the input open until the test is over.
    let script = "exec 3<&0 >&- 2>&-; while [ -e s ]; do sleep 0.1; done <&3 &";
    let watchdog = format!("i6300esb,action=poweroff,id={}", "x".repeat(70_000));
    let server = Builder::new().options("--socket s").option("--watchdog", &watchdog).option("--exec", script).start();
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
}

#[test]
fn with_both_a_command_acts_and_qmp_only_reports() {
    let builder = Builder::new().options("--socket s --qmp q").option("--exec", "touch acted");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let mut qmp = qmp.accept(&server, true);
    let mut client = server.client();
    qmp.pause(&server);
    client.arm(1);
    server.expect_none("expiry", Duration::from_millis(300));
    qmp.event("RESUME");
    server.expect("performed");
    assert!(server.path("acted").exists());
    qmp.no_command(Duration::from_millis(50));
}

#[test]
fn an_action_that_takes_long_delays_no_other_watchdog() {
    let script = "[ $WATCHDOG_ID = watchdog0 ] || sleep 60";
    let server = Builder::new().options("--socket s --socket t").option("--exec", script).start();
    let mut slow = server.client_of("t");
    slow.arm(1);
    server.expect_where("expiry", is_timeout);
    let mut quick = server.client_of("s");
    quick.arm(1);
    assert_eq!(server.expect("performed")["id"], "watchdog0");
    assert!(slow.timed_out(), "its device answers meanwhile");
}

/// Ends a server whose command runs, and checks that no process of the command is left, which would keep an inherited
/// pipe open.
fn end_with_command(script: &str, processes: usize) -> Server {
    let options = "--watchdog i6300esb,action=poweroff --socket s";
    let (builder, mut stderr) = Builder::new().options(options).option("--exec", script).with_stderr();
    let mut server = builder.start();
    let mut client = server.client();
    client.arm(1);
    let pids = pids(&server, "pids", processes);
    assert!(pids.iter().all(|pid| is_running(*pid)));
    assert!(server.signal(Signal::TERM).success());
    assert!(!is_running(pids[0]), "the command is waited for");
    wait_for_the_end_of(&pids);
    // This returns when the last process that could write to it has ended.
    stderr.read_to_end(&mut Vec::new()).unwrap();
    server
}

#[test]
fn a_command_ends_with_the_server() {
    let server = end_with_command("trap 'touch cleaned-up; exit' TERM; echo $$ > pids; while :; do sleep 0.1; done", 1);
    assert!(server.path("cleaned-up").exists(), "it is asked to end before it is killed");
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_with_the_server() {
    end_with_command("trap '' TERM; sleep 60 & echo $$ > new; echo $! >> new; mv new pids; wait; sleep 60", 2);
}

#[test]
fn children_of_a_command_end_with_the_server_although_the_command_ends_first() {
    // The shell ends at SIGTERM, the process that it has started ignores it.
    end_with_command("(trap '' TERM; exec sleep 60) & echo $$ > new; echo $! >> new; mv new pids; wait", 2);
}

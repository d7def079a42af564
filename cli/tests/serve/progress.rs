//! The watchdog of the service manager is notified only while the threads that protect the guest make progress. strace
//! stops a thread in a system call.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use vm_watchdog_test_support::{Unavailable, skip};

use crate::client::{Client, PROPOSAL, VERSION, message};
use crate::server::{Builder, Server, TIMEOUT};

/// How long each of these system calls takes. A server that is killed meanwhile ends after that.
const STOPPED: Duration = Duration::from_secs(20);
/// How long a thread may make no progress.
const PATIENCE: Duration = Duration::from_secs(10);
/// Several intervals of notifications, which are 100 ms.
const QUIET: Duration = Duration::from_secs(2);

/// What a thread with a timer waits in.
const EPOLL: &str = "?epoll_wait,?epoll_pwait,?epoll_pwait2";
const WATCHDOG: &str = "--socket s --watchdog i6300esb,action=none";
/// A probe that fails: nothing listens on the port.
const MANIFEST: &str = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
spec: {livenessProbe: {tcpSocket: {port: 1}, periodSeconds: 1, failureThreshold: 1}}
";

/// Stops a thread in these system calls after `begin`, and checks that notifications end not before ten seconds have passed,
/// and that the server reports why.
fn expect_silence<T>(test: &str, calls: &str, options: &str, begin: impl FnOnce(&Server) -> T, why: &str) {
    if let Err(error) = std::process::Command::new("strace").arg("--version").output() {
        return skip::loudly(test, &Unavailable::new(format!("strace: {error}")));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let builder = Builder::delayed(calls, STOPPED).options(options);
    std::fs::write(builder.path().join("vm.yaml"), MANIFEST).unwrap();
    let server = builder.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").start();
    let started = Instant::now();
    let _kept = begin(&server);
    manager.set_read_timeout(Some(QUIET)).unwrap();
    while manager.recv(&mut [0; 100]).is_ok() {
        assert!(started.elapsed() < TIMEOUT, "notified although a thread makes no progress");
    }
    assert!(started.elapsed() > PATIENCE, "not notified after {:?}", started.elapsed());
    server.expect_where("log", |event| event["message"].as_str().unwrap().contains(why));
}

#[test]
fn the_service_manager_is_not_notified_while_the_thread_of_a_socket_is_stuck() {
    let begin = |server: &Server| {
        let mut client = Client::new(server.stream());
        client.send(&message(1, VERSION, 0, PROPOSAL));
        client
    };
    let test = "the_service_manager_is_not_notified_while_the_thread_of_a_socket_is_stuck";
    expect_silence(test, "recvmsg", WATCHDOG, begin, "the thread of its socket has been busy for");
}

#[test]
fn the_service_manager_is_not_notified_while_no_thread_acts_on_a_timeout() {
    let begin = |server: &Server| {
        let mut client = server.client();
        client.arm(1);
        client
    };
    let test = "the_service_manager_is_not_notified_while_no_thread_acts_on_a_timeout";
    expect_silence(test, EPOLL, WATCHDOG, begin, "its timeout has been due for");
}

#[test]
fn the_service_manager_is_not_notified_while_no_thread_acts_on_a_liveness_failure() {
    let begin = |server: &Server| server.expect_where("probe", |event| event["result"] == "failure");
    let test = "the_service_manager_is_not_notified_while_no_thread_acts_on_a_liveness_failure";
    let why = "watchdog liveness: its timeout has been due for";
    expect_silence(test, EPOLL, "--manifest vm.yaml --address 127.0.0.1 --exec true", begin, why);
}

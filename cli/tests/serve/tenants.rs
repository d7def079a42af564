//! A tenant that has taken over its VMM: what its process leaves behind keeps neither the watchdog armed nor the next VMM
//! out, and none of its descriptors blocks the server.

use std::env;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::client::*;
use crate::fakes::{FakeQmp, cloud_hypervisor};
use crate::server::{Builder, Server, TIMEOUT};

/// Less than any time for which the descriptors of these tests block.
const SOON: Duration = Duration::from_secs(5);

/// For how long a race is tried.
const RACE: Duration = Duration::from_secs(3);

/// For how long something must not happen.
const QUIET: Duration = Duration::from_millis(300);

/// The path of the socket for [`connects_and_ends`] and [`arms_and_waits`].
const SOCKET: &str = "VM_WATCHDOG_TEST_SOCKET";

fn server_with_an_armed_watchdog() -> (Server, Client) {
    let server = Server::harmless();
    let mut client = server.client();
    client.arm(60_000);
    server.expect("armed");
    (server, client)
}

#[test]
fn a_client_that_sends_its_own_socket_with_half_a_message_is_gone_when_it_ends() {
    for half in [1, 15, 20] {
        let (server, client) = server_with_an_armed_watchdog();
        let message = message(1, REGION_WRITE, 0, &access(BAR0, 0, 4, &[0; 4]));
        client.send_with_fds(&message[..half], &[client.stream.as_fd()]);
        client.kill();
        server.expect("disconnected");
        let mut next = server.client();
        assert!(!next.is_enabled(), "the watchdog of the old VM is disarmed");
    }
}

#[test]
fn a_client_that_takes_no_replies_and_sends_its_own_socket_behind_them_is_gone_after_a_while() {
    let (server, mut client) = server_with_an_armed_watchdog();
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let request = message(1, REGION_READ, 0, &access(CONFIG, 0, 4096, &[]));
    // The server stops to read when its replies are not taken. A few of these messages then wait for it.
    let mut sent = 0;
    while sent < 100_000 && client.stream.write_all(&request).is_ok() {
        sent += 1;
        if sent % 16 == 0 {
            let own = client.stream.try_clone().unwrap();
            // Fails when the socket is full, as the write before it.
            let _ = client.try_send_with_fds(&request, &[own.as_fd()]);
        }
    }
    client.kill();
    let started = Instant::now();
    server.expect("disconnected");
    assert!(started.elapsed() < TIMEOUT);
    assert!(!server.client().is_enabled());
}

/// A TCP socket whose close waits for a minute: it lingers, and its peer takes none of what it has sent.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(60))).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    (socket.into(), peer)
}

/// Sends RESET, which takes no descriptor, with so many of a socket whose close blocks, and connects anew after the reply.
fn send_lingering_sockets(count: usize) {
    let (server, mut client) = server_with_an_armed_watchdog();
    let (socket, _peer) = lingering();
    client.send_with_fds(&message(1, RESET, 0, &[]), &vec![socket.as_fd(); count]);
    drop(socket);
    let started = Instant::now();
    assert_eq!(client.receive().unwrap().error, EINVAL);
    assert!(client.is_enabled());
    client.kill();
    server.expect("disconnected");
    assert!(!server.client().is_enabled());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_socket_that_lingers_does_not_block_the_server() {
    send_lingering_sockets(1);
}

#[test]
fn more_descriptors_than_are_taken_do_not_block_the_server_either() {
    send_lingering_sockets(253);
}

#[test]
fn a_client_that_leaves_more_descriptors_than_can_be_closed_makes_way() {
    let (server, mut client) = server_with_an_armed_watchdog();
    let (socket, _peer) = lingering();
    let reset = message(1, RESET, 0, &[]);
    client.send_with_fds(&reset, &[socket.as_fd()]);
    drop(socket);
    assert_eq!(client.receive().unwrap().error, EINVAL);
    // The thread that closes is busy for a minute. These wait for it, and the last of them find no room.
    let (pipe, _other) = UnixStream::pair().unwrap();
    for _ in 0..3 {
        client.send_with_fds(&reset, &[pipe.as_fd(); 253]);
    }
    client.kill();
    let started = Instant::now();
    assert!(!server.client().is_enabled());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_client_that_says_nothing_does_not_keep_a_vmm_out() {
    let server = Server::harmless();
    let silent: Vec<UnixStream> = (0..3).map(|_| server.stream()).collect();
    server.expect("connected");
    let started = Instant::now();
    let mut client = server.client();
    assert!(!client.is_enabled());
    assert!(started.elapsed() < TIMEOUT);
    drop(silent);
}

/// SET_IRQS that has the server signal INTx, as a test.
fn trigger() -> Vec<u8> {
    words(&[20, 1 | 32, 0, 0, 1])
}

fn server_with_an_interrupt() -> Server {
    Builder::new().options("--socket s --watchdog i6300esb,action=none,interrupt=intx").start()
}

/// Connects eventfds whose counter is full and on which a write blocks, and has each of them signalled. Returns them.
pub fn leave_threads_in_writes(server: &Server, client: &mut Client) -> Vec<OwnedFd> {
    let leave = |index: usize| {
        let full = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        client.connect_interrupt(&full);
        // The server has made it non-blocking. The flags belong to the open file, which this process shares.
        rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
        client.ask(SET_IRQS, &trigger()).unwrap();
        // write of x86-64, and of aarch64.
        server.wait_for_threads(index + 1, "interrupt", &["1", "64"]);
        full
    };
    (0..4).map(leave).collect()
}

#[test]
fn a_client_that_fills_its_eventfd_during_a_signal_does_not_block_the_server() {
    let server = server_with_an_interrupt();
    let mut client = server.client();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    let interrupt = eventfd(0, EventfdFlags::empty()).unwrap();
    client.connect_interrupt(&interrupt);
    let is_ready = Arc::new(Barrier::new(2));
    let (ready, last) = (is_ready.clone(), interrupt.try_clone().unwrap());
    thread::spawn(move || {
        for round in 0u64.. {
            ready.wait();
            let (now, delay) = (Instant::now(), Duration::from_nanos(round * 7919 % 50_000));
            while now.elapsed() < delay {}
            // Takes the last room in the counter, or waits until the test empties it.
            rustix::io::write(&last, &1u64.to_ne_bytes()).unwrap();
            ready.wait();
        }
    });
    let started = Instant::now();
    while started.elapsed() < RACE {
        // Room for one signal, and from then on blocking.
        rustix::fs::fcntl_setfl(&interrupt, OFlags::NONBLOCK).unwrap();
        while rustix::io::read(&interrupt, &mut [0; 8]).is_ok() {}
        let _ = rustix::io::write(&interrupt, &(u64::MAX - 2).to_ne_bytes());
        rustix::fs::fcntl_setfl(&interrupt, OFlags::empty()).unwrap();
        client.send(&message(1, SET_IRQS, 0, &trigger()));
        is_ready.wait();
        assert_eq!(client.receive().expect("a reply").error, 0);
        rustix::io::read(&interrupt, &mut [0; 8]).unwrap();
        is_ready.wait();
    }
    // The watchdog's own thread raises this one.
    client.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
}

#[test]
fn threads_that_wait_for_eventfds_are_bounded_and_keep_nothing_but_interrupts() {
    let server = server_with_an_interrupt();
    let mut client = server.client();
    let _unread = leave_threads_in_writes(&server, &mut client);
    for _ in 0..20 {
        let interrupt = eventfd(0, EventfdFlags::empty()).unwrap();
        client.connect_interrupt(&interrupt);
        assert_eq!(client.ask(SET_IRQS, &trigger()), Err(EBUSY));
    }
    drop(client);
    let mut next = server.client();
    next.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert!(next.timed_out());
    server.wait_for_threads(4, "interrupt", &["1", "64"]);
}

/// Not a test: a VMM in a process of its own, which arms its watchdog, leaves its socket to another process, and ends.
#[test]
#[expect(clippy::zombie_processes, reason = "it outlives this process")]
fn connects_and_ends() {
    let Ok(socket) = env::var(SOCKET) else {
        return;
    };
    let mut client = Client::connect(socket.as_ref());
    client.negotiate();
    client.arm(60_000);
    let socket = OwnedFd::from(client.stream.try_clone().unwrap());
    Command::new("sleep")
        .arg("60")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    client.kill();
}

/// A VMM in a process of its own.
pub struct Vmm(Child);

impl Vmm {
    /// Connects to the socket of this name, and arms its watchdog with a short timeout.
    pub fn start(server: &Server, socket: &str) -> Self {
        let mut vmm = Command::new(env::current_exe().unwrap());
        vmm.args(["tenants::arms_and_waits", "--exact"]).env(SOCKET, server.path(socket));
        Self(vmm.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: the process of a [`Vmm`], which ends when its standard input does.
#[test]
fn arms_and_waits() {
    let Ok(socket) = env::var(SOCKET) else {
        return;
    };
    let mut client = Client::connect(socket.as_ref());
    client.negotiate();
    client.arm(1);
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Checks that an event names both processes, and how to accept them.
fn names_both(event: &Value, vmm: &Vmm) {
    let (own, other) = (std::process::id(), vmm.0.id());
    let reason = event["reason"].as_str().unwrap();
    let expected =
        format!("served by process {own}, and the VMM is process {other} (accepted with --any-control-process)");
    assert!(reason.contains(&expected), "{event}");
}

fn with_qmp(options: &str) -> (Server, FakeQmp) {
    let builder = Builder::new().options("--socket s --qmp q").options(options);
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    (builder.start(), qmp)
}

#[test]
fn an_action_is_not_sent_to_a_qmp_socket_of_another_process() {
    let (server, qmp) = with_qmp("--watchdog i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let vmm = Vmm::start(&server, "s");
    names_both(&server.expect("foreign-control"), &vmm);
    for attempt in 1..=3 {
        assert_eq!(server.expect("expiry")["attempt"], attempt);
        names_both(&server.expect("action-failed"), &vmm);
    }
    qmp.no_command(QUIET);
}

#[test]
fn an_operator_may_accept_a_qmp_socket_of_another_process() {
    let (server, qmp) = with_qmp("--watchdog i6300esb,action=reset --any-control-process");
    let mut qmp = qmp.accept(&server, true);
    let _vmm = Vmm::start(&server, "s");
    qmp.answer("system_reset", json!({}));
    server.expect_none("foreign-control", QUIET);
}

#[test]
fn an_action_is_not_sent_to_an_api_of_another_process() {
    let builder = Builder::new().options("--socket s --cloud-hypervisor c");
    let calls = cloud_hypervisor(&builder.path().join("c"), vec!["HTTP/1.1 204 No Content\r\n\r\n"]);
    let server = builder.start();
    let vmm = Vmm::start(&server, "s");
    // It is told at the connection, which may be later than the first action.
    let told = server.expect("foreign-control");
    assert_eq!(told["socket"], "Cloud Hypervisor c");
    names_both(&told, &vmm);
    names_both(&server.expect("action-failed"), &vmm);
    assert!(calls.recv_timeout(QUIET).is_err());
    drop(vmm);

    // The VMM of the API itself connects. Nothing is told, and it is called.
    server.expect("disconnected");
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
    assert_eq!(calls.recv_timeout(TIMEOUT).unwrap(), "PUT /api/v1/vm.reboot HTTP/1.1");
}

#[test]
fn the_vmm_of_each_watchdog_counts() {
    let (server, qmp) = with_qmp("--socket t --watchdog i6300esb,action=reset");
    let mut qmp = qmp.accept(&server, true);
    let vmm = Vmm::start(&server, "t");
    let refused = server.expect("action-failed");
    assert_eq!(refused["id"], "watchdog1");
    names_both(&refused, &vmm);
    let mut own = server.client();
    own.arm(1);
    qmp.answer("system_reset", json!({}));
    assert_eq!(server.expect("performed")["id"], "watchdog0");
}

#[test]
fn what_a_qmp_socket_of_another_process_reports_does_not_count() {
    let (server, qmp) = with_qmp("--exec true");
    let mut qmp = qmp.accept(&server, true);
    // No VMM is connected yet, so this may be true.
    qmp.pause(&server);
    let vmm = Vmm::start(&server, "s");
    server.expect("resumed");
    names_both(&server.expect("foreign-control"), &vmm);
    server.expect("performed");
    qmp.event("STOP");
    qmp.event("RESET");
    server.expect_none("paused", QUIET);
    drop(vmm);
    server.expect("paused");
    // The VMM whose QMP it is.
    let mut client = server.client();
    server.expect("connected");
    client.arm(1);
    server.expect_none("expiry", QUIET);
    qmp.resume(&server);
    server.expect("performed");
    qmp.event("RESET");
    assert_eq!(server.expect("vm")["name"], "reset");
}

#[test]
fn a_symbolic_link_to_a_control_socket_is_not_followed() {
    let builder = Builder::new().options("--socket s --qmp q --watchdog i6300esb,action=reset");
    let _qmp = FakeQmp::listen(&builder.path().join("other"));
    std::os::unix::fs::symlink("other", builder.path().join("q")).unwrap();
    let server = builder.start();
    assert_eq!(server.expect("control")["reason"], "it is a symbolic link");
}

#[test]
fn a_new_vmm_replaces_a_connection_whose_process_has_ended() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none").start();
    let mut vmm = Command::new(env::current_exe().unwrap());
    vmm.args(["tenants::connects_and_ends", "--exact"]).env(SOCKET, server.path("s")).stdout(Stdio::null());
    assert!(vmm.status().unwrap().success());
    server.expect("armed");
    // The connection is still open.
    server.expect_none("disconnected", Duration::from_millis(300));
    let mut next = server.client();
    assert!(!next.is_enabled(), "a power-on");
    server.expect("disconnected");
    server.expect_none("refused", Duration::from_millis(400));
}

//! Clients that connect and disconnect, socket files, and the signals that end the server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::Signal;

use crate::client::*;
use crate::server::{Builder, Server};

#[test]
fn a_disconnect_disarms_and_the_next_client_sees_only_the_cause() {
    let server = Server::harmless();
    let mut first = server.client();
    first.arm(1);
    server.expect_where("expiry", |event| event["stage"] == "timeout");
    first.ping();
    drop(first);
    assert_eq!(server.expect("disconnected")["reason"], "left");

    let mut second = server.client();
    assert!(second.timed_out());
    assert!(!second.is_enabled());
    assert_eq!(second.read(BAR0, 0, 4).unwrap(), [0xFF, 0xFF, 0x0F, 0], "power-on values");
    drop(second);
    // The watchdog that the first one has armed does not expire.
    server.expect_none("expiry", Duration::from_millis(200));
}

#[test]
fn a_disconnect_while_armed_causes_no_timeout() {
    let server = Server::harmless();
    let mut client = server.client();
    client.arm(100);
    server.expect("armed");
    drop(client);
    server.expect("disarmed");
    server.expect_none("expiry", Duration::from_millis(500));
}

#[test]
fn reconnecting_works_many_times() {
    let server = Server::harmless();
    let before = open_files(&server);
    for _ in 0..500 {
        // The next one connects possibly before the server has noticed the end of the last one.
        let mut client = server.client();
        client.arm(1000);
    }
    let mut last = server.client();
    assert!(!last.is_enabled());
    assert_eq!(open_files(&server), before + 2, "its socket and its process; no descriptor is lost");
}

fn open_files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

#[test]
fn a_surplus_client_is_refused_and_the_first_one_is_not_disturbed() {
    let server = Server::harmless();
    let mut first = server.client();
    first.arm(60_000);
    for _ in 0..3 {
        let mut second = Client::new(server.stream());
        assert_eq!(second.ask(VERSION, PROPOSAL), Err(EBUSY));
        assert_eq!(second.receive(), None);
    }
    server.expect("refused");
    assert!(first.is_enabled());
    drop(first);
    server.expect("disconnected");
    assert!(!server.client().is_enabled());
}

#[test]
fn silent_surplus_clients_are_refused_counted_and_block_no_other_client() {
    let server = Server::harmless();
    let mut first = server.client();
    let mut silent: Vec<_> = (0..40).map(|_| Client::new(server.stream())).collect();
    assert_eq!(first.read(CONFIG, 0, 2).unwrap(), [0x86, 0x80]);
    for client in &mut silent {
        assert_eq!(client.receive(), None);
        server.expect("refused");
    }
    drop(first);
    server.expect("disconnected");
    server.client();
}

#[test]
fn a_signal_ends_the_server_and_removes_its_sockets() {
    for signal in [Signal::TERM, Signal::INT] {
        let options = "--watchdog i6300esb,action=none --socket s --socket t";
        let mut server = Builder::new().options(options).start();
        // One client in the middle of a message does not matter.
        let mut client = server.client();
        client.send(&[1, 2, 3]);
        let status = server.signal(signal);
        assert!(status.success(), "{status}");
        assert!(!server.path("s").exists() && !server.path("t").exists());
        assert_eq!(client.receive(), None);
    }
}

#[test]
fn a_stopping_server_answers_every_request_it_has_received() {
    // QEMU 11.1 aborts, and its VM with it, when the connection ends with a request unanswered.
    for round in 0..20 {
        let mut server = Server::harmless();
        let mut client = server.client();
        let asking = std::thread::spawn(move || {
            let request = message(1, REGION_READ, 0, &access(CONFIG, 0, 2, &[]));
            while std::io::Write::write_all(&mut client.stream, &request).is_ok() {
                assert!(client.receive().is_some(), "unanswered");
            }
        });
        std::thread::sleep(Duration::from_millis(20 + round));
        assert!(server.signal(Signal::TERM).success());
        asking.join().unwrap();
    }
}

#[test]
fn the_socket_is_for_its_owner_unless_a_mode_is_given() {
    for (option, mode) in [("", 0o600), ("--socket-mode 660", 0o660)] {
        let server = Builder::new().options("--socket s --watchdog i6300esb,action=none").options(option).start();
        assert_eq!(fs::metadata(server.path("s")).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let builder = Builder::new().options("--socket s --watchdog i6300esb,action=none");
    drop(UnixListener::bind(builder.path().join("s")).unwrap());
    let server = builder.start();
    let mut client = server.client();

    let path = server.path("s").display().to_string();
    let second = Builder::new().option("--socket", &path).options("--watchdog i6300esb,action=none");
    let (status, message) = second.fail();
    assert_eq!(status, 1);
    assert_eq!(message, format!("vm-watchdog: socket {path}: another process serves it\n"));
    assert_eq!(client.read(CONFIG, 0, 2).unwrap(), [0x86, 0x80], "the first server still serves its client");
}

#[test]
fn a_live_socket_that_never_accepts_is_refused() {
    let builder = Builder::new().options("--socket s --watchdog i6300esb,action=none");
    let address = SocketAddrUnix::new(builder.path().join("s")).unwrap();
    let socket = || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = vec![socket()];
    while rustix::net::connect(&waiting[waiting.len() - 1], &address).is_ok() {
        waiting.push(socket());
    }
    assert_eq!(builder.fail(), (1, "vm-watchdog: socket s: another process serves it\n".to_owned()));
}

#[test]
fn an_error_is_one_line_and_leaves_no_socket_behind() {
    let builder = Builder::new().options("--watchdog i6300esb,action=none --socket s --socket nowhere/t");
    let folder = builder.path().to_owned();
    let (status, message) = builder.fail();
    assert_eq!((status, message.lines().count()), (1, 1), "{message}");
    assert!(message.contains("nowhere/t"), "{message}");
    assert!(!folder.join("s").exists());

    let (status, message) = Builder::new().options("--socket s").fail();
    assert_eq!((status, message.lines().count()), (2, 1), "{message}");
    assert!(message.contains("the action reset needs one of --qmp"), "{message}");
}

#[test]
fn several_sockets_are_several_watchdogs() {
    let server = Builder::new()
        .options("--socket s --watchdog i6300esb,action=none,id=a --socket t --watchdog i6300esb,action=none,id=b")
        .start();
    let (mut a, mut b) = (server.client_of("s"), server.client_of("t"));
    b.arm(1);
    assert_eq!(server.expect_where("expiry", |event| event["stage"] == "timeout")["id"], "b");
    assert!(b.timed_out() && !a.timed_out());
}

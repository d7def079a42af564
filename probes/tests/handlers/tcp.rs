//! `tcpSocket`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use vm_watchdog_probes::handlers::{Guest, Prober};
use vm_watchdog_probes::{Handler, Outcome, Probe, ProbeKind};

use crate::support::{assert_fails, brief, prober, times_out};

fn attempt(host: Option<&str>, port: u16, address: &str) -> Outcome {
    let guest = Guest { address: Some(address.parse().expect("an address")), agent: None };
    let handler = Handler::TcpSocket { host: host.map(str::to_owned), port };
    prober(handler, &guest).attempt()
}

fn listener(ip: IpAddr) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[test]
fn a_connection_passes_without_any_byte() {
    let (_listener, port) = listener(Ipv4Addr::LOCALHOST.into());
    assert_eq!(attempt(None, port, "127.0.0.1"), Outcome::Success);
}

#[test]
fn a_port_without_a_listener_fails() {
    let (closed, port) = listener(Ipv4Addr::LOCALHOST.into());
    drop(closed);
    let outcome = attempt(None, port, "127.0.0.1");
    assert_fails(&outcome, &format!("TCP probe failed: 127.0.0.1:{port}: Connection refused"));
}

#[test]
fn an_ipv6_address_is_reached_with_and_without_the_interface() {
    let (_listener, port) = listener(Ipv6Addr::LOCALHOST.into());
    for address in ["::1", "::1%lo", "::1%1"] {
        assert_eq!(attempt(None, port, address), Outcome::Success, "{address}");
    }
}

#[test]
fn a_missing_interface_is_an_error_of_the_host() {
    let outcome = attempt(None, 80, "fe80::1%absent0");
    assert!(matches!(outcome, Outcome::Error(_)), "{outcome:?}");
}

#[test]
fn the_host_of_the_probe_wins_over_the_address_of_the_guest() {
    let (_listener, port) = listener(Ipv4Addr::LOCALHOST.into());
    assert_eq!(attempt(Some("127.0.0.1"), port, "192.0.2.1"), Outcome::Success);
    assert_eq!(attempt(Some("localhost"), port, "192.0.2.1"), Outcome::Success);
}

#[test]
fn a_name_that_does_not_exist_fails() {
    let outcome = attempt(Some("absent.invalid"), 80, "127.0.0.1");
    assert_fails(&outcome, "TCP probe failed: absent.invalid:80: ");
}

#[test]
fn a_guest_that_does_not_answer_times_out() {
    // A listener whose backlog is full drops further connections.
    let (listener, _clients) = with_full_backlog();
    let port = listener.local_addr().expect("an address").port();
    let guest = Guest { address: Some(IpAddr::from(Ipv4Addr::LOCALHOST).into()), agent: None };
    times_out(&mut brief(Handler::TcpSocket { host: None, port }, &guest));
}

#[test]
fn a_prober_needs_an_address() {
    let probe = Probe::new(Handler::TcpSocket { host: None, port: 80 });
    let error = Prober::new(ProbeKind::Liveness, &probe, &Guest::default()).expect_err("no address");
    assert_eq!(error.to_string(), "tcpSocket needs a host, or the address of the guest");
    let probe = Probe { failure_threshold: 0, ..probe };
    let error = Prober::new(ProbeKind::Liveness, &probe, &Guest::default()).expect_err("no threshold");
    assert_eq!(error.to_string(), "failureThreshold: invalid value 0: must be at least 1");
}

fn with_full_backlog() -> (TcpListener, Vec<rustix::fd::OwnedFd>) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use std::net::SocketAddr;

    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    rustix::net::listen(&socket, 0).expect("a listener");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("an address");
    // The kernel queues one connection more than the backlog says.
    let clients = (0..3).map(|_| {
        let flags = SocketFlags::NONBLOCK;
        let client = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
        // It is under way.
        let _ = rustix::net::connect(&client, &address);
        client
    });
    let clients = clients.collect();
    std::thread::sleep(std::time::Duration::from_millis(50));
    (listener, clients)
}

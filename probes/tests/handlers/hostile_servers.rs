//! HTTP servers of a hostile guest: each attempt ends in time, and reads a limited number of bytes.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use vm_watchdog_probes::{Outcome, Scheme};

use crate::support::{Server, assert_fails};

/// What a socket of the kernel buffers on its way, generously.
const IN_FLIGHT: usize = 16 << 20;

/// A server that sends `first` and then `rest` without an end, and counts its bytes.
fn flood(first: &'static str, rest: &'static str) -> (Server, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let rest = rest.repeat((4096 / rest.len()).max(1));
    let server = Server::new(move |mut stream| {
        let _ = stream.write_all(first.as_bytes());
        while stream.write_all(rest.as_bytes()).is_ok() {
            count.fetch_add(rest.len(), Ordering::Relaxed);
        }
    });
    (server, sent)
}

/// A server that sends `first`, and then one byte at a time.
fn dribble(first: &'static str, byte: u8) -> Server {
    Server::hostile(move |stream: &mut TcpStream| {
        stream.write_all(first.as_bytes())?;
        loop {
            stream.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(20));
        }
    })
}

#[test]
fn floods_end_the_attempt_long_before_they_end() {
    let rows = [
        ("HTTP/1.1 200 OK\r\n", "X-Header: value\r\n", Some("the head of the response is longer than 65536 bytes")),
        ("HTTP/1.1 200 OK\r\nX-Header: ", "value", Some("the head of the response is longer than 65536 bytes")),
        ("HTTP/1.1 ", "2", Some("the head of the response is longer than 65536 bytes")),
        ("", "\r\n", Some("malformed HTTP response")),
        ("", "a line\n", Some("malformed HTTP response")),
        ("", "\0\u{1}\u{2}", Some("malformed HTTP response")),
        ("", "HTTP/1.1 100 Continue\r\n\r\n", Some("more than 5 responses of status 1xx")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "extension", Some("the size of a chunk is longer")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "0", Some("the size of a chunk is longer")),
        // Bodies without an end: what is read of them is enough.
        ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n", "a million lines\n", None),
        ("HTTP/1.1 200 OK\r\n\r\n", "a million lines\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "x", None),
        ("HTTP/1.1 500 Internal Server Error\r\n\r\n", "x", Some("HTTP probe failed with statuscode: 500")),
    ];
    for (first, rest, message) in rows {
        let (server, sent) = flood(first, rest);
        let outcome = server.get("/");
        match message {
            Some(message) => assert_fails(&outcome, message),
            None => assert_eq!(outcome, Outcome::Success, "{first:?}"),
        }
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < IN_FLIGHT, "{first:?}: {sent} bytes");
    }
}

#[test]
fn many_headers_are_refused() {
    let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300));
    let server = Server::http(move |_| head.clone());
    assert_fails(&server.get("/"), "malformed HTTP response: too many headers");
}

#[test]
fn slow_bytes_do_not_extend_the_attempt() {
    let rows = [
        ("HTTP/1.1 ", b'2'),
        ("HTTP/1.1 200 OK\r\nX: ", b'x'),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b'x'),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b'0'),
    ];
    for (first, byte) in rows {
        dribble(first, byte).times_out(Scheme::Http, &[]);
    }
}

#[test]
fn slow_redirects_share_one_timeout() {
    let server = Server::http(|_| {
        thread::sleep(Duration::from_millis(300));
        "HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n".to_owned()
    });
    server.times_out(Scheme::Http, &[]);
}

#[test]
fn a_guest_that_does_not_read_is_not_waited_for() {
    let server = Server::new(|_stream| thread::sleep(Duration::from_secs(60)));
    let long = "x".repeat(4 << 20);
    server.times_out(Scheme::Http, &[("X-Long", long.as_str()), ("X-Longer", long.as_str())]);
}

#[test]
fn a_guest_that_resets_the_connection_fails() {
    let server = Server::hostile(|stream| {
        stream.shutdown(std::net::Shutdown::Both)?;
        Err(io::Error::other("closed"))
    });
    assert_fails(&server.get("/"), "HTTP probe failed: GET ");
}

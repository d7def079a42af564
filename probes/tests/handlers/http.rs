//! `httpGet` over HTTP: the request, the responses that pass, and the messages of those that fail.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use vm_watchdog_probes::handlers::Guest;
use vm_watchdog_probes::{Handler, Outcome, Scheme};

use crate::support::{Server, assert_fails, prober, response};

#[test]
fn the_request_is_kubelets() {
    let server = Server::http(|_| response("200 OK", "ok"));
    assert_eq!(server.get("/healthz?full=1"), Outcome::Success);
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "GET /healthz?full=1 HTTP/1.1\r\nHost: {}\r\nUser-Agent: vm-watchdog/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        server.address
    );
    assert_eq!(server.last_request(), expected);
}

#[test]
fn a_path_gets_its_slash_and_its_escapes() {
    let server = Server::http(|_| response("200 OK", ""));
    for (path, target) in [("healthz", "/healthz"), ("", "/"), ("/a b\r\nX: 1", "/a%20b%0D%0AX:%201")] {
        assert_eq!(server.get(path), Outcome::Success);
        assert!(server.last_request().starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{path:?}");
    }
}

#[test]
fn headers_of_the_probe_are_sent_and_replace_those_of_the_request() {
    let server = Server::http(|_| response("200 OK", ""));
    let headers = [
        ("host", "app.example"),
        ("X-Custom", "Awesome"),
        ("X-Custom", "again"),
        ("user-agent", "mine/1"),
        ("ACCEPT", "text/plain"),
        ("Connection", "keep-alive"),
        ("Content-Length", "5"),
    ];
    assert_eq!(server.get_with("/", &headers), Outcome::Success);
    let expected = "GET / HTTP/1.1\r\nHost: app.example\r\nUser-Agent: mine/1\r\nAccept: text/plain\r\nConnection: close\r\nX-Custom: Awesome\r\nX-Custom: again\r\n\r\n";
    assert_eq!(server.last_request(), expected);

    assert_eq!(server.get_with("/", &[("Accept", ""), ("User-Agent", "")]), Outcome::Success);
    let request = server.last_request();
    assert!(!request.contains("Accept") && !request.contains("User-Agent"), "{request}");
}

#[test]
fn a_status_from_200_to_399_passes() {
    let server = Server::http(|target| response(&format!("{} Status", &target[1..]), ""));
    for status in [200, 201, 204, 206, 299] {
        assert_eq!(server.get(&format!("/{status}")), Outcome::Success, "{status}");
    }
    for status in [300, 302, 304, 399] {
        let outcome = server.get(&format!("/{status}"));
        assert!(outcome.passes(), "{outcome:?}");
    }
    for status in [400, 404, 500, 503, 599, 101, 199, 999] {
        if status == 199 {
            // Another response has to follow.
            assert_fails(&server.get("/199"), "the connection has ended");
            continue;
        }
        let expected = Outcome::Failure(format!("HTTP probe failed with statuscode: {status}"));
        assert_eq!(server.get(&format!("/{status}")), expected);
    }
}

#[test]
fn a_body_may_have_a_length_be_chunked_or_end_with_the_connection() {
    let responses = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;name=value\r\n!\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\n\r\nok".to_owned(),
        "HTTP/1.1 200\n\nlines may end without a carriage return".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        // More than the probe reads.
        response("200 OK", &"x".repeat(100 << 10)),
    ];
    for response in responses {
        let answer = response.clone();
        assert_eq!(Server::http(move |_| answer.clone()).get("/"), Outcome::Success, "{response:.80}");
    }
}

#[test]
fn a_response_that_is_whole_passes_while_the_connection_stays_open() {
    for response in [
        "200 OK\r\nContent-Length: 2\r\n\r\nok",
        "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "200 OK\r\nContent-Length: 0\r\n\r\n",
        "204 No Content\r\n\r\n",
    ] {
        let server = Server::new(move |mut stream| {
            write!(stream, "HTTP/1.1 {response}").expect("the client reads");
            thread::sleep(Duration::from_secs(60));
        });
        assert_eq!(server.get("/"), Outcome::Success, "{response}");
    }
}

#[test]
fn a_malformed_response_fails_with_its_reason() {
    let rows = [
        ("", "the connection has ended before the head"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "the connection has ended before the head"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "the connection has ended before the body"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "malformed Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nok", "malformed Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "malformed Content-Length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "unknown Transfer-Encoding"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "malformed chunk"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n",
            "the end of a chunk is longer than 2 bytes",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            "the connection has ended before the size",
        ),
        ("HTTP/1.1 20 OK\r\n\r\n", "malformed HTTP response"),
        ("SSH-2.0-OpenSSH_9.2p1\r\n", "malformed HTTP response"),
        ("\x16\x03\x01\x02", "malformed HTTP response"),
    ];
    for (answer, message) in rows {
        let outcome = Server::http(move |_| answer.to_owned()).get("/healthz");
        assert_fails(&outcome, message);
        assert!(outcome.message().is_some_and(|text| text.starts_with("HTTP probe failed: GET http://127.0.0.1:")));
    }
}

#[test]
fn a_guest_that_refuses_the_connection_fails() {
    let server = Server::http(|_| String::new());
    let port = server.address.port();
    let handler = Handler::HttpGet {
        scheme: Scheme::Http,
        host: Some("127.0.0.2".into()),
        port,
        path: "/".into(),
        headers: vec![],
    };
    let outcome = prober(handler, &Guest::default()).attempt();
    assert_fails(&outcome, &format!("HTTP probe failed: GET http://127.0.0.2:{port}/: Connection refused"));
}

#[test]
fn an_ipv6_guest_has_brackets_in_its_host_header() {
    let server = Server::on(IpAddr::from(Ipv6Addr::LOCALHOST), |mut stream| {
        let mut bytes = [0; 1024];
        let count = std::io::Read::read(&mut stream, &mut bytes).expect("a request");
        let is_right = String::from_utf8_lossy(&bytes[..count]).contains("\r\nHost: [::1]:");
        let status = if is_right { "200 OK" } else { "400 Bad Request" };
        stream.write_all(response(status, "").as_bytes()).expect("the client reads");
    });
    assert_eq!(server.get("/"), Outcome::Success);
}

#[test]
fn one_prober_makes_any_number_of_attempts() {
    let server = Server::http(|_| response("200 OK", ""));
    let mut prober = server.prober(Scheme::Http, "/", &[]);
    for _ in 0..20 {
        assert_eq!(prober.attempt(), Outcome::Success);
    }
}

#[test]
fn the_timeout_covers_the_body() {
    let server = Server::new(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok");
        thread::sleep(Duration::from_secs(60));
    });
    server.times_out(Scheme::Http, &[]);
}

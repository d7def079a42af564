//! Redirects as kubelet follows them: on the same host, ten at most; one to another host passes with a warning.

use std::sync::Arc;

use vm_watchdog_probes::handlers::Guest;
use vm_watchdog_probes::{Handler, Outcome, Scheme};

use crate::support::{Server, assert_fails, prober, response};

fn redirect(status: u16, location: &str) -> String {
    format!("HTTP/1.1 {status} Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
}

/// A server that redirects `/start` to this location.
fn server(location: &str) -> Server {
    let location = location.to_owned();
    Server::http(move |target| match target {
        "/start" => redirect(302, &location),
        "/end" => response("200 OK", ""),
        _ => response("404 Not Found", ""),
    })
}

#[test]
fn a_redirect_on_the_same_host_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::http(move |target| match target {
            "/start" => redirect(status, "/end"),
            _ => response("503 Service Unavailable", ""),
        });
        assert_fails(&server.get("/start"), "HTTP probe failed with statuscode: 503");
        assert!(server.last_request().starts_with("GET /end HTTP/1.1\r\n"), "{status}");
    }
}

#[test]
fn a_location_may_be_relative_or_a_url_of_the_same_host() {
    for location in ["/end", "end", "./x/../end", "/end#fragment"] {
        assert_eq!(server(location).get("/start"), Outcome::Success, "{location}");
    }
    let server = Arc::new(Server::http(|target| {
        let (port, rest) = target[1..].split_once('/').unwrap_or_default();
        match rest {
            "start" => redirect(302, &format!("http://127.0.0.1:{port}/{port}/end")),
            _ => response("200 OK", ""),
        }
    }));
    let port = server.address.port();
    assert_eq!(server.get(&format!("/{port}/start")), Outcome::Success);
    assert_eq!(server.requests.lock().expect("no panic").len(), 2);
}

#[test]
fn ten_redirects_are_followed_and_the_eleventh_fails() {
    let server = Server::http(|target| match target[1..].parse::<u32>() {
        Ok(0) => response("200 OK", ""),
        Ok(left) => redirect(302, &format!("/{}", left - 1)),
        Err(_) => redirect(302, "/around"),
    });
    assert_eq!(server.get("/10"), Outcome::Success);
    assert_fails(&server.get("/11"), "stopped after 10 redirects");
    assert_fails(&server.get("/around"), "stopped after 10 redirects");
}

#[test]
fn a_redirect_to_another_host_passes_with_a_warning_and_is_not_followed() {
    for location in ["http://192.0.2.1/end", "https://login.example/", "//127.0.0.2/end", "http://localhost/"] {
        let server = server(location);
        let expected = format!("a redirect to another host is not followed: {location}");
        assert_eq!(server.get("/start"), Outcome::Warning(expected));
        assert_eq!(server.requests.lock().expect("no panic").len(), 1);
    }
    // The port is the same, and the host is not.
    let server = Server::http(|target| redirect(302, &format!("http://127.0.0.2:{}/", &target[1..])));
    let outcome = server.get(&format!("/{}", server.address.port()));
    assert!(matches!(outcome, Outcome::Warning(_)), "{outcome:?}");
}

/// With a port of the host that is forwarded to the guest, the probe's address is the host's own.
#[test]
fn a_guest_cannot_send_the_probe_to_other_ports_of_the_host() {
    let private = Server::http(|_| response("200 OK", ""));
    let server = server(&format!("http://127.0.0.1:{}/shutdown", private.address.port()));
    assert!(matches!(server.get("/start"), Outcome::Warning(_)));
    assert!(private.requests.lock().expect("no panic").is_empty());
}

#[test]
fn a_redirect_without_a_usable_location() {
    let nowhere = Server::http(|_| response("302 Found", ""));
    assert_eq!(nowhere.get("/"), Outcome::Warning("the status 302 has no redirect to follow".to_owned()));
    for location in ["ftp://127.0.0.1/", "http://127.0.0.1:99999/", "http://[::1/"] {
        assert_fails(&server(location).get("/start"), "redirect to an invalid location");
    }
    assert_fails(&server(&format!("/{}", "x".repeat(9000))).get("/start"), "the Location is longer than 8192 bytes");
}

#[test]
fn the_text_of_a_location_cannot_write_to_the_terminal() {
    let server = Server::http(|_| redirect(302, "http://\u{9b}31mother\u{80}/"));
    let outcome = server.get("/");
    let message = outcome.message().expect("not a success");
    assert!(!message.contains(char::is_control), "{message:?}");
}

#[test]
fn a_long_location_is_cut_in_a_message() {
    let answers = [
        ("nonsense".to_owned(), "malformed HTTP response"),
        (redirect(302, "ftp://127.0.0.1/"), "redirect to an invalid location"),
    ];
    for (answer, expected) in answers {
        let server = Server::http(move |target| match target {
            "/start" => redirect(302, &format!("/{}", "x".repeat(8000))),
            _ => answer.clone(),
        });
        let outcome = server.get("/start");
        assert_fails(&outcome, expected);
        let length = outcome.message().expect("a failure").len();
        assert!(length < 1000, "a message of {length} bytes");
    }
}

#[test]
fn headers_go_along_and_the_host_header_only_with_a_relative_location() {
    let server = Server::http(|target| match target {
        "/relative" => redirect(302, "/end"),
        _ => response("200 OK", ""),
    });
    let headers = [("Host", "app.example"), ("X-Token", "secret")];
    assert_eq!(server.get_with("/relative", &headers), Outcome::Success);
    let request = server.last_request();
    assert!(request.contains("\r\nHost: app.example\r\n") && request.contains("\r\nX-Token: secret\r\n"), "{request}");
}

#[test]
fn a_name_is_the_same_host_in_upper_case() {
    let server = Server::http(|target| match target {
        "/start" => redirect(302, "//LOCALHOST/end"),
        _ => response("200 OK", ""),
    });
    let handler = Handler::HttpGet {
        scheme: Scheme::Http,
        host: Some("localhost".to_owned()),
        port: server.address.port(),
        path: "/start".to_owned(),
        headers: Vec::new(),
    };
    // The same host, and another port of the loopback interface.
    let outcome = prober(handler, &Guest::default()).attempt();
    assert_eq!(outcome, Outcome::Warning("a redirect to another host is not followed: //LOCALHOST/end".to_owned()));
}

//! `httpGet`: one GET request, and those that its redirects lead to. `httparse` parses the responses, `rustls` does TLS.
//! A client for HTTP does not fit: each byte of an attempt, also those of the TLS handshake, has to come before one deadline
//! and count towards one limit, and kubelet's rule for redirects is its own.

mod response;
mod tls;
mod url;

use std::io::{self, BufRead, BufReader, Write};
use std::sync::Arc;

use crate::handlers::deadline::{Deadline, DeadlineStream};
use crate::handlers::fault::outcome_of;
use crate::handlers::http::response::Response;
use crate::handlers::http::tls::Tls;
use crate::handlers::http::url::Url;
use crate::handlers::resolve::{Connector, Resolve};
use crate::handlers::text::untrusted;
use crate::outcome::Outcome;
use crate::probe::Scheme;

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;
/// How many bytes a connection receives.
const BUDGET: usize = 1 << 20;
/// What the probe calls itself.
const USER_AGENT: &str = concat!("vm-watchdog/", env!("CARGO_PKG_VERSION"));
/// Headers that belong to the connection, and are not taken from the probe.
const OF_THE_CONNECTION: [&str; 4] = ["Connection", "Content-Length", "Transfer-Encoding", "Trailer"];

#[derive(Debug)]
pub struct HttpGet {
    url: Url,
    headers: Vec<(String, String)>,
    connector: Connector,
    tls: Tls,
}

/// Where a response leads.
enum Next {
    End(Outcome),
    Follow(Url),
}

impl HttpGet {
    pub fn new(scheme: Scheme, host: &str, port: u16, path: &str, headers: Vec<(String, String)>) -> Self {
        let host_header = header(&headers, "Host").filter(|value| !value.is_empty()).map(str::to_owned);
        let url = Url::new(scheme, host, port, path, host_header);
        Self { url, headers, connector: Connector::default(), tls: Tls::default() }
    }

    pub fn resolve_by(&mut self, resolver: Arc<dyn Resolve>) {
        self.connector.resolve_by(resolver);
    }

    pub fn attempt(&mut self, deadline: Deadline) -> Outcome {
        self.follow(|this, url| this.get(url, deadline))
    }

    /// The same over connections that `connect` makes, without TLS.
    #[cfg(fuzzing)]
    pub fn attempt_over<S: io::Read + Write>(&mut self, mut connect: impl FnMut() -> S) -> Outcome {
        self.follow(|this, url| this.exchange(connect(), &this.request(url), url, true))
    }

    /// Gets the URL, and those that redirects lead to.
    fn follow(&mut self, mut get: impl FnMut(&mut Self, &Url) -> io::Result<Next>) -> Outcome {
        let mut url = self.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            match get(self, &url) {
                Ok(Next::End(outcome)) => return outcome,
                Ok(Next::Follow(next)) => url = next,
                Err(error) => return outcome_of(&failed(&url), &error),
            }
        }
        Outcome::Failure(format!("{}: stopped after {MOST_REDIRECTS} redirects", failed(&self.url)))
    }

    fn get(&mut self, url: &Url, deadline: Deadline) -> io::Result<Next> {
        let socket = self.connector.connect(&url.host, url.port, deadline)?;
        // Where the host forwards a port of its own to the guest, its other ports are not the guest's.
        let (local, peer) = (socket.local_addr()?, socket.peer_addr()?);
        let forwarded = peer.ip().is_loopback() || local.ip() == peer.ip();
        let stream = DeadlineStream::new(socket, deadline, BUDGET);
        let request = self.request(url);
        match url.scheme {
            Scheme::Http => self.exchange(stream, &request, url, forwarded),
            Scheme::Https => self.exchange(self.tls.connect(stream, &url.host, peer.ip())?, &request, url, forwarded),
        }
    }

    fn exchange(
        &self,
        mut stream: impl io::Read + Write,
        request: &str,
        url: &Url,
        forwarded: bool,
    ) -> io::Result<Next> {
        // A guest may answer and close before it has read the request.
        let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
        let mut reader = BufReader::with_capacity(4 << 10, stream);
        let response = match (Response::read(&mut reader), sent) {
            (Ok(response), _) => response,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        self.next(&response, &mut reader, url, forwarded)
    }

    fn next(&self, response: &Response, reader: &mut impl BufRead, url: &Url, forwarded: bool) -> io::Result<Next> {
        if let (301 | 302 | 303 | 307 | 308, Some(location)) = (response.status, &response.location) {
            let shown = untrusted(location);
            let Some(next) = url.follow(location) else {
                let message = format!("{}: redirect to an invalid location {shown:?}", failed(url));
                return Ok(Next::End(Outcome::Failure(message)));
            };
            let leaves = !next.host.is_same(&self.url.host) || (forwarded && next.port != url.port);
            return Ok(match leaves {
                true => Next::End(Outcome::Warning(format!("a redirect to another host is not followed: {shown}"))),
                false => Next::Follow(next),
            });
        }
        response.read_body(reader)?;
        Ok(Next::End(match response.status {
            200..300 => Outcome::Success,
            status @ 300..400 => Outcome::Warning(format!("the status {status} has no redirect to follow")),
            status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        }))
    }

    fn request(&self, url: &Url) -> String {
        let mut request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", url.target, url.host_header());
        for (name, default) in [("User-Agent", USER_AGENT), ("Accept", "*/*")] {
            // A header that the probe has empties the default, and an empty one is not sent.
            let value = header(&self.headers, name).unwrap_or(default);
            if !value.is_empty() {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        request.push_str("Connection: close\r\n");
        let is_ours = |name: &str| {
            let mut ours = ["Host", "User-Agent", "Accept"].into_iter().chain(OF_THE_CONNECTION);
            ours.any(|our| name.eq_ignore_ascii_case(our))
        };
        for (name, value) in self.headers.iter().filter(|(name, _)| !is_ours(name)) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request
    }
}

/// The start of a message. A URL that a guest has redirected to may be long.
fn failed(url: &Url) -> String {
    format!("HTTP probe failed: GET {}", untrusted(url.to_string().as_bytes()))
}

/// The first header with this name.
fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

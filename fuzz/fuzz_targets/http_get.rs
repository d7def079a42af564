//! A hostile guest that answers an `httpGet` probe, with redirects and answers without end.
//!
//! The probe sends well-formed requests to the same host, eleven at most, reads a bounded number of bytes of each answer,
//! and succeeds only after a 2xx. Its message is short and has no control characters.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/http_get
//! cargo +nightly fuzz run http_get fuzz/corpus/http_get fuzz/seeds/http_get -- -max_total_time=30
//! ```

#![no_main]

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_probes::Outcome;
use vm_watchdog_probes::handlers::fuzzing::http_get;

/// How much a probe may read of one answer: six heads of 64 KiB, the body, and a buffer.
const MOST: usize = 512 << 10;
const FRAGMENTS: [&str; 26] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 204 No Content\r\n",
    "HTTP/1.1 302 Found\r\n",
    "HTTP/1.1 307 \r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching\r\n",
    "HTTP/1.1 404 Not Found\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "Location: ",
    "/next",
    "http://10.0.2.15:8080/",
    "HTTPS://10.0.2.15:8080",
    "//10.0.2.15:8080/a?b#c",
    "http://other.example/",
    "http://[fd00::1]:8080/",
    "../%0d%0aX: y",
    "Content-Length: ",
    "5",
    "18446744073709551615",
    "Transfer-Encoding: chunked",
    "\r\n",
    "\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "fffffffffffffff\r\n",
    "x",
];

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Fragment(u8),
    Repeated(u8, u16),
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Answer<'a> {
    pieces: Vec<Piece<'a>>,
    /// Which fragment follows without end.
    endless: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    path: &'a str,
    has_headers: bool,
    answers: Vec<Answer<'a>>,
    /// How many bytes come at a time.
    cut: u8,
}

/// The end of a connection that the probe has.
struct Connection {
    answer: Vec<u8>,
    endless: &'static [u8],
    read: usize,
    cut: usize,
    requests: Rc<RefCell<Vec<Vec<u8>>>>,
}

fn fragment(index: u8) -> &'static [u8] {
    FRAGMENTS[usize::from(index) % FRAGMENTS.len()].as_bytes()
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(self.read <= MOST, "more than {MOST} bytes of an answer are read");
        let mut count = 0;
        for byte in buffer.iter_mut().take(self.cut) {
            *byte = match self.answer.get(self.read) {
                Some(byte) => *byte,
                None if self.endless.is_empty() => break,
                None => self.endless[(self.read - self.answer.len()) % self.endless.len()],
            };
            (self.read, count) = (self.read + 1, count + 1);
        }
        Ok(count)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.requests.borrow_mut().last_mut().expect("a connection").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: Input<'_>| {
    let requests = Rc::<RefCell<Vec<Vec<u8>>>>::default();
    let mut last = Vec::new();
    let mut answers = input.answers.iter();
    let connect = || {
        requests.borrow_mut().push(Vec::new());
        let answer = answers.next();
        let mut bytes = Vec::new();
        for piece in answer.iter().flat_map(|answer| &answer.pieces).take(100) {
            match piece {
                Piece::Fragment(index) => bytes.extend(fragment(*index)),
                Piece::Repeated(index, times) => bytes.extend(fragment(*index).repeat(usize::from(*times % 8192))),
                Piece::Bytes(piece) => bytes.extend(*piece),
            }
            bytes.truncate(1 << 20);
        }
        let endless = answer.and_then(|answer| answer.endless).map_or(&b""[..], fragment);
        last = [bytes.as_slice(), endless].concat();
        let cut = usize::from(input.cut) * 16 + 1;
        Connection { answer: bytes, endless, read: 0, cut, requests: requests.clone() }
    };
    let headers = [("X-Probe", "1"), ("User-Agent", ""), ("Connection", "keep-alive")];
    let headers = headers.into_iter().filter(|_| input.has_headers);
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let outcome = http_get("10.0.2.15", 8080, input.path, headers, connect);

    let requests = requests.borrow();
    assert!((1..=11).contains(&requests.len()), "{} requests", requests.len());
    requests.iter().for_each(|request| check_request(request));
    match outcome {
        Outcome::Success => {
            let has_success = |version: &[u8]| last.windows(version.len()).any(|bytes| bytes == version);
            assert!(has_success(b"HTTP/1.1 2") || has_success(b"HTTP/1.0 2"), "{}", last.escape_ascii());
        }
        Outcome::Warning(message) | Outcome::Failure(message) => {
            assert!(!message.contains(char::is_control), "{message:?}");
            assert!(message.len() <= 3 * input.path.len() + 2000, "a message of {} bytes: {message}", message.len());
        }
        other => panic!("a guest causes no error of the host: {other}"),
    }
});

fn check_request(request: &[u8]) {
    let text = std::str::from_utf8(request).expect("ASCII");
    let lines = text.strip_suffix("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let mut lines = lines.split("\r\n");
    let first = lines.next().expect("a line");
    let target = first.strip_prefix("GET /").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    let target = target.unwrap_or_else(|| panic!("{first:?}"));
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{first:?}");
    assert_eq!(lines.next(), Some("Host: 10.0.2.15:8080"));
    for line in lines {
        let names = ["User-Agent", "Accept", "Connection", "X-Probe"];
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
        assert!(names.contains(&name) && value.bytes().all(|byte| byte.is_ascii_graphic()), "{line:?}");
    }
}

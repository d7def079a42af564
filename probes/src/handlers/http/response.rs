//! A response: its head, and as much of its body as tells that it is there.

use std::io::{self, BufRead, Read};

use httparse::Status;

/// How long a head may be.
const LONGEST_HEAD: usize = 64 << 10;
/// How many headers it may have.
const MOST_HEADERS: usize = 256;
/// How much of a body is read.
const LONGEST_BODY: u64 = 10 << 10;
/// How many responses of status 1xx may come before the one that counts.
const MOST_INFORMATIONAL: usize = 5;
/// How long the line with the size of a chunk may be.
const LONGEST_CHUNK_LINE: usize = 4 << 10;
/// How long a `Location` may be.
const LONGEST_LOCATION: usize = 8 << 10;

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The value of `Location`, as the guest sent it.
    pub location: Option<Vec<u8>>,
    body: Body,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    EndOfStream,
}

impl Response {
    /// Reads the head of the response that counts.
    ///
    /// # Errors
    ///
    /// The error of the stream; [`io::ErrorKind::InvalidData`] for a response that is malformed or exceeds a limit.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        for _ in 0..=MOST_INFORMATIONAL {
            let response = Self::parse(&read_head(reader)?)?;
            // The status 101 ends HTTP, and so does the response.
            if !(100..200).contains(&response.status) || response.status == 101 {
                return Ok(response);
            }
        }
        Err(malformed(format!("more than {MOST_INFORMATIONAL} responses of status 1xx")))
    }

    fn parse(head: &[u8]) -> io::Result<Self> {
        let mut headers = vec![httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(head) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) => return Err(malformed("malformed HTTP response")),
            Err(error) => return Err(malformed(format!("malformed HTTP response: {error}"))),
        }
        let status = parsed.code.unwrap_or_default();
        let values = |name: &'static str| {
            let named = parsed.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| header.value)
        };
        let location = values("Location").next().map(<[u8]>::to_vec).filter(|location| !location.is_empty());
        if location.as_ref().is_some_and(|location| location.len() > LONGEST_LOCATION) {
            return Err(malformed(format!("the Location is longer than {LONGEST_LOCATION} bytes")));
        }
        let body = match (status, values("Transfer-Encoding").next()) {
            (100..200 | 204 | 304, _) => Body::Length(0),
            (_, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
            (_, Some(_)) => return Err(malformed("unknown Transfer-Encoding: accepted is chunked")),
            (_, None) => content_length(values("Content-Length"))?,
        };
        Ok(Self { status, location, body })
    }

    /// Reads the body up to a limit.
    ///
    /// # Errors
    ///
    /// The error of the stream, or that it has ended before the body.
    pub fn read_body(&self, reader: &mut impl BufRead) -> io::Result<()> {
        match self.body {
            Body::Length(length) => skip(reader, length.min(LONGEST_BODY)),
            Body::EndOfStream => io::copy(&mut reader.take(LONGEST_BODY), &mut io::sink()).map(drop),
            Body::Chunked => skip_chunks(reader),
        }
    }
}

/// Reads lines until an empty one.
fn read_head(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    // Garbage may have no line that ends.
    let start = reader.fill_buf()?;
    if !start.starts_with(&b"HTTP/"[..start.len().min(5)]) {
        return Err(malformed("malformed HTTP response"));
    }
    let mut head = Vec::new();
    loop {
        let start = head.len();
        read_line(reader, LONGEST_HEAD, "the head of the response", &mut head)?;
        if let b"\n" | b"\r\n" = &head[start..] {
            return Ok(head);
        }
    }
}

/// Appends a line to `buffer`, with its end, if both have `limit` bytes at most.
fn read_line(reader: &mut impl BufRead, limit: usize, what: &str, buffer: &mut Vec<u8>) -> io::Result<()> {
    let left = (limit - buffer.len()) as u64;
    let count = reader.by_ref().take(left).read_until(b'\n', buffer)?;
    match buffer.last() {
        Some(b'\n') if count > 0 => Ok(()),
        _ if buffer.len() == limit => Err(malformed(format!("{what} is longer than {limit} bytes"))),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the connection has ended before {what}"))),
    }
}

fn content_length<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> io::Result<Body> {
    let Some(first) = values.next() else { return Ok(Body::EndOfStream) };
    let digits = std::str::from_utf8(first).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|digits| digits.parse().ok()).filter(|_| values.all(|value| value == first));
    length.map(Body::Length).ok_or_else(|| malformed("malformed Content-Length"))
}

fn skip(reader: &mut impl BufRead, length: u64) -> io::Result<()> {
    match io::copy(&mut reader.take(length), &mut io::sink())? {
        skipped if skipped == length => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended before the body")),
    }
}

fn skip_chunks(reader: &mut impl BufRead) -> io::Result<()> {
    let mut left = LONGEST_BODY;
    loop {
        let mut line = Vec::new();
        read_line(reader, LONGEST_CHUNK_LINE, "the size of a chunk", &mut line)?;
        let size = match httparse::parse_chunk_size(&line) {
            Ok(Status::Complete((_, size))) => size,
            _ => return Err(malformed("malformed chunk")),
        };
        if size == 0 {
            return Ok(());
        }
        skip(reader, size.min(left))?;
        if size >= left {
            return Ok(());
        }
        left -= size;
        line.clear();
        read_line(reader, 2, "the end of a chunk", &mut line)?;
        if !matches!(line.as_slice(), b"\n" | b"\r\n") {
            return Err(malformed("malformed chunk"));
        }
    }
}

fn malformed(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

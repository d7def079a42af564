//! Lines of JSON of any length, in limited memory.

use std::io::{self, BufRead};

/// How many bytes of a line are kept.
const LONGEST_LINE: usize = 64 << 10;
/// How many bytes of a string are kept: a multiple of 4, so that Base64 stays valid.
const LONGEST_STRING: usize = 8 << 10;

/// Reads a line without its end. Long strings are cut, as the output of a command may be long.
///
/// # Errors
///
/// The error of the reader; that the agent has closed the connection; [`io::ErrorKind::InvalidData`] for a line that is
/// too long with its strings cut.
pub fn read_line(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Line::default();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Err(closed());
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        bytes[..end.unwrap_or(bytes.len())].iter().for_each(|&byte| line.push(byte));
        let read = end.map_or(bytes.len(), |end| end + 1);
        reader.consume(read);
        if line.kept.len() > LONGEST_LINE {
            let message = format!("an answer is longer than {LONGEST_LINE} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if end.is_some() {
            return Ok(line.kept);
        }
    }
}

/// The error of a connection that the agent has closed.
pub fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended before the answer")
}

#[derive(Default)]
struct Line {
    kept: Vec<u8>,
    in_string: bool,
    /// How many bytes of the string are kept.
    length: usize,
    escape: Escape,
}

/// Where an escape sequence is: it is kept or cut as a whole.
#[derive(Clone, Copy, Default)]
enum Escape {
    #[default]
    None,
    /// After the backslash.
    Started { kept: bool },
    /// In the hexadecimal digits.
    Digits { kept: bool, left: u8 },
}

impl Line {
    fn push(&mut self, byte: u8) {
        let keep = if self.in_string { self.push_to_string(byte) } else { self.push_outside(byte) };
        if keep {
            self.kept.push(byte);
        }
    }

    fn push_outside(&mut self, byte: u8) -> bool {
        if byte == b'"' {
            self.in_string = true;
            self.length = 0;
        }
        true
    }

    fn push_to_string(&mut self, byte: u8) -> bool {
        let has_room = self.length < LONGEST_STRING;
        let keep = match self.escape {
            Escape::Started { kept } | Escape::Digits { kept, .. } => kept,
            Escape::None => has_room || byte == b'"',
        };
        self.escape = match (self.escape, byte) {
            (Escape::None, b'\\') => Escape::Started { kept: keep },
            (Escape::Started { kept }, b'u') => Escape::Digits { kept, left: 4 },
            (Escape::Digits { kept, left: left @ 2.. }, _) => Escape::Digits { kept, left: left - 1 },
            (Escape::None, b'"') => {
                self.in_string = false;
                Escape::None
            }
            _ => Escape::None,
        };
        self.length += usize::from(keep);
        keep
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use serde_json::Value;

    use super::{LONGEST_LINE, LONGEST_STRING, read_line};

    fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
        // A small buffer, so that chunks end everywhere.
        read_line(&mut BufReader::with_capacity(7, bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_read_as_it_is() {
        let line = br#"{"a":"b\"c\\","d":"\u00e4\\","e":[1,"\\\""]}"#;
        let text = [line, b"\nnext".as_slice()].concat();
        assert_eq!(read(&text).as_deref(), Ok(line.as_slice()));
    }

    #[test]
    fn a_long_string_is_cut_and_the_line_stays_valid() {
        for unit in ["x", "\\n", "\\\"", "\\\\", "\\u0041"] {
            let text = format!("{{\"out\":\"{}\",\"code\":7}}\n", unit.repeat(300_000));
            let line = read(text.as_bytes()).expect("a line");
            let value: Value = serde_json::from_slice(&line).expect("valid JSON");
            assert_eq!(value["code"], 7, "{unit}");
            let length = value["out"].as_str().expect("a string").len();
            assert!((LONGEST_STRING / 6..=LONGEST_STRING).contains(&length), "{unit}: {length}");
        }
    }

    #[test]
    fn a_line_that_is_long_without_long_strings_is_refused() {
        let text = [b"[".repeat(LONGEST_LINE + 8), b"\n".to_vec()].concat();
        assert_eq!(read(&text), Err("an answer is longer than 65536 bytes".to_owned()));
        let text = [b"\"x\",".repeat(LONGEST_LINE), b"\n".to_vec()].concat();
        assert!(read(&text).is_err());
    }

    #[test]
    fn a_line_that_does_not_end_is_refused() {
        assert!(read(b"{}").is_err());
    }
}

//! The protocol of a guest and its harness: messages on a device that the guest's kernel does not print to.
//!
//! A guest sends frames, one per line: `{vmwd LENGTH PAYLOAD}`. The payload is the message in base64, and the length is
//! that of the payload. Base64 has neither spaces nor brackets, so a frame with other text in it is not decoded as a
//! message. The harness sends lines: a number and a shell command.
//!
//! [`GUEST`] implements the guest's side in shell.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Shell functions for a guest's init. `frame` sends its standard input as a message; `obey DEVICE ...` announces the
/// boot and executes commands; `feed` and `end_feeder` start and end a watchdog daemon.
pub const GUEST: &str = include_str!("guest.sh");

const FRAME_START: &str = "{vmwd ";
const FRAME_END: char = '}';

/// Message of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The guest has booted and accepts commands. Has the arguments of `obey`.
    Ready(String),
    /// The guest has executed a command.
    Done {
        /// The number of the command.
        number: u32,
        /// Its exit status.
        status: i32,
        /// Its output, without trailing white space.
        output: String,
    },
    /// The guest has received a line that is not a command: it lost a part of one.
    Damaged,
    /// Other text that the guest sends on its own.
    Said(String),
}

/// A part of the bytes received on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A complete message.
    Message(Message),
    /// A line, or the rest of a line, that is not a message.
    Text(String),
}

/// Decodes messages from a stream of bytes, in chunks of any size.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
}

impl Decoder {
    /// Adds a chunk, and returns the pieces that it completes.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                pieces.extend(self.finish());
            }
        }
        pieces
    }

    /// Returns the pieces of the last, unterminated line.
    pub fn finish(&mut self) -> Vec<Piece> {
        let line = std::mem::take(&mut self.line);
        pieces_of(&String::from_utf8_lossy(&line).replace('\r', ""))
    }
}

fn pieces_of(mut line: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    while let Some((before, frame)) = line.split_once(FRAME_START) {
        text += before;
        match first_message(frame) {
            Some((message, after)) => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(Piece::Message(message));
                line = after;
            }
            // The frame is damaged; the next one may start inside it.
            None => {
                text += FRAME_START;
                line = frame;
            }
        }
    }
    text += line;
    if !text.trim_end_matches('\n').is_empty() {
        pieces.push(Piece::Text(text));
    }
    pieces
}

/// Decodes a frame without its start mark. Returns the message and the text after the frame.
fn first_message(frame: &str) -> Option<(Message, &str)> {
    let (body, after) = frame.split_once(FRAME_END)?;
    let (length, payload) = body.split_once(' ')?;
    if length.parse() != Ok(payload.len()) {
        return None;
    }
    let payload = BASE64_STANDARD.decode(payload).ok()?;
    Some((Message::parse(&String::from_utf8_lossy(&payload))?, after))
}

impl Message {
    /// The text of a [`Said`](Self::Said) message.
    pub fn said(&self) -> Option<&str> {
        match self {
            Self::Said(text) => Some(text),
            _ => None,
        }
    }

    fn parse(payload: &str) -> Option<Self> {
        if payload.trim_end() == "again" {
            return Some(Self::Damaged);
        }
        let (kind, text) = payload.split_once(' ')?;
        let text = text.trim_end();
        match kind {
            "ready" => Some(Self::Ready(text.to_owned())),
            "said" => Some(Self::Said(text.to_owned())),
            "done" => {
                let (head, output) = text.split_once('\n').unwrap_or((text, ""));
                let (number, status) = head.split_once(' ')?;
                Some(Self::Done {
                    number: number.parse().ok()?,
                    status: status.parse().ok()?,
                    output: output.to_owned(),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that Linux printed into a frame when both shared a console.
    const KERNEL: &str = "[    7.658403] watchdog: watchdog0: watchdog did not stop!";

    fn frame(message: &str) -> String {
        let payload = BASE64_STANDARD.encode(message);
        format!("{{vmwd {} {payload}}}\n", payload.len())
    }

    fn decode(stream: &str) -> Vec<Piece> {
        let mut decoder = Decoder::default();
        let mut pieces = decoder.feed(stream.as_bytes());
        pieces.extend(decoder.finish());
        pieces
    }

    fn messages(stream: &str) -> Vec<Message> {
        let message = |piece| match piece {
            Piece::Message(message) => Some(message),
            Piece::Text(_) => None,
        };
        decode(stream).into_iter().filter_map(message).collect()
    }

    fn said(text: &str) -> Message {
        Message::Said(text.to_owned())
    }

    #[test]
    fn messages_keep_their_order_and_their_lines() {
        let stream = [frame("ready boot 32\n"), frame("done 7 1\none\n two\n\n"), frame("said killed\n")].concat();
        let done = Message::Done { number: 7, status: 1, output: "one\n two".to_owned() };
        assert_eq!(messages(&stream), [Message::Ready("boot 32".to_owned()), done, said("killed")]);
        let silent = Message::Done { number: 1, status: 0, output: String::new() };
        assert_eq!(messages(&frame("done 1 0\n")), [silent]);
    }

    #[test]
    fn kernel_text_beside_a_message_is_ignored() {
        let message = frame("said done");
        let line = message.trim_end();
        for stream in [
            format!("{KERNEL}{line}\r\n"),
            format!("{line}{KERNEL}\n"),
            format!("{KERNEL}\n{line}\n{KERNEL}\n"),
            format!("{{vmwd 12 {KERNEL}{line}\n"),
            format!("{{vmwd }} {{vmwd {line}"),
        ] {
            assert_eq!(messages(&stream), [said("done")], "{stream:?}");
        }
        assert_eq!(messages(&format!("{line}{line}")), [said("done"), said("done")]);
    }

    #[test]
    fn kernel_text_inside_a_frame_never_produces_another_message() {
        let message = frame("said killed at last");
        for at in 1..message.len() - 1 {
            for inserted in [KERNEL, "\n", "A", "AAAA", " ", "}"] {
                let stream = format!("{}{inserted}{}", &message[..at], &message[at..]);
                let messages = messages(&stream);
                assert!(messages.iter().all(|message| *message == said("killed at last")), "{stream:?}: {messages:?}");
                assert!(inserted == "}" || messages.is_empty(), "{stream:?}: {messages:?}");
            }
        }
        for cut in 1..message.len() - 1 {
            assert_eq!(messages(&message[..cut]), [], "{cut} characters");
            assert_eq!(messages(&message[cut..]), [], "without {cut} characters");
        }
    }

    #[test]
    fn a_message_after_a_damaged_one_is_decoded() {
        let (broken, whole) = (frame("said one"), frame("said two"));
        for at in 1..broken.len() - 1 {
            assert_eq!(messages(&format!("{}{whole}", &broken[..at])), [said("two")], "{at} characters");
        }
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let stream = format!("{KERNEL}\n{}{KERNEL}{}", frame("said one"), frame("done 3 0\ntwo"));
        let whole = decode(&stream);
        for size in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut pieces: Vec<_> = stream.as_bytes().chunks(size).flat_map(|chunk| decoder.feed(chunk)).collect();
            pieces.extend(decoder.finish());
            assert_eq!(pieces, whole, "chunks of {size}");
        }
    }

    #[test]
    fn a_message_is_decoded_when_its_line_is_complete() {
        let message = frame("said one");
        let (start, end) = message.as_bytes().split_at(message.len() - 1);
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(start), []);
        assert_eq!(decoder.feed(end), [Piece::Message(said("one"))]);
    }

    #[test]
    fn lines_other_than_messages_are_kept_as_text() {
        assert_eq!(
            decode("plain\n{vmwd nonsense}\n"),
            ["plain\n", "{vmwd nonsense}\n"].map(|text| Piece::Text(text.into()))
        );
        assert_eq!(messages(&frame("sung aloud")), []);
    }

    /// Runs the guest's side in the shell of this machine.
    #[test]
    fn the_decoder_decodes_the_frames_of_the_shell() {
        let script = format!("{GUEST}\n{{ echo 'done 5 0'; seq 100; }} | frame; echo said \"it's {{so}}\" | frame");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let numbers: Vec<String> = (1..=100).map(|number| number.to_string()).collect();
        let done = Message::Done { number: 5, status: 0, output: numbers.join("\n") };
        assert_eq!(messages(&String::from_utf8(output.stdout).unwrap()), [done, said("it's {so}")]);
    }
}

//! Cuts the byte stream of a client into messages, in memory of a fixed size.

use crate::wire::{Header, MAX_MESSAGE, MAX_SKIPPED};

/// The longest body that is kept.
const MAX_BODY: usize = MAX_MESSAGE - Header::SIZE;

/// Cuts a byte stream into messages.
///
/// [`space`](Self::space) never extends past the header or the body that is being received, so that descriptors that
/// arrive together with some bytes belong to the same message as those bytes.
///
/// ```
/// use vm_watchdog_vfio_user::Framer;
///
/// let mut framer = Framer::new();
/// let reset = [7u16, 13].map(u16::to_ne_bytes).concat();
/// let size_and_flags = [16u32, 0, 0].map(u32::to_ne_bytes).concat();
/// for byte in [reset, size_and_flags].concat() {
///     framer.space()[0] = byte;
///     framer.filled(1);
/// }
/// let message = framer.take().expect("a whole message");
/// assert_eq!((message.header.id, message.header.command, message.body), (7, 13, Some(&[][..])));
/// ```
#[derive(Debug)]
pub struct Framer {
    part: Part,
    /// How many bytes of the part have been received.
    have: usize,
    header: [u8; Header::SIZE],
    body: Box<[u8; MAX_BODY]>,
}

/// What is being received.
#[derive(Clone, Copy, Debug)]
enum Part {
    Header,
    /// A body of this length.
    Body(usize),
    /// A body of this length that is too long to keep.
    Skipped(usize),
    /// Nothing more: the size in the last header is invalid, or too large to skip.
    Broken,
}

/// A whole message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// The rest; `None` if it was too long to keep.
    pub body: Option<&'a [u8]>,
    /// The stream ends here: with this size, the begin of the next message is unknown.
    pub is_last: bool,
}

impl Framer {
    /// A framer at the start of a stream.
    pub fn new() -> Self {
        Self { part: Part::Header, have: 0, header: [0; Header::SIZE], body: Box::new([0; MAX_BODY]) }
    }

    /// Where to store the next bytes. Empty only if a whole message can be [taken](Self::take) or the stream is broken.
    pub fn space(&mut self) -> &mut [u8] {
        match self.part {
            Part::Header => &mut self.header[self.have..],
            Part::Body(length) => &mut self.body[self.have..length],
            Part::Skipped(length) => &mut self.body[..(length - self.have).min(MAX_BODY)],
            Part::Broken => &mut [],
        }
    }

    /// Notes that the first `count` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, count: usize) {
        self.have += count;
        if matches!(self.part, Part::Header) && self.have == Header::SIZE {
            self.have = 0;
            let size = Header::parse(self.header).size as usize;
            self.part = match size.checked_sub(Header::SIZE) {
                Some(length @ ..=MAX_BODY) => Part::Body(length),
                Some(length) if size <= MAX_SKIPPED => Part::Skipped(length),
                _ => Part::Broken,
            };
        }
    }

    /// Whether an incomplete message has been received.
    pub fn is_within_message(&self) -> bool {
        self.have > 0 || !matches!(self.part, Part::Header)
    }

    /// The message, once it is complete.
    pub fn take(&mut self) -> Option<Message<'_>> {
        let (body, is_last) = match self.part {
            Part::Body(length) if length == self.have => (Some(&self.body[..length]), false),
            Part::Skipped(length) if length == self.have => (None, false),
            Part::Broken => (None, true),
            _ => return None,
        };
        if !is_last {
            self.part = Part::Header;
            self.have = 0;
        }
        Some(Message { header: Header::parse(self.header), body, is_last })
    }
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u32) -> Vec<u8> {
        [vec![1, 0, 13, 0], size.to_ne_bytes().to_vec(), vec![0; 8]].concat()
    }

    /// Passes a stream in pieces of at most `piece` bytes, and returns the length of each body found.
    fn cut(mut stream: &[u8], piece: usize) -> Vec<(Option<usize>, bool)> {
        let mut framer = Framer::new();
        let mut messages = Vec::new();
        while !stream.is_empty() {
            let space = framer.space();
            let count = space.len().min(piece).min(stream.len());
            if count == 0 {
                break;
            }
            space[..count].copy_from_slice(&stream[..count]);
            framer.filled(count);
            stream = &stream[count..];
            if let Some(message) = framer.take() {
                messages.push((message.body.map(<[u8]>::len), message.is_last));
            }
        }
        messages
    }

    #[test]
    fn messages_are_found_for_every_split_of_the_stream() {
        let long = MAX_MESSAGE + 1;
        let stream = [
            header(16),
            header(20),
            vec![9; 4],
            header(long as u32),
            vec![9; long - 16],
            header(MAX_MESSAGE as u32),
            vec![9; MAX_BODY],
            header(16),
        ]
        .concat();
        for piece in [1, 3, 16, 17, 100_000] {
            let expected = [Some(0), Some(4), None, Some(MAX_BODY), Some(0)].map(|body| (body, false));
            assert_eq!(cut(&stream, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn an_invalid_size_ends_the_stream() {
        for size in [0, 15, MAX_SKIPPED as u32 + 1, u32::MAX] {
            let stream = [header(size), header(16)].concat();
            assert_eq!(cut(&stream, 7), [(None, true)], "{size}");
        }
    }
}

//! Cuts the byte stream of a client into messages, in memory of a fixed size.

use crate::wire::{Header, MAX_MESSAGE, MAX_SKIPPED};

/// Cuts a byte stream into messages.
///
/// One read may fill it with several messages, and with a part of the next one.
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
    buffer: Box<[u8; MAX_MESSAGE]>,
    /// Where the next message begins in the buffer.
    begin: usize,
    /// Where the next bytes go.
    end: usize,
    /// The header of a message that is too long to keep, and how much of its body is to come.
    skipped: Option<(Header, usize)>,
    /// How many bytes of the stream were filled in so far.
    received: u64,
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
        Self { buffer: Box::new([0; MAX_MESSAGE]), begin: 0, end: 0, skipped: None, received: 0 }
    }

    /// Where to store the next bytes. Empty only if a whole message can be [taken](Self::take) or the stream is broken.
    pub fn space(&mut self) -> &mut [u8] {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that the first `count` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        self.received += count as u64;
        self.skip();
    }

    /// Drops what belongs to a message that is too long to keep.
    fn skip(&mut self) {
        if let Some((_, to_come)) = &mut self.skipped {
            let skipped = (self.end - self.begin).min(*to_come);
            self.begin += skipped;
            *to_come -= skipped;
        }
    }

    /// Whether an incomplete message has been received, once all complete ones were [taken](Self::take).
    pub fn is_within_message(&self) -> bool {
        self.begin < self.end || self.skipped.is_some()
    }

    /// How many bytes of the stream were filled in so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next message, once it is complete.
    pub fn take(&mut self) -> Option<Message<'_>> {
        self.take_with_end().map(|(message, _)| message)
    }

    /// The next message, once it is complete, and how many bytes of the stream end with it.
    pub(crate) fn take_with_end(&mut self) -> Option<(Message<'_>, u64)> {
        if let Some((header, 0)) = self.skipped {
            self.skipped = None;
            return Some((Message { header, body: None, is_last: false }, self.taken()));
        }
        let (header, _) = self.buffer[self.begin..self.end].split_first_chunk().filter(|_| self.skipped.is_none())?;
        let header = Header::parse(*header);
        let size = header.size as usize;
        let body = self.begin + Header::SIZE;
        if !(Header::SIZE..=MAX_SKIPPED).contains(&size) {
            // The rest of the stream belongs to no message.
            return Some((Message { header, body: None, is_last: true }, self.received));
        }
        if size > MAX_MESSAGE {
            self.begin = body;
            self.skipped = Some((header, size - Header::SIZE));
            self.skip();
            return None;
        }
        let end = self.begin + size;
        if end > self.end {
            return None;
        }
        self.begin = end;
        let taken = self.taken();
        Some((Message { header, body: Some(&self.buffer[body..end]), is_last: false }, taken))
    }

    fn taken(&self) -> u64 {
        self.received - (self.end - self.begin) as u64
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
            while let Some(message) = framer.take() {
                messages.push((message.body.map(<[u8]>::len), message.is_last));
                if message.is_last {
                    return messages;
                }
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
            vec![9; MAX_MESSAGE - 16],
            header(16),
        ]
        .concat();
        for piece in [1, 3, 16, 17, 100_000] {
            let expected = [Some(0), Some(4), None, Some(MAX_MESSAGE - 16), Some(0)].map(|body| (body, false));
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

//! Text of the guest in messages.

/// How many characters of it a message has.
const LENGTH: usize = 200;

/// Untrusted text, sanitized and cut for a message.
pub fn untrusted(bytes: &[u8]) -> String {
    // A character has four bytes at most.
    let start = &bytes[..bytes.len().min(4 * LENGTH)];
    let text = String::from_utf8_lossy(start);
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.trim().chars().take(LENGTH).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::untrusted;

    #[test]
    fn a_message_has_the_start_of_the_guests_text_without_control_characters() {
        assert_eq!(untrusted(b"  not found\n"), "not found");
        assert_eq!(untrusted(b"a\x1b[2Jb\nc\xff"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(untrusted(&[b'x'; 100_000]).len(), 200);
    }
}

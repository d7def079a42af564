//! Text of others in messages.

use std::fmt;

/// How many characters of it a message has.
const LENGTH: usize = 200;

/// A message that may quote a file or another process, for a line of a log: without control characters, and not too long.
pub fn bounded(message: &dyn fmt::Display) -> String {
    let text = message.to_string();
    let plain = text.chars().take(LENGTH).map(|char| if char.is_control() { '\u{FFFD}' } else { char });
    let end = if text.chars().nth(LENGTH).is_some() { "..." } else { "" };
    plain.collect::<String>() + end
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn a_message_is_one_line_of_200_characters_at_most() {
        assert_eq!(bounded(&"not \"found\""), "not \"found\"");
        assert_eq!(bounded(&"a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(bounded(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(bounded(&"é".repeat(201)), "é".repeat(200) + "...");
    }
}

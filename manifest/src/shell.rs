//! The words of a command line, as a shell splits them, with their positions. Nothing is expanded.

use crate::problem::Position;

/// A word, without its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub position: Position,
}

/// A quote without its end, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unclosed(pub Position);

/// Splits the text at blanks, line breaks, and `;`, `|` and `&`. Backslash, single and double quotes act as in POSIX, and `#` at
/// the beginning of a word begins a comment.
pub fn words(text: &str) -> Result<Vec<Word>, Unclosed> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = Chars { chars: text.chars(), position: Position::START };
    loop {
        let position = chars.position;
        let Some(char) = chars.next() else { break };
        match char {
            ' ' | '\t' | '\n' | '\r' | ';' | '|' | '&' => words.extend(word.take()),
            '#' if word.is_none() => while chars.next().is_some_and(|char| char != '\n') {},
            '\\' => match chars.next() {
                // The line goes on.
                Some('\n') => {}
                // A carriage return before the line feed.
                Some('\r') if chars.chars.as_str().starts_with('\n') => drop(chars.next()),
                char => at(&mut word, position).extend(char),
            },
            '\'' => quote(at(&mut word, position), &mut chars, false).ok_or(Unclosed(position))?,
            '"' => quote(at(&mut word, position), &mut chars, true).ok_or(Unclosed(position))?,
            char => at(&mut word, position).push(char),
        }
    }
    words.extend(word);
    Ok(words)
}

/// The text of the word, which begins here if there is none yet.
fn at(word: &mut Option<Word>, position: Position) -> &mut String {
    &mut word.get_or_insert_with(|| Word { text: String::new(), position }).text
}

/// Appends what is quoted. `None` if the quote does not end.
fn quote(text: &mut String, chars: &mut Chars<'_>, is_double: bool) -> Option<()> {
    let end = if is_double { '"' } else { '\'' };
    loop {
        match chars.next()? {
            char if char == end => return Some(()),
            '\\' if is_double => match chars.next()? {
                '\n' => {}
                char @ ('$' | '`' | '"' | '\\') => text.push(char),
                char => text.extend(['\\', char]),
            },
            char => text.push(char),
        }
    }
}

struct Chars<'a> {
    chars: std::str::Chars<'a>,
    position: Position,
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let char = self.chars.next()?;
        let Position { line, column } = self.position;
        self.position = if char == '\n' {
            Position { line: line.saturating_add(1), column: 1 }
        } else {
            Position { line, column: column.saturating_add(1) }
        };
        Some(char)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        let cases: [(&str, &[&str]); 9] = [
            ("a  b\tc\nd", &["a", "b", "c", "d"]),
            ("a \\\n  b\\\nc \\\r\n d", &["a", "bc", "d"]),
            ("'a b' \"c $d\" e'f'\"g\"", &["a b", "c $d", "efg"]),
            ("\"a\\\"b\\\\c\\d\" 'a\\b'", &["a\"b\\c\\d", "a\\b"]),
            ("a\\ b \\-c", &["a b", "-c"]),
            ("'' \"\"", &["", ""]),
            ("# c 'd\na #b\nc#d", &["a", "c#d"]),
            ("a; b&& c|d &", &["a", "b", "c", "d"]),
            ("a\\", &["a"]),
        ];
        for (text, expected) in cases {
            let words = words(text).unwrap();
            assert_eq!(words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn words_know_where_they_begin() {
        let words = words("a \\\n  'b c' ö d").unwrap();
        let positions: Vec<_> = words.iter().map(|word| (word.position.line, word.position.column)).collect();
        assert_eq!(positions, [(1, 1), (2, 3), (2, 9), (2, 11)]);
    }

    #[test]
    fn a_quote_without_an_end_is_found_where_it_begins() {
        for text in ["a\nb 'c d", "a\nb \"c\\\"", "a\nb \"c\\"] {
            assert_eq!(words(text), Err(Unclosed(Position { line: 2, column: 3 })), "{text}");
        }
    }
}

//! A hostile server that `vm-watchdog status` asks: its answer, as the table and the line of `--json` show it.
//!
//! Nothing of the answer acts on the terminal, lines are not wider than the terminal, colours change no character, and the
//! JSON is one line. A status is read back as it was, from the text that `serve` writes for it.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/status
//! cargo +nightly fuzz run status fuzz/corpus/status fuzz/seeds/status -- -max_total_time=30
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};
use vm_watchdog_cli::fuzzing::status_screen;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
const MINIMUM_WIDTH: usize = 20;

fuzz_target!(|input: &[u8]| {
    // Bit 7: the bytes are a body. The others: the width of the terminal, none if they are 0.
    let [choices, bytes @ ..] = input else { return };
    let width = Some(usize::from(*choices & 0x7F)).filter(|width| *width > 0).map(|width| width.max(MINIMUM_WIDTH));
    let answer = if choices & 0x80 != 0 { [HEAD, bytes].concat() } else { bytes.to_vec() };

    let screen = status_screen(&answer, width, false);
    for line in &screen.lines {
        assert!(line.chars().all(acts_on_nothing), "{line:?}");
        assert!(width.is_none_or(|width| line.width() <= width), "{} columns: {line}", line.width());
    }
    let coloured = status_screen(&answer, width, true);
    let plain: Vec<_> = coloured.lines.iter().map(|line| without_colour(line)).collect();
    assert_eq!(plain.iter().map(|line| line.trim_end()).collect::<Vec<_>>(), screen.lines);

    let line = screen.json.strip_suffix('\n').expect("a line");
    assert!(line.chars().all(acts_on_nothing), "{line:?}");
    let value: Value = serde_json::from_str(line).expect("JSON");
    let vm = &value["vms"][0];
    assert_eq!(vm["status"].is_null(), screen.status.is_none());
    assert_ne!(vm["status"].is_null(), vm["error"].is_null());
    if let Some(status) = screen.status {
        let again = status_screen(&[HEAD, status.as_bytes()].concat(), width, false);
        assert_eq!(again.status.as_deref(), Some(status.as_str()));
        assert_eq!(again.lines, screen.lines);
    }
});

/// A character that a terminal shows, and does nothing else with.
fn acts_on_nothing(char: char) -> bool {
    char.width().is_some_and(|width| width > 0) && !matches!(char, '\u{2028}' | '\u{2029}')
}

/// The line without the sequences that select colours and weights.
fn without_colour(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (sequence, text) = part.split_once('m').expect("a sequence");
        assert!(sequence.starts_with('[') && sequence[1..].bytes().all(|byte| b"0123456789;".contains(&byte)));
        plain.push_str(text);
    }
    plain
}

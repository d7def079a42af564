//! A hostile Cloud Hypervisor: the answer of its HTTP API, in pieces.
//!
//! An action counts as performed only if the status is a 2xx. The status does not depend on how the answer is cut, and no
//! more than the longest header and one piece is kept.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/cloud_hypervisor
//! cargo +nightly fuzz run cloud_hypervisor fuzz/corpus/cloud_hypervisor fuzz/seeds/cloud_hypervisor -- -max_total_time=30
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_watchdog_cli::fuzzing::cloud_hypervisor::{Answer, LONGEST_ANSWER, outcome};

const FRAGMENTS: [&str; 14] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 \r\n",
    "HTTP/1.0 204 No Content\n",
    "HTTP/1.1 500 Internal Server Error\r\n",
    "HTTP/1.1 100 Continue\r\n",
    "HTTP/1.1 2",
    "Server: Cloud Hypervisor API\r\n",
    "Content-Length: 0\r\n",
    "Connection: keep-alive\r\n",
    "X: ",
    "\r\n",
    "\n",
    " ",
    "y",
];

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Fragment(u8),
    Repeated(u8, u16),
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    pieces: Vec<Piece<'a>>,
    /// How many bytes come at a time.
    cut: u16,
}

fuzz_target!(|input: Input<'_>| {
    let mut bytes = Vec::new();
    for piece in &input.pieces {
        let fragment = |index: u8| FRAGMENTS[usize::from(index) % FRAGMENTS.len()].as_bytes();
        match piece {
            Piece::Fragment(index) => bytes.extend(fragment(*index)),
            Piece::Repeated(index, times) => bytes.extend(fragment(*index).repeat(usize::from(*times % 4096))),
            Piece::Bytes(piece) => bytes.extend(*piece),
        }
        if bytes.len() > 1 << 16 {
            break;
        }
    }
    // As many as one read returns at most.
    let in_pieces = receive(&bytes, usize::from(input.cut) % 1024 + 1);
    if bytes.len() <= LONGEST_ANSWER {
        let at_once = Answer::default().receive(&bytes);
        assert_eq!(at_once.ok(), in_pieces.as_ref().ok().copied());
    }
    let Ok(status) = in_pieces else { return };
    let is_performed = outcome("vm.reboot", status).is_ok();
    assert_eq!(is_performed, status.is_some_and(|status| (200..300).contains(&status)));
    if is_performed {
        let text = bytes.trim_ascii_start();
        assert!(text.starts_with(b"HTTP/1.1 2") || text.starts_with(b"HTTP/1.0 2"), "{}", bytes.escape_ascii());
        assert!(text.windows(2).any(|end| end == b"\n\n") || text.windows(3).any(|end| end == b"\n\r\n"));
    }
});

fn receive(bytes: &[u8], cut: usize) -> std::io::Result<Option<u16>> {
    let mut answer = Answer::default();
    let mut received = 0;
    for piece in bytes.chunks(cut) {
        received += piece.len();
        assert!(received <= LONGEST_ANSWER + 2 * cut, "more is kept");
        if let Some(status) = answer.receive(piece)? {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

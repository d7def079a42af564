//! The bytes of a file, as text of one of the dialects.

use std::str;

use crate::manifest::Dialect;
use crate::problem::{Position, Problem};

/// The longest file that is read, in bytes: 1 MiB.
pub const MAX_LENGTH: usize = 1 << 20;

/// The text, without a byte order mark, if it is not too long, and UTF-8 without NUL.
pub fn text(bytes: &[u8]) -> Result<&str, Problem> {
    let whole = |message: String| Problem::new(Position::START, "", message);
    if bytes.len() > MAX_LENGTH {
        return Err(whole(format!("the file is longer than {MAX_LENGTH} bytes, which is the limit")));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let message = format!("byte {:#04x} is not UTF-8", bytes[error.valid_up_to()]);
        Problem::new(position(valid, valid.len()), "", message)
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(Problem::new(position(text, offset), "", "a NUL byte is not accepted"));
    }
    if text.trim().is_empty() {
        return Err(whole("the file is empty".to_owned()));
    }
    Ok(text)
}

/// The place of a byte offset. It looks at the whole text before it.
pub fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.bytes().filter(|&byte| byte == b'\n').count();
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    Position { line: number(line + 1), column: number(column + 1) }
}

/// A line or column as a number: no text is longer than [`MAX_LENGTH`].
pub fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The dialect, by the first line that is neither empty nor a comment; a script that calls QEMU may have it further down.
pub fn dialect(text: &str) -> Dialect {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let first = lines.next().unwrap_or_default();
    let word = first.split_whitespace().next().unwrap_or_default();
    if word.starts_with('<') {
        return Dialect::Libvirt;
    }
    let is_option = |word: &str| word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic());
    if word.starts_with('-') && is_option(word) {
        return Dialect::Qemu;
    }
    let is_yaml = word.ends_with(':')
        || first.contains(" : ")
        || word == "-"
        || word.starts_with(['{', '[', '"', '\'', '%', '-', '&', '!']);
    let calls_qemu = |line: &str| {
        let is_qemu = |file: &str| file.starts_with("qemu-system-") || file == "qemu-kvm" || file == "qemu";
        let is_program = |word: &str| word.rsplit('/').next().is_some_and(is_qemu);
        line.split_whitespace().any(is_program) || line.starts_with("-device ") || line.starts_with("-watchdog")
    };
    if !is_yaml && (calls_qemu(first) || lines.any(calls_qemu)) { Dialect::Qemu } else { Dialect::KubeVirt }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_tells_the_dialect() {
        let cases = [
            ("<domain/>", Dialect::Libvirt),
            ("\n  <!-- a -->\n<watchdog/>", Dialect::Libvirt),
            ("apiVersion: kubevirt.io/v1", Dialect::KubeVirt),
            ("# -device\n---\nkind: VirtualMachine", Dialect::KubeVirt),
            ("{\"kind\": \"VirtualMachine\"}", Dialect::KubeVirt),
            ("- kind: VirtualMachine", Dialect::KubeVirt),
            ("name: qemu-vm\n  script: |\n    qemu-system-x86_64 -device i6300esb", Dialect::KubeVirt),
            ("-device i6300esb", Dialect::Qemu),
            ("--device i6300esb", Dialect::Qemu),
            ("qemu-system-x86_64 -m 1G", Dialect::Qemu),
            ("#!/bin/sh\nset -e\nexec /usr/bin/qemu-kvm \\\n -m 1G", Dialect::Qemu),
            ("kind : VirtualMachine\nrun: qemu-system-x86_64", Dialect::KubeVirt),
            ("sudo apt install qemu-guest-agent", Dialect::KubeVirt),
            ("anything else", Dialect::KubeVirt),
        ];
        for (text, expected) in cases {
            assert_eq!(dialect(text), expected, "{text}");
        }
    }

    #[test]
    fn columns_are_characters() {
        assert_eq!(position("a\nöx", "a\nö".len()), Position { line: 2, column: 2 });
        assert_eq!(position("", 0), Position::START);
    }
}

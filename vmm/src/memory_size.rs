//! A size of guest memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A size of guest memory, as written on the command line: `256M`, `1G`, `262144K` or plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

/// A text or number that is no size of memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory size {0:?}: accepted is a number with K, M or G behind it, such as 256M, in whole pages of 4K")]
pub struct InvalidMemorySize(String);

impl MemorySize {
    const PAGE: u64 = 4096;

    /// A size in MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = InvalidMemorySize;

    fn from_str(text: &str) -> Result<Self, InvalidMemorySize> {
        let invalid = || InvalidMemorySize(text.to_owned());
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(invalid)?;
        bytes.try_into().map_err(|_| invalid())
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = InvalidMemorySize;

    fn try_from(bytes: u64) -> Result<Self, InvalidMemorySize> {
        if bytes.is_multiple_of(Self::PAGE) { Ok(Self(bytes)) } else { Err(InvalidMemorySize(bytes.to_string())) }
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("256M", 256 << 20), ("1g", 1 << 30), ("64k", 64 << 10), ("8192", 8192), ("0", 0)] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
        assert_eq!(MemorySize::mib(256).to_string(), "256 MiB");
    }

    #[test]
    fn other_sizes_are_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "+1M",
            "1.5G",
            "256MB",
            "many",
            "1",
            "4097",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            let error = text.parse::<MemorySize>().expect_err(text);
            assert!(error.to_string().contains(text));
        }
    }
}

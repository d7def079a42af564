//! Commands for CP, the control program of z/VM. On z/VM, CP executes the guest's command at the timeout.

use core::fmt;

use crate::Request;

/// A command for CP: 1 to 230 bytes of EBCDIC.
///
/// ```
/// use vm_watchdog_devices::Request;
/// use vm_watchdog_devices::diag288::CpCommand;
///
/// let restart = [0xE2, 0xE8, 0xE2, 0xE3, 0xC5, 0xD4, 0x40, 0xD9, 0xC5, 0xE2, 0xE3, 0xC1, 0xD9, 0xE3];
/// let command = CpCommand::from_ebcdic(&restart).expect("not too long");
/// assert_eq!(command.to_string(), "SYSTEM RESTART");
/// assert_eq!(command.request(), Some(Request::Restart));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpCommand {
    text: [u8; CpCommand::MAX_LENGTH],
    /// At least one byte.
    length: u8,
}

/// The request that each CP command stands for. `Operands` says whether the name may be followed by operands.
const REQUESTS: [(&str, Operands, Request); 9] = [
    ("SYSTEM RESTART", Operands::None, Request::Restart),
    ("SYSTEM RESET", Operands::None, Request::Reset),
    ("SYSTEM CLEAR", Operands::None, Request::Reset),
    ("IPL", Operands::Any, Request::Reset),
    ("LOGOFF", Operands::Any, Request::Poweroff),
    ("LOGOUT", Operands::Any, Request::Poweroff),
    ("STOP", Operands::Any, Request::Pause),
    ("VMDUMP", Operands::Any, Request::Dump),
    ("BEGIN", Operands::None, Request::Nothing),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operands {
    None,
    Any,
}

/// The space, in EBCDIC.
const SPACE: u8 = 0x40;
/// Trailing bytes that a C program or a shell may leave: a terminator, line ends, spaces.
const PADDING: [u8; 4] = [0x00, 0x15, 0x25, SPACE];

impl CpCommand {
    /// The longest command that z/VM accepts, in bytes.
    pub const MAX_LENGTH: usize = 230;

    /// A command; `None` if it is empty or too long.
    pub fn from_ebcdic(bytes: &[u8]) -> Option<Self> {
        let mut text = [0; Self::MAX_LENGTH];
        text.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let length = u8::try_from(bytes.len()).ok().filter(|&length| length > 0)?;
        Some(Self { text, length })
    }

    /// The bytes as the guest wrote them.
    pub fn as_ebcdic(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    /// The request that the command stands for; `None` for a command that only z/VM understands. Ignores case and
    /// repeated spaces.
    pub fn request(&self) -> Option<Request> {
        let means = |(name, operands, _): &&(&str, Operands, Request)| self.matches(name, *operands);
        REQUESTS.iter().find(means).map(|&(_, _, request)| request)
    }

    fn matches(&self, name: &str, operands: Operands) -> bool {
        let mut words = self.trimmed().split(|&byte| byte == SPACE).filter(|word| !word.is_empty());
        let is = |word: &[u8], wanted: &str| word.iter().map(|&byte| character(byte)).eq(wanted.chars().map(Some));
        let complete = name.split(' ').all(|wanted| words.next().is_some_and(|word| is(word, wanted)));
        complete && (operands == Operands::Any || words.next().is_none())
    }

    fn trimmed(&self) -> &[u8] {
        let text = self.as_ebcdic();
        let length = text.iter().rposition(|byte| !PADDING.contains(byte)).map_or(0, |last| last + 1);
        &text[..length]
    }
}

/// Writes capital letters, and a full stop for each byte that is not a letter, digit or common sign.
impl fmt::Display for CpCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trimmed().iter().try_for_each(|&byte| write!(f, "{}", character(byte).unwrap_or('.')))
    }
}

impl fmt::Debug for CpCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpCommand({self})")
    }
}

/// The character of a byte that is the same in every EBCDIC code page; letters as capitals.
fn character(byte: u8) -> Option<char> {
    let from = |first: char, start: u8| char::from_u32(u32::from(first) + u32::from(byte - start));
    match byte {
        0x81..=0x89 => from('A', 0x81),
        0x91..=0x99 => from('J', 0x91),
        0xA2..=0xA9 => from('S', 0xA2),
        0xC1..=0xC9 => from('A', 0xC1),
        0xD1..=0xD9 => from('J', 0xD1),
        0xE2..=0xE9 => from('S', 0xE2),
        0xF0..=0xF9 => from('0', 0xF0),
        SPACE => Some(' '),
        // Not 4Bh, the full stop: every byte that is not here prints as one.
        0x4C => Some('<'),
        0x4D => Some('('),
        0x4E => Some('+'),
        0x50 => Some('&'),
        0x5C => Some('*'),
        0x5D => Some(')'),
        0x5E => Some(';'),
        0x60 => Some('-'),
        0x61 => Some('/'),
        0x6B => Some(','),
        0x6C => Some('%'),
        0x6D => Some('_'),
        0x6E => Some('>'),
        0x6F => Some('?'),
        0x7A => Some(':'),
        0x7D => Some('\''),
        0x7E => Some('='),
        _ => None,
    }
}

/// Serializes the bytes as a sequence.
#[cfg(feature = "serde")]
impl serde::Serialize for CpCommand {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.as_ebcdic())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for CpCommand {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> serde::de::Visitor<'de> for Bytes {
            type Value = CpCommand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("1 to 230 bytes of EBCDIC")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut bytes: A) -> Result<CpCommand, A::Error> {
                use serde::de::Error;
                let mut text = [0; CpCommand::MAX_LENGTH];
                let mut length = 0;
                while let Some(byte) = bytes.next_element()? {
                    let place = text.get_mut(length).ok_or_else(|| A::Error::invalid_length(length + 1, &self))?;
                    *place = byte;
                    length += 1;
                }
                CpCommand::from_ebcdic(&text[..length]).ok_or_else(|| A::Error::invalid_length(length, &self))
            }
        }

        deserializer.deserialize_seq(Bytes)
    }
}

//! The messages between the server and a helper: a length of four bytes, little-endian, and JSON.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message.
const LONGEST: usize = 16 << 20;

/// Writes a message.
///
/// # Errors
///
/// It is too long, or the host refuses.
pub fn write<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > LONGEST {
        return Err(too_long());
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    to.write_all(&frame)
}

/// Reads a message; `None` if the other process has closed the socket, or has ended.
///
/// # Errors
///
/// It is too long, cut off or not the JSON of a `T`, or the host refuses.
pub fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return Ok(None),
        outcome => outcome?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(too_long());
    }
    // Read as it comes, so that a length alone takes no memory.
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn too_long() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("a message has more than {LONGEST} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"one").unwrap();
        write(&mut bytes, &[2u8]).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read::<String>(&mut from).unwrap().as_deref(), Some("one"));
        assert_eq!(read::<Vec<u8>>(&mut from).unwrap(), Some(vec![2]));
        assert_eq!(read::<String>(&mut from).unwrap(), None);
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        for bytes in [b"\x02\0\0\0{".as_slice(), b"\0\0\0\0", b"\xff\xff\xff\xff{}"] {
            assert!(read::<serde_json::Value>(bytes).is_err(), "{bytes:?}");
        }
    }
}

//! The VERSION message: protocol version and limits.

use rustix::io::Errno;
use serde_json::{Value, json};

use crate::wire::{Fields, MAX_DATA, MAX_FDS};

/// The only major version of the protocol.
const MAJOR: u16 = 0;
/// The highest minor version that the server knows.
const MINOR: u16 = 1;

/// The longest capabilities that are parsed, which bounds the memory for parsing. QEMU sends a tenth of that.
const LONGEST_CAPABILITIES: usize = 2048;

/// Checks the proposal of a client and returns the body of the reply.
///
/// # Errors
///
/// EINVAL for a malformed body, EMSGSIZE for a body that is too long, EPROTONOSUPPORT for another major version.
pub(crate) fn negotiate(body: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut fields = Fields::new(body);
    let (major, minor) = (fields.u16()?, fields.u16()?);
    check_capabilities(fields.rest())?;
    if major != MAJOR {
        return Err(Errno::PROTONOSUPPORT);
    }
    // Without these limits, clients assume 1 MiB and one descriptor.
    let ours = json!({ "capabilities": { "max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_DATA } });
    let mut reply = [major.to_ne_bytes(), minor.min(MINOR).to_ne_bytes()].concat();
    reply.extend(ours.to_string().bytes());
    reply.push(0);
    Ok(reply)
}

/// The data is optional: a JSON object that ends in a NUL. The server uses no capability of the client, but one of the
/// wrong type shows that the client speaks another protocol.
fn check_capabilities(data: &[u8]) -> Result<(), Errno> {
    let Some((terminator, text)) = data.split_last() else {
        return Ok(());
    };
    if data.len() > LONGEST_CAPABILITIES {
        return Err(Errno::MSGSIZE);
    }
    if *terminator != 0 {
        return Err(Errno::INVAL);
    }
    // serde_json refuses a NUL within, bytes that are no UTF-8, and deep nesting.
    let Ok(Value::Object(version)) = serde_json::from_slice(text) else {
        return Err(Errno::INVAL);
    };
    let capabilities = match version.get("capabilities") {
        None => return Ok(()),
        Some(Value::Object(capabilities)) => capabilities,
        Some(_) => return Err(Errno::INVAL),
    };
    let numbers = ["max_msg_fds", "max_data_xfer_size"].map(|name| capabilities.get(name));
    let sound = numbers.into_iter().flatten().all(Value::is_u64);
    if sound { Ok(()) } else { Err(Errno::INVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(major: u16, minor: u16, data: &[u8]) -> Result<Vec<u8>, Errno> {
        negotiate(&[&major.to_ne_bytes()[..], &minor.to_ne_bytes(), data].concat())
    }

    #[test]
    fn the_reply_is_no_newer_than_the_proposal_and_names_our_limits() {
        for (proposed, replied) in [(0, 0), (1, 1), (7, 1)] {
            let reply = propose(0, proposed, b"{\"capabilities\":{\"max_msg_fds\":8}}\0").unwrap();
            assert_eq!(reply[..4], [0, 0, replied, 0]);
            let (nul, text) = reply[4..].split_last().unwrap();
            assert_eq!(*nul, 0);
            let ours: Value = serde_json::from_slice(text).unwrap();
            assert_eq!(ours, json!({"capabilities": {"max_msg_fds": 1, "max_data_xfer_size": 4096}}));
        }
    }

    #[test]
    fn a_proposal_without_data_is_accepted() {
        assert!(propose(0, 0, b"").is_ok());
        assert!(propose(0, 0, b"{}\0").is_ok());
    }

    #[test]
    fn malformed_proposals_are_refused() {
        for data in [
            &b"\0"[..],
            b"{}",
            b"{}\0\0",
            b"{\"capabi\0lities\":{}}\0",
            b"[]\0",
            b"{\"capabilities\":7}\0",
            b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":\"1\"}}\0",
            b"{\"a\":\"\xFF\xFE\"}\0",
            b"\xFF\0",
            &[&[b'['; 2000][..], &[0]].concat(),
        ] {
            assert_eq!(propose(0, 0, data), Err(Errno::INVAL), "{}", String::from_utf8_lossy(data));
        }
        assert_eq!(propose(0, 0, &[0; 2049]), Err(Errno::MSGSIZE));
        assert_eq!(negotiate(&[0, 0, 1]), Err(Errno::INVAL));
        assert_eq!(propose(1, 0, b""), Err(Errno::PROTONOSUPPORT));
    }
}

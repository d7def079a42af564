//! Whose fault it is that an attempt has no answer.

use std::io;

use rustix::io::Errno;

use crate::outcome::Outcome;

/// The outcome of an attempt that ended with this error: an error if only the host can cause it, otherwise a failure.
pub fn outcome_of(context: &str, error: &io::Error) -> Outcome {
    let message = format!("{context}: {error}");
    match Errno::from_io_error(error) {
        Some(
            Errno::ACCESS
            | Errno::ADDRNOTAVAIL
            | Errno::AFNOSUPPORT
            | Errno::AGAIN
            | Errno::INVAL
            | Errno::MFILE
            | Errno::NAMETOOLONG
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NODEV
            | Errno::NOMEM
            | Errno::PERM,
        ) => Outcome::Error(message),
        // Of a resolver.
        None if error.kind() == io::ErrorKind::Unsupported => Outcome::Error(message),
        _ => Outcome::Failure(message),
    }
}

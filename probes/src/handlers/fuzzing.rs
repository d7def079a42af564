//! What the fuzz targets reach of the handlers: the code between the bytes of a guest and an [`Outcome`]. It exists with
//! `--cfg fuzzing` alone, which cargo-fuzz sets.

use std::io::{self, BufRead, Read, Write};

use crate::handlers::agent::connection::{answer, skip_to};
use crate::handlers::agent::{exec, ping_outcome};
use crate::handlers::fault::outcome_of;
use crate::handlers::http::HttpGet;
use crate::outcome::Outcome;
use crate::probe::Scheme;

/// An attempt of `httpGet` over connections that `connect` makes, without TLS. The host forwards the port.
pub fn http_get<S: Read + Write>(
    host: &str,
    port: u16,
    path: &str,
    headers: Vec<(String, String)>,
    connect: impl FnMut() -> S,
) -> Outcome {
    HttpGet::new(Scheme::Http, host, port, path, headers).attempt_over(connect)
}

/// The outcome of `guestAgentPing`, whose agent sends these bytes.
pub fn ping(reader: &mut impl BufRead) -> Outcome {
    answer(reader, "guest-ping").map_or_else(|error| outcome_of("ping", &error), ping_outcome)
}

/// The outcome of `exec`, whose agent sends these bytes when it is asked whether the command has ended.
pub fn exec_end(reader: &mut impl BufRead) -> Outcome {
    answer(reader, "guest-exec-status").map_or_else(|error| outcome_of("exec", &error), exec::outcome)
}

/// Whether the agent has answered `guest-sync-delimited` with this number.
///
/// # Errors
///
/// Why it has not.
pub fn synchronize(reader: &mut impl BufRead, id: u64) -> io::Result<()> {
    skip_to(reader, id)
}

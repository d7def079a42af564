//! Text or JSON, and times for people.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How entries are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line of text for each entry.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("unknown format {name:?}: accepted are text, json")),
        }
    }
}

/// A time since the start of the VM in nanoseconds, for people.
pub(crate) struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:12.6} s]", Duration::from_nanos(self.0).as_secs_f64())
    }
}

/// A duration in seconds, for people.
pub(crate) fn seconds(nanos: u64) -> String {
    format!("{:.3} s", Duration::from_nanos(nanos).as_secs_f64())
}

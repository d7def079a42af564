//! What an attempt of a probe found.

use std::fmt;

/// What one attempt of a probe found.
///
/// ```
/// use vm_watchdog_probes::Outcome;
///
/// let outcome = Outcome::Failure("HTTP probe failed with statuscode: 500".to_owned());
/// assert!(!outcome.passes());
/// assert_eq!(outcome.to_string(), "failure: HTTP probe failed with statuscode: 500");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest answers as it should.
    Success,
    /// A success with a remark: the message says what the probe did not check.
    Warning(String),
    /// The guest does not answer, or not as it should: the message says why.
    Failure(String),
    /// The host could not run the handler, which says nothing about the guest: the message says why.
    Error(String),
}

impl Outcome {
    /// Whether the attempt counts as a success.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Success | Self::Warning(_))
    }

    /// `success`, `warning`, `failure` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning(_) => "warning",
            Self::Failure(_) => "failure",
            Self::Error(_) => "error",
        }
    }

    /// The message; a success has none.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Success => None,
            Self::Warning(message) | Self::Failure(message) | Self::Error(message) => Some(message),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            None => f.write_str(self.name()),
            Some(message) => write!(f, "{}: {message}", self.name()),
        }
    }
}

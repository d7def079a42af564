//! Why a hook cannot add the watchdog.

/// The longest value in a message, in characters.
const MAX_QUOTED: usize = 60;

/// Why there is no new domain. The VM does not start, and KubeVirt shows the status of the hook; the message is in the log
/// of the sidecar.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// An argument is too long.
    #[error("--{argument}: {length} bytes, accepted are at most {}", super::MAX_LENGTH)]
    TooLong { argument: &'static str, length: usize },
    /// The VM cannot be read.
    #[error("--vmi: no JSON of a VirtualMachineInstance: {0}")]
    Vmi(String),
    /// An annotation of the VM cannot be used.
    #[error("annotation {name}: {message}")]
    Annotation { name: String, message: String },
    /// The XML of the domain cannot be read, or the device does not fit into it.
    #[error("--domain:{line}:{column}: {message}")]
    Domain { line: usize, column: usize, message: String },
    /// The process that runs the server does not do it.
    #[error("the server for the watchdog: {0}")]
    Server(String),
}

impl HookError {
    /// An error at a byte offset of the XML.
    pub fn domain(xml: &str, offset: usize, message: impl Into<String>) -> Self {
        let before = xml.get(..offset).unwrap_or(xml);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Self::Domain { line, column, message: message.into() }
    }
}

/// Text of the input for a message: quoted, without control characters, and not too long.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

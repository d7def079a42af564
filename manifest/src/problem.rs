//! What is wrong with a file, and where.

use std::fmt;
use std::io;

/// The most problems, and the most warnings, that are listed for a file.
const MAX_LISTED: usize = 20;
/// The longest value of the file in a message, in characters.
const MAX_QUOTED: usize = 60;

/// A place in a file. Lines and columns begin at 1; a column is a character.
///
/// ```
/// use vm_watchdog_manifest::Manifest;
///
/// let manifest = Manifest::parse("-", b"qemu-system-x86_64 \\\n  -device i6300esb", None)?;
/// assert_eq!(manifest.watchdogs[0].position.to_string(), "2:11");
/// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong with a file, or probably not meant.
///
/// ```
/// use vm_watchdog_manifest::{Manifest, ManifestError};
///
/// let ManifestError::Invalid { problems, .. } = Manifest::parse("-", b"-device ib700", None).unwrap_err() else { panic!() };
/// assert_eq!((problems[0].position().line, problems[0].path()), (1, "-device"));
/// assert_eq!(problems[0].message(), "unknown watchdog model \"ib700\": accepted are i6300esb, diag288");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    position: Position,
    path: String,
    message: String,
}

impl Problem {
    pub(crate) fn new(position: Position, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { position, path: path.into(), message: message.into() }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The path in the document, `spec.livenessProbe`; empty if the problem is that of the whole file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong, with the value and what is accepted. It has no line break.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, path, message } = self;
        let separator = if path.is_empty() { "" } else { ": " };
        write!(f, "{position}: {path}{separator}{message}")
    }
}

/// A file that cannot be used. Its message has one line for each problem, which begins with the file, the line and the column.
///
/// ```
/// use vm_watchdog_manifest::Manifest;
///
/// let error = Manifest::parse("run.sh", b"-device i6300esb -action watchdog=halt", None).unwrap_err();
/// assert!(error.to_string().starts_with("run.sh:1:26: -action watchdog: unknown watchdog action \"halt\": accepted are "));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// The error of the system.
        source: io::Error,
    },
    /// What is in the file cannot be used.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong with it: one problem at least, in the order of the file.
        problems: Vec<Problem>,
    },
}

fn lines(file: &str, problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{file}:{problem}")).collect::<Vec<_>>().join("\n")
}

/// Collects the problems and warnings of a file, and bounds what is read of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// How many fields and items were looked at.
    visited: usize,
}

impl Report {
    /// How many fields and items of all mappings and lists are looked at. YAML aliases can make a small file a large one.
    const MAX_VISITED: usize = 20_000;

    pub fn error(&mut self, position: Position, path: &str, message: impl Into<String>) {
        push(&mut self.problems, Problem::new(position, path, message));
    }

    pub fn warn(&mut self, position: Position, path: &str, message: impl Into<String>) {
        push(&mut self.warnings, Problem::new(position, path, message));
    }

    /// Counts what is about to be looked at. Once the limit is passed, nothing more may be.
    pub fn visit(&mut self, count: usize, position: Position, path: &str) -> bool {
        let was_within = self.visited <= Self::MAX_VISITED;
        self.visited = self.visited.saturating_add(count).saturating_add(1);
        if self.visited > Self::MAX_VISITED && was_within {
            let message = format!("too large: more than {} fields and items up to here", Self::MAX_VISITED);
            self.error(position, path, message);
        }
        self.visited <= Self::MAX_VISITED
    }

    pub fn has_errors(&self) -> bool {
        !self.problems.is_empty()
    }

    /// How many errors there were so far.
    pub fn error_count(&self) -> usize {
        self.problems.len()
    }

    /// The warnings, or the problems, in the order of the file.
    pub fn finish(self) -> Result<Vec<Problem>, Vec<Problem>> {
        let sorted = |mut list: Vec<Problem>| {
            list.sort_by_key(Problem::position);
            list
        };
        if self.problems.is_empty() { Ok(sorted(self.warnings)) } else { Err(sorted(self.problems)) }
    }
}

fn push(list: &mut Vec<Problem>, problem: Problem) {
    match list.len() {
        0..MAX_LISTED => list.push(problem),
        MAX_LISTED => list.push(Problem::new(problem.position, "", "more problems follow, which are not listed")),
        _ => {}
    }
}

/// Text of the file for a message: quoted, without control characters, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// A name of the file, for paths and messages: quoted only if it is long, or has other characters than letters, digits, hyphens,
/// underscores and those that are given.
pub(crate) fn plain(name: &str, others: &[u8]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || others.contains(&byte);
    if (1..=MAX_QUOTED).contains(&name.len()) && name.bytes().all(is_plain) { name.to_owned() } else { quoted(name) }
}

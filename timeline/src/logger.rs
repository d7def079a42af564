//! Logged errors as entries. Warnings are left out: the library warns when a watchdog expires, which has its own entry.

use std::fmt;
use std::sync::Arc;

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use crate::timeline::{Timeline, TimelineEntry};

/// A log line of the library or of the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// The level, in lower case.
    pub level: String,
    /// The text.
    pub message: String,
}

/// Sends logged errors to this timeline, unless the process has a logger already.
pub fn install_logger<E: TimelineEntry + From<LogLine> + 'static>(timeline: Arc<Timeline<E>>) {
    if log::set_boxed_logger(Box::new(ToTimeline(timeline))).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
}

impl LogLine {
    /// A line of this level.
    pub fn new(level: Level, message: String) -> Self {
        Self { level: level.as_str().to_ascii_lowercase(), message }
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.level, self.message)
    }
}

struct ToTimeline<E>(Arc<Timeline<E>>);

impl<E: TimelineEntry + From<LogLine>> Log for ToTimeline<E> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.record(LogLine::new(record.level(), record.args().to_string()).into());
        }
    }

    fn flush(&self) {}
}

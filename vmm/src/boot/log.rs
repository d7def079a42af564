//! Errors that the library logs go to the timeline. Its warnings do not: they say that a watchdog fired, and so does
//! the timeline.

use std::sync::Arc;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::timeline::{Entry, Timeline};

struct ToTimeline(Arc<Timeline>);

/// Sends logged errors to this timeline, if it is the first of the process.
pub fn install(timeline: Arc<Timeline>) {
    if log::set_boxed_logger(Box::new(ToTimeline(timeline))).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
}

impl Log for ToTimeline {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Error
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            self.0.record(Entry::Log { level, message: record.args().to_string() });
        }
    }

    fn flush(&self) {}
}

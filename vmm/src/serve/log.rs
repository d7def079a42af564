//! Errors that the library and the server log go to the timeline. Warnings do not: they say that a watchdog fired, and
//! so does the timeline.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::events::{Entry, Timeline, What};

struct ToTimeline(Timeline);

/// Sends logged errors to this timeline, if it is the first of the process.
pub fn install(timeline: Timeline) {
    if log::set_boxed_logger(Box::new(ToTimeline(timeline))).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
}

impl Log for ToTimeline {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let what = What::Log { level, message: record.args().to_string() };
            self.0.record(Entry { id: "server".to_owned(), what });
        }
    }

    fn flush(&self) {}
}

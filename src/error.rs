//! The errors of the runtime.

/// What can go wrong in building a watchdog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// the host gives no timer for watchdog {id:?}
    #[error("the host gives no timer for watchdog {id:?}")]
    Timer {
        /// The id of the watchdog.
        id: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// the thread of watchdog {id:?} did not start
    #[error("the thread of watchdog {id:?} did not start")]
    Thread {
        /// The id of the watchdog.
        id: String,
        /// The host's error, or that of the function given to [`spawn_with`](crate::Watchdog::spawn_with).
        source: std::io::Error,
    },
}

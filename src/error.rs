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
    /// the host gives no thread for watchdog {id:?}
    #[error("the host gives no thread for watchdog {id:?}")]
    Thread {
        /// The id of the watchdog.
        id: String,
        /// The host's error.
        source: std::io::Error,
    },
}

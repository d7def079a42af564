//! The timeline of a command: what happened, and when on the VM's clock, as text for people or JSON lines for programs.
//!
//! `vm-watchdog boot` and `vm-watchdog serve` both write one. Each has entries of its own, which implement
//! [`TimelineEntry`]; [`GuestExpiry`] and [`LogLine`] are in both.
#![forbid(unsafe_code)]

mod expiry;
mod format;
mod logger;
mod text;
mod timeline;

pub use expiry::{Expiry, GuestExpiry};
pub use format::Format;
pub use logger::{LogLine, install_logger};
pub use text::bounded;
pub use timeline::{ENTRIES_AT_ONCE, ENTRIES_PER_SECOND, Kind, Timeline, TimelineEntry, to_line};

//! The state of a played guest.

use serde::{Deserialize, Serialize};

/// How far a played guest has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The next step; after the last one the guest is halted.
    pub next: usize,
    /// The time on the guest's clock when its current wait began.
    pub waiting_since: Option<u32>,
    /// An NMI is pending.
    pub nmi: bool,
}

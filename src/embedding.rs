#![doc = include_str!("../docs/embedding/README.md")]
//!
//! The modules below hold documentation only.

#[doc = include_str!("../docs/embedding/bus.md")]
pub mod bus {}

#[doc = include_str!("../docs/embedding/wdat.md")]
pub mod wdat {}

#[doc = include_str!("../docs/embedding/sbsa.md")]
pub mod sbsa {}

#[doc = include_str!("../docs/embedding/interrupts.md")]
pub mod interrupts {}

#[doc = include_str!("../docs/embedding/threads.md")]
pub mod threads {}

#[doc = include_str!("../docs/embedding/pause.md")]
pub mod pause {}

#[doc = include_str!("../docs/embedding/reboot.md")]
pub mod reboot {}

#[doc = include_str!("../docs/embedding/steal_time.md")]
pub mod steal_time {}

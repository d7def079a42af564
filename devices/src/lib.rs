//! Models of watchdog hardware, without a clock.
//!
//! Each model is a pure state machine: it owns no thread, timer, clock, lock or descriptor, never allocates, and takes
//! the time as an argument of every call that depends on it. Tests do not sleep, and fuzzing is deterministic.
//! A VMM links the crate `vm-watchdog`, a host runtime with clock, timer and callback.
//!
//! ```
//! use vm_watchdog_devices::i6300esb::{I6300esb, I6300esbConfig};
//! use vm_watchdog_devices::{Model, VmInstant};
//!
//! let mut watchdog = I6300esb::new(I6300esbConfig::default());
//! // A guest enables the watchdog with its reset values, 0xFFFFF units of 983,040 ns in each of two stages.
//! watchdog.write_config(0x68, &[0x02], VmInstant::ZERO);
//! let deadline = watchdog.poll_at().expect("the watchdog runs");
//! assert_eq!(deadline, VmInstant::from_nanos(0xF_FFFF * 983_040));
//! assert_eq!(watchdog.poll(deadline).pretimeout, Some(deadline));
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod diag288;
pub mod i6300esb;
mod lanes;
mod message;
mod model;
pub mod sbsa;
mod state;
mod time;
pub mod wdat;

pub use message::MsiMessage;
pub use model::{Access, AfterTimeout, Expired, LastReset, Model, Request};
pub use state::StateError;
pub use time::VmInstant;

//! Watchdog devices for virtual machine monitors.
//!
//! A guest arms a watchdog with the driver it already has and writes heartbeats; when they stop, the VMM is called back
//! and resets, shuts down or powers off the VM. This crate has the Intel 6300ESB ([`i6300esb`], a PCI function), the
//! watchdog of s390x ([`diag288`], a hypervisor call), a watchdog behind the ACPI watchdog table ([`wdat`]), for guests
//! without a driver for the i6300esb, and the Generic Watchdog of Arm's BSA ([`sbsa`]), for arm64. It suits any VMM built of
//! rust-vmm crates, or of none.
//!
//! # In twenty lines
//!
//! ```
//! use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
//! use vm_watchdog::{Action, Event, Policy, VmClock, Watchdog};
//!
//! let clock = VmClock::monotonic(); // one a VM: pause() and resume() it with the VM
//! let (to_vmm, actions) = std::sync::mpsc::channel();
//! let watchdog = Watchdog::builder("watchdog0", I6300esb::new(I6300esbConfig::default()))
//!     .clock(clock.clone())
//!     .policy(Policy::new(Action::Reset))
//!     .build(move |event: &Event| Ok(to_vmm.send(event.action)?))?;
//! let _thread = watchdog.spawn()?; // or a subscriber in your event loop
//!
//! // On your PCI bus, from any vCPU thread:
//! let mut id = [0; 4];
//! watchdog.read_config(0x00, &mut id);
//! assert_eq!(id, [0x86, 0x80, 0xAB, 0x25]);
//! watchdog.write_bar(0x0C, &[0x80, 0x00]);
//!
//! // When the platform resets:
//! watchdog.reset();
//! # drop(actions);
//! # Ok::<(), vm_watchdog::Error>(())
//! ```
//!
//! The pages of `embedding` in the documentation say how a VMM links it: bus, threads and seccomp, pause and snapshot,
//! reboot, interrupts, steal time, and a checklist.
//!
//! # Layers
//!
//! What the guest sees is a pure state machine that knows no clock (`vm-watchdog-devices`). This crate is the host's side
//! of it: [clock](VmClock), timer, [policy](Policy) and [callback](ActionHandler), put together as a [`Watchdog`].
//!
//! # Features
//!
//! None is on by default. `event-manager`: a subscriber for a loop of `event-manager` 0.4. `vm-device`: the bus trait of
//! `vm-device` 0.1. `serde`: configuration, statistics and saved state can be serialized. No other crate of rust-vmm
//! appears in a signature, so that it does not matter which versions of them a VMM uses.
#![forbid(unsafe_code)]

mod action;
mod any;
mod clock;
mod config;
mod core;
pub mod diag288;
#[cfg(any(doc, doctest))]
pub mod embedding;
mod error;
mod event;
#[cfg(feature = "event-manager")]
mod event_manager;
mod foreign;
pub mod i6300esb;
mod interrupt;
mod log_limit;
mod policy;
mod run_delay;
mod runtime;
pub mod sbsa;
#[cfg(shuttle)]
#[doc(hidden)]
pub mod simulated;
mod state;
mod stats;
mod sync;
mod thread;
#[cfg(not(shuttle))]
mod timer;
mod turn;
#[cfg(feature = "vm-device")]
mod vm_device;
mod watchdog;
pub mod wdat;

pub use action::{Action, UnknownAction};
pub use any::{AnyWatchdog, AnyWatchdogState, OtherState};
pub use clock::{ManualClock, VmClock};
pub use config::{ConfigError, DeviceConfig, DeviceModel, WatchdogConfig};
pub use core::MIN_WAKE_INTERVAL;
pub use error::Error;
pub use event::{ActionHandler, Event, HandlerError, MAX_ATTEMPTS, Stage};
#[cfg(feature = "event-manager")]
pub use event_manager::WatchdogSubscriber;
pub use interrupt::{EventFdLine, InterruptLine, MsiSender};
pub use policy::{ActionRate, Escalation, Policy};
pub use run_delay::{DEFAULT_STEAL_LIMIT, RunDelay, ThreadRunDelay, VcpuDelay};
pub use state::{
    ActionRateV1, ActionV1, DeliveryStateV1, EscalationV1, PolicyV1, StageV1, WatchdogState, WatchdogStateV1,
};
pub use stats::Stats;
pub use thread::WatchdogThread;
pub use vm_watchdog_devices::{
    Access, AfterTimeout, Expired, LastReset, Model, MsiMessage, Request, StateError, VmInstant,
};
pub use watchdog::{Watchdog, WatchdogBuilder, WeakWatchdog};

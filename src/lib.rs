//! Watchdog devices for virtual machine monitors.
//!
//! A guest arms a watchdog with the driver it already has and writes heartbeats; when they stop, the VMM is called back
//! and resets, shuts down or powers off the VM. This crate has the Intel 6300ESB ([`i6300esb`], a PCI function) and the
//! watchdog of s390x ([`diag288`], a hypervisor call) for any VMM built of rust-vmm crates, or of none.
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
//! # Layers
//!
//! What the guest sees is a pure state machine that knows no clock (`vm-watchdog-devices`). This crate is the host's side
//! of it: [clock](VmClock), timer, [policy](Policy) and [callback](ActionHandler), put together as a [`Watchdog`].
//!
//! # Features
//!
//! None is on by default. `event-manager`: a subscriber for such a loop. `vm-device`: the bus traits. `vm-memory`: the watchdog of z/VM
//! reads its commands. `kvm`: an interrupt
//! line on a GSI. `serde`: configuration, statistics and saved state can be serialized.
#![forbid(unsafe_code)]

mod action;
mod clock;
mod config;
mod delivery;
pub mod diag288;
mod error;
mod event;
#[cfg(feature = "event-manager")]
mod event_manager;
pub mod i6300esb;
mod interrupt;
#[cfg(feature = "kvm")]
mod kvm;
mod log_limit;
mod policy;
mod starvation;
mod state;
mod stats;
mod thread;
mod timer;
#[cfg(feature = "vm-device")]
mod vm_device;
mod watchdog;

pub use action::{Action, UnknownAction};
pub use clock::{ManualClock, VmClock};
pub use config::{ConfigError, DeviceModel, WatchdogConfig};
pub use error::Error;
pub use event::{ActionHandler, Event, HandlerError, MAX_ATTEMPTS, Stage};
#[cfg(feature = "event-manager")]
pub use event_manager::WatchdogSubscriber;
pub use interrupt::InterruptLine;
#[cfg(feature = "kvm")]
pub use kvm::KvmInterruptLine;
pub use policy::{Escalation, Policy};
pub use starvation::{DEFAULT_PATIENCE, RunDelay, ThreadRunDelay};
pub use state::{DeliveryStateV1, WatchdogStateV1};
pub use stats::Stats;
pub use thread::WatchdogThread;
pub use vm_watchdog_devices::{AfterTimeout, Model, Request, StateError, VmInstant};
pub use watchdog::{MIN_WAKE_INTERVAL, Watchdog, WatchdogBuilder};

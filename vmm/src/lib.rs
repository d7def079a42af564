//! A reference VMM: it boots a guest on KVM and acts when the guest's watchdog expires.
//!
//! It shows how a VMM uses the library, through its public API only. Begin at `devices/i6300esb.rs` and
//! `devices/wdat.rs` (a device on a PCI bus, and one at ports with its ACPI table), `watchdogs.rs` (how watchdogs are built) and `machine.rs` (what the VMM does when one expires).
//!
//! There are three threads of control. The vCPU's thread runs the guest and owns the devices (`vcpu.rs`). The event loop
//! of the main thread serves the timers of the watchdogs ([`vm_watchdog::WatchdogSubscriber`]) and performs what a
//! watchdog's handler, which only queues its event (`inbox.rs`), or the operator (`operator.rs`) requests (`machine.rs`).

mod acpi;
mod builtin;
mod core_dump;
mod devices;
mod error;
mod exit;
mod inbox;
mod kvm;
mod linux;
mod machine;
mod memory;
mod memory_size;
mod operator;
mod options;
mod processor;
mod run;
mod snapshot;
mod timeline;
mod vcpu;
mod watchdog_options;
mod watchdogs;

pub use builtin::table::BuiltInGuest;
pub use error::BootError;
pub use exit::ExitStatus;
pub use memory_size::{InvalidMemorySize, MemorySize};
pub use options::BootOptions;
pub use run::run;

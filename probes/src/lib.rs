//! Liveness and readiness probes of a VM, as Kubernetes and KubeVirt run them, for any VMM.
//!
//! A [`Probe`] has the fields of a manifest, with the defaults and rules of Kubernetes. A [`Worker`] says when the next
//! attempt is due and what the result is: it is told the time of the VM, what happens to the VM, and what each attempt
//! found. A [`RestartBackOff`] says how long a restart is delayed. None of them has a clock or does I/O.
//!
//! # What differs from kubelet
//!
//! - The first attempt is due exactly after the initial delay. Kubelet attempts at the next tick of a ticker that does not
//!   start with the container.
//! - A reset starts the count of successes and failures anew.
#![forbid(unsafe_code)]

mod address;
mod back_off;
mod change;
mod outcome;
mod probe;
mod validation;
mod worker;

pub use address::{GuestAddress, InvalidAddress};
pub use back_off::RestartBackOff;
pub use change::{Cause, Change, Completed, ProbeResult};
pub use outcome::Outcome;
pub use probe::{Handler, Probe, ProbeKind, Scheme, UnknownScheme};
pub use validation::{InvalidField, InvalidProbe};
pub use worker::{Attempt, Phase, Streak, Worker};

//! Liveness and readiness probes of a VM, as Kubernetes and KubeVirt run them.
//!
//! - [`Probe`] says how a probe is run: its handler, its times and thresholds, with the defaults and rules of Kubernetes.
#![forbid(unsafe_code)]

mod address;
mod probe;
mod validation;

pub use address::{GuestAddress, InvalidAddress};
pub use probe::{Handler, Probe, ProbeKind, Scheme, UnknownScheme};
pub use validation::{InvalidField, InvalidProbe};

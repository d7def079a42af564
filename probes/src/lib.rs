//! Liveness and readiness probes of a VM, as Kubernetes and KubeVirt run them, for any VMM.
//!
//! # Two layers
//!
//! 1. What decides has no clock and does no I/O. A [`Probe`] has the fields of a manifest, with the defaults and rules of
//!    Kubernetes. A [`Worker`] says when the next attempt is due and what the result is: it is told the time of the VM, what
//!    happens to the VM, and what each attempt found. A [`RestartBackOff`] says how long a restart is delayed.
//! 2. What asks the guest is in the module `handlers`, behind the feature of the same name, which is on by default: `httpGet`,
//!    `tcpSocket`, `exec` and `guestAgentPing`, as blocking calls with one deadline, and with limits for what a hostile
//!    guest answers.
//!
//! # What differs from kubelet
//!
//! - The first attempt is due exactly after the initial delay. Kubelet attempts at the next tick of a ticker that does not
//!   start with the container.
//! - A reset starts the count of successes and failures anew.
//! - A body that ends early, or not before the timeout, is a failure. For kubelet it is an error, which is thrown away.
//! - Ten redirects are followed; kubelet stops at the tenth.
//! - A redirect to another port of a forwarded address (the loopback interface, an address of the host) is one to another
//!   host: that port belongs to the host. It passes with a warning and is not followed.
//! - HTTP/1.1 only, also over TLS.
#![forbid(unsafe_code)]

mod address;
mod back_off;
mod change;
#[cfg(feature = "handlers")]
pub mod handlers;
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

//! A watchdog for VMs of KubeVirt, as their annotations ask.
//!
//! KubeVirt runs a hook sidecar beside the container with QEMU. The first process of the sidecar is `vm-watchdog sidecar`
//! ([`sidecar`]). It runs KubeVirt's `sidecar-shim`, which speaks gRPC and calls this same binary as `onDefineDomain`
//! ([`hook`]) with the VM and its libvirt XML. The hook asks the first process for the server ([`request`]) and writes the
//! XML with the device. What annotations mean is in [`settings`], what becomes of the XML in [`domain`] and [`edit`]: they
//! know no process and no file.

mod commandline;
mod domain;
mod edit;
mod error;
pub mod folders;
pub mod hook;
mod request;
mod server;
mod settings;
pub mod sidecar;

/// The longest input that is read, in bytes. Linux allows no argument of a program beyond 128 KiB.
const MAX_LENGTH: usize = 1 << 20;

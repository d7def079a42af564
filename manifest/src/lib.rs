//! The watchdog and the probes of a VM, read from the configuration that people already have:
//!
//! - manifests of KubeVirt: VirtualMachine and VirtualMachineInstance, as YAML or JSON;
//! - libvirt's `<watchdog>`, alone or in the XML of a domain;
//! - QEMU's options, as text of a command line.
//!
//! A [`Manifest`] is plain data with the positions of its parts in the file. A file that cannot be used is a [`ManifestError`]
//! with all the [`Problem`]s in it: where, which value, and what is accepted. Fields of KubeVirt that have nothing to do with
//! health are ignored; a field whose name is almost that of a known one is an error, because KubeVirt would ignore it.
//!
//! A file may be hostile: [`MAX_LENGTH`] bounds its length, and time and memory are bounded for what is in it, however its
//! YAML aliases, its nesting or its attributes multiply.
//!
//! ```
//! use vm_watchdog::Action;
//! use vm_watchdog_manifest::Manifest;
//! use vm_watchdog_probes::Handler;
//!
//! let text = "\
//! apiVersion: kubevirt.io/v1
//! kind: VirtualMachineInstance
//! metadata:
//!   name: web
//! spec:
//!   domain:
//!     devices:
//!       watchdog: {name: wd, i6300esb: {action: poweroff}}
//!   livenessProbe:
//!     tcpSocket: {port: 1500}
//! ";
//! let manifest = Manifest::parse("web.yaml", text.as_bytes(), None)?;
//! assert_eq!(manifest.watchdogs[0].value.action, Action::Poweroff);
//! let liveness = &manifest.liveness.as_ref().unwrap().value;
//! assert_eq!(liveness.handler, Handler::TcpSocket { host: None, port: 1500 });
//!
//! let text = text.replace("livenessProbe", "livenessProve");
//! let error = Manifest::parse("web.yaml", text.as_bytes(), None).unwrap_err();
//! assert_eq!(error.to_string(), "web.yaml:9:3: spec.livenessProve: unknown field: did you mean livenessProbe?");
//! # Ok::<(), vm_watchdog_manifest::ManifestError>(())
//! ```
#![forbid(unsafe_code)]

mod actions;
mod kubevirt;
mod libvirt;
mod manifest;
mod near;
mod parse;
mod problem;
mod qemu;
mod reader;
mod shell;
mod text;
mod yaml;

pub use crate::manifest::{Dialect, Located, Manifest, Watchdog};
pub use crate::problem::{ManifestError, Position, Problem};
pub use crate::text::MAX_LENGTH;

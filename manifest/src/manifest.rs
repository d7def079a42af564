//! What a file says, as plain data.

use std::fmt;

use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_probes::Probe;

use crate::problem::{Position, Problem};

/// What a file says about the health of one VM.
///
/// Names, paths, headers and commands are text of the file: names have no control characters, commands and values of headers
/// may have any except NUL.
///
/// ```
/// use vm_watchdog_manifest::Manifest;
///
/// let xml = "<domain><name>web</name><devices><watchdog model='i6300esb'/></devices></domain>";
/// let manifest = Manifest::parse("web.xml", xml.as_bytes(), None)?;
/// assert_eq!((manifest.name.as_deref(), manifest.watchdogs.len()), (Some("web"), 1));
/// assert!(manifest.liveness.is_none() && manifest.warnings.is_empty());
/// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The kind of file.
    pub dialect: Dialect,
    /// The name of the VM.
    pub name: Option<String>,
    /// The namespace of the VM; KubeVirt alone has namespaces.
    pub namespace: Option<String>,
    /// The watchdogs. KubeVirt has at most one.
    pub watchdogs: Vec<Located<Watchdog>>,
    /// The liveness probe, whose fields are valid; KubeVirt alone has probes.
    pub liveness: Option<Located<Probe>>,
    /// The readiness probe, whose fields are valid.
    pub readiness: Option<Located<Probe>>,
    /// `terminationGracePeriodSeconds` of the VM: how long the guest may take to shut down, in seconds. 0 means none. Where it is
    /// absent KubeVirt takes [`Manifest::DEFAULT_TERMINATION_GRACE_PERIOD_S`].
    pub termination_grace_period_s: Option<Located<u32>>,
    /// What is accepted, but probably not meant, in the order of the file.
    pub warnings: Vec<Problem>,
}

impl Manifest {
    /// KubeVirt's grace period where the manifest has none, in seconds (`DefaultGracePeriodSeconds` of its API).
    pub const DEFAULT_TERMINATION_GRACE_PERIOD_S: u32 = 30;

    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            name: None,
            namespace: None,
            watchdogs: Vec::new(),
            liveness: None,
            readiness: None,
            termination_grace_period_s: None,
            warnings: Vec::new(),
        }
    }
}

/// The kind of a file.
///
/// ```
/// use vm_watchdog_manifest::{Dialect, Manifest};
///
/// let manifest = Manifest::parse("-", b"<watchdog model='i6300esb'/>", None)?;
/// assert_eq!(manifest.dialect, Dialect::Libvirt);
/// assert_eq!(manifest.dialect.as_str(), "libvirt");
/// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// A manifest of KubeVirt.
    KubeVirt,
    /// XML of libvirt.
    Libvirt,
    /// Options of QEMU.
    Qemu,
}

impl Dialect {
    /// `kubevirt`, `libvirt` or `qemu`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KubeVirt => "kubevirt",
            Self::Libvirt => "libvirt",
            Self::Qemu => "qemu",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A watchdog of a VM.
///
/// ```
/// use vm_watchdog::{Action, DeviceModel};
/// use vm_watchdog_manifest::Manifest;
///
/// let manifest = Manifest::parse("-", b"-device i6300esb,id=wd0 -action watchdog=poweroff", None)?;
/// let watchdog = &manifest.watchdogs[0].value;
/// assert_eq!((watchdog.model, watchdog.action), (DeviceModel::I6300esb, Action::Poweroff));
/// assert_eq!(watchdog.name.as_deref(), Some("wd0"));
/// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Watchdog {
    /// The device.
    pub model: DeviceModel,
    /// The action on a timeout; reset if the file has none.
    pub action: Action,
    /// Its name: `name` of KubeVirt, `<alias name=>` of libvirt, `id` of QEMU.
    pub name: Option<String>,
}

impl Watchdog {
    pub(crate) fn new(model: DeviceModel, action: Action, name: Option<String>) -> Self {
        Self { model, action, name }
    }
}

/// A value, and where it stands in the file.
///
/// ```
/// use vm_watchdog_manifest::Manifest;
///
/// let manifest = Manifest::parse("-", b"<domain><devices>\n  <watchdog model='diag288'/>\n</devices></domain>", None)?;
/// let problem = manifest.watchdogs[0].problem("not on this machine");
/// assert_eq!(problem.to_string(), "2:3: domain/devices/watchdog: not on this machine");
/// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it begins.
    pub position: Position,
    /// Its path in the document, `spec.livenessProbe`.
    pub path: String,
}

impl<T> Located<T> {
    pub(crate) fn new(value: T, position: Position, path: impl Into<String>) -> Self {
        Self { value, position, path: path.into() }
    }

    /// A problem with the value, for messages like those of the parser.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.position, self.path.as_str(), message)
    }
}

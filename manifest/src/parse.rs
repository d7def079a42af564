//! From bytes to a manifest.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::manifest::{Dialect, Manifest};
use crate::problem::{ManifestError, Position, Report, quoted};
use crate::text::{self, MAX_LENGTH};
use crate::{kubevirt, libvirt, qemu};

impl Manifest {
    /// Reads a file. `vm` chooses one of several VMs in it, by `NAME` or `NAMESPACE/NAME`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or read, or what is in it cannot be used.
    pub fn open(path: &Path, vm: Option<&str>) -> Result<Self, ManifestError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::read(&name, file, vm),
            Err(source) => Err(ManifestError::Unreadable { file: name, source }),
        }
    }

    /// Reads from an open file or a stream, at most [`MAX_LENGTH`] bytes. Messages call it `name`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or what is in it cannot be used.
    ///
    /// ```
    /// use vm_watchdog_manifest::Manifest;
    ///
    /// let manifest = Manifest::read("standard input", "qemu-system-x86_64 -device i6300esb".as_bytes(), None)?;
    /// assert_eq!(manifest.watchdogs.len(), 1);
    /// # Ok::<(), vm_watchdog_manifest::ManifestError>(())
    /// ```
    pub fn read(name: &str, source: impl Read, vm: Option<&str>) -> Result<Self, ManifestError> {
        match bytes(source) {
            Ok(bytes) => Self::parse(name, &bytes, vm),
            Err(source) => Err(ManifestError::Unreadable { file: name.to_owned(), source }),
        }
    }

    /// Parses what a file called `name` has. The dialect is found out from the text.
    ///
    /// # Errors
    ///
    /// What cannot be used, with all the problems that were found.
    ///
    /// ```
    /// use vm_watchdog_manifest::Manifest;
    ///
    /// let error = Manifest::parse("wd.xml", b"<watchdog model='i6300esb' action='explode'/>", None).unwrap_err();
    /// let expected = "wd.xml:1:1: watchdog/@action: unknown watchdog action \"explode\": \
    ///                 accepted are reset, shutdown, poweroff, pause, none, dump, inject-nmi";
    /// assert_eq!(error.to_string(), expected);
    /// ```
    pub fn parse(name: &str, bytes: &[u8], vm: Option<&str>) -> Result<Self, ManifestError> {
        let invalid = |problems| ManifestError::Invalid { file: name.to_owned(), problems };
        let text = text::text(bytes).map_err(|problem| invalid(vec![problem]))?;
        let mut report = Report::default();
        let manifest = match text::dialect(text) {
            Dialect::KubeVirt => kubevirt::parse(text, vm, &mut report),
            Dialect::Libvirt => named(libvirt::parse(text, &mut report), vm, &mut report),
            Dialect::Qemu => named(qemu::parse(text, &mut report), vm, &mut report),
        };
        if manifest.watchdogs.is_empty() && manifest.liveness.is_none() && manifest.readiness.is_none() {
            report.warn(Position::START, "", "this VM has no watchdog and no probe");
        }
        let warnings = report.finish().map_err(invalid)?;
        Ok(Manifest { warnings, ..manifest })
    }
}

/// The manifest of a file with one VM, whose name has to be `vm` if that is given.
fn named(manifest: Manifest, vm: Option<&str>, report: &mut Report) -> Manifest {
    if let Some(vm) = vm.filter(|vm| manifest.name.as_deref() != Some(*vm)) {
        let found = manifest
            .name
            .as_deref()
            .map_or("the VM has no name here".to_owned(), |name| format!("the file has {}", quoted(name)));
        report.error(Position::START, "", format!("no VM is called {}: {found}", quoted(vm)));
    }
    manifest
}

fn bytes(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

//! Manifests of KubeVirt: finds the VM among the documents of a file, and reads its health.

mod documents;
mod ports;
mod probe;
mod vm;
mod watchdog;

use crate::manifest::{Dialect, Manifest};
use crate::problem::Report;
use crate::reader::Reader;
use crate::yaml::Tree;

/// Reads the VM of a file, or the one that `vm` names: `NAME` or `NAMESPACE/NAME`.
pub fn parse(text: &str, vm: Option<&str>, report: &mut Report) -> Manifest {
    let mut manifest = Manifest::new(Dialect::KubeVirt);
    let tree = match Tree::parse(text) {
        Ok(tree) => tree,
        Err(problem) => {
            report.error(problem.position(), "", problem.message());
            return manifest;
        }
    };
    let mut reader = Reader { tree: &tree, report, spec: "spec" };
    if let Some(chosen) = documents::choose(&mut reader, vm) {
        vm::read(&mut reader, &chosen, &mut manifest);
    }
    manifest
}

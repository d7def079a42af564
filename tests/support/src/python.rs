//! Programs from the Python package index, installed without root into a folder of their own.

use std::path::PathBuf;
use std::process::Command;

use crate::{Unavailable, assets};

/// Returns the folder with a package of this version, and its dependencies. Its programs are in the subfolder `bin`.
/// Installs it on first use.
pub fn package(name: &str, version: &str) -> Result<PathBuf, Unavailable> {
    let requirement = format!("{name}=={version}");
    assets::asset(&format!("python-{name}"), &requirement, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        let output = pip.arg(folder).arg(&requirement).output().map_err(Unavailable::while_doing("python3"))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let last = message.lines().last().unwrap_or_default();
        Err(Unavailable::new(format!("python3 -m pip install {requirement}: {}: {last}", output.status)))
    })
}

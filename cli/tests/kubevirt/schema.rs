//! The domains against libvirt's own schema, by the program and the file that `virt-xml-validate` runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use vm_watchdog_test_support::debian::{Keep, Packages, Suite};
use vm_watchdog_test_support::libraries::Libraries;
use vm_watchdog_test_support::skip;

use crate::hook::{HANDWRITTEN, Hook, Q35, VIRT, device, options, web};

const LIBVIRT: Packages = Packages {
    folder: "libvirt-schemas",
    suite: Suite::Machine,
    architecture: "amd64",
    install: &["libvirt0", "libxml2-utils"],
    // xmllint with its libraries, and the schemas.
    keep: Keep::NamesStartingWith(&[
        "libvirt0",
        "libvirt-common",
        "libxml2",
        "libc6",
        "libgcc-s1",
        "libicu",
        "liblzma5",
        "zlib1g",
        "libstdc++6",
        "libreadline",
        "libtinfo6",
    ]),
};

/// What xmllint says of a domain; nothing if it is valid.
fn validate(root: &Path, domain: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("domain.xml");
    fs::write(&file, domain).unwrap();
    let libraries = Libraries::of(root);
    let mut xmllint = Command::new(libraries.loader());
    xmllint.args(["--library-path", &libraries.search_path()]).arg(root.join("usr/bin/xmllint"));
    xmllint.arg("--noout").arg("--relaxng").arg(root.join("usr/share/libvirt/schemas/domain.rng")).arg(&file);
    let output = xmllint.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(message) }
}

/// Runs a test with the unpacked packages, or reports it as skipped.
fn with_schemas(run: impl FnOnce(&Path)) {
    match LIBVIRT.fetch() {
        Ok(root) => run(&root),
        Err(why) => skip::loudly(&skip::this_test(), &why),
    }
}

/// The domains that a page shows, as blocks of code.
fn domains_of(page: &str) -> Vec<String> {
    let lines = page.lines().map(|line| line.strip_prefix("    ").unwrap_or_default());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let domains = text.split("<domain ").skip(1);
    domains.map(|rest| format!("<domain {}</domain>\n", rest.split_once("</domain>").unwrap().0)).collect()
}

#[test]
fn the_domain_of_the_page_about_libvirt_is_valid_and_its_device_is_json() {
    with_schemas(|root| {
        let domains = domains_of(include_str!("../../../docs/libvirt.md"));
        let [domain] = &domains[..] else { panic!("{domains:#?}") };
        assert_eq!(validate(root, domain), Ok(()), "{domain}");
        assert_eq!(device(domain)["socket"]["path"], "/run/vm-watchdog/web/watchdog");
        assert_eq!(options(domain)[..2], ["-qmp", "unix:/run/vm-watchdog/web/qmp,server=on,wait=off"]);
    });
}

#[test]
fn the_domains_are_valid_for_libvirt() {
    with_schemas(the_domains_are_valid);
}

fn the_domains_are_valid(root: &Path) {
    for domain in [Q35, VIRT, HANDWRITTEN] {
        assert_eq!(validate(root, domain), Ok(()), "the fixture");
        let new = Hook::new().define(&web(), domain);
        assert_eq!(validate(root, &new), Ok(()), "{new}");
    }
    // The schema sees an option without a value.
    let wrong = HANDWRITTEN.replace("<q:commandline>", "<q:commandline><q:arg/>");
    assert!(validate(root, &wrong).is_err());
}

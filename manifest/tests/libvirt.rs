//! XML of libvirt.

use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_manifest::{Dialect, Manifest};

fn parse(text: &str) -> Manifest {
    Manifest::parse("vm.xml", text.as_bytes(), None).unwrap_or_else(|error| panic!("{error}"))
}

fn watchdogs(manifest: &Manifest) -> Vec<(DeviceModel, Action, Option<&str>)> {
    let watchdogs = manifest.watchdogs.iter().map(|watchdog| &watchdog.value);
    watchdogs.map(|watchdog| (watchdog.model, watchdog.action, watchdog.name.as_deref())).collect()
}

#[test]
fn a_domain_has_several_watchdogs() {
    let manifest = parse(include_str!("fixtures/domain.xml"));
    assert_eq!((manifest.dialect, manifest.name.as_deref()), (Dialect::Libvirt, Some("build & test")));
    let expected =
        [(DeviceModel::I6300esb, Action::InjectNmi, Some("ua-guard")), (DeviceModel::I6300esb, Action::Reset, None)];
    assert_eq!(watchdogs(&manifest), expected);
    assert_eq!(manifest.watchdogs[0].problem("x").to_string(), "10:5: domain/devices/watchdog: x");
    let warnings: Vec<_> = manifest.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["9:5: watchdog: itco is left to the VMM"]);
}

#[test]
fn a_watchdog_alone_has_every_action_of_libvirt() {
    for name in ["reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi"] {
        let manifest = parse(&format!("<watchdog model='i6300esb' action='{name}'/>"));
        assert_eq!(watchdogs(&manifest), [(DeviceModel::I6300esb, name.parse().unwrap(), None)]);
    }
    let manifest = parse("\n<watchdog\n  model=\"diag288\"></watchdog>\n");
    assert_eq!(watchdogs(&manifest), [(DeviceModel::Diag288, Action::Reset, None)]);
}

#[test]
fn an_alias_belongs_to_its_own_watchdog() {
    let text = "<domain><devices><watchdog model='i6300esb'/><watchdog model='itco'><alias name='ua-itco'/></watchdog>\
                <watchdog model='i6300esb'><alias name='ua-wd'/></watchdog></devices></domain>";
    let names = [(DeviceModel::I6300esb, Action::Reset, None), (DeviceModel::I6300esb, Action::Reset, Some("ua-wd"))];
    assert_eq!(watchdogs(&parse(text)), names);
}

#[test]
fn a_vm_that_is_named_has_to_be_this_one() {
    let text = include_bytes!("fixtures/domain.xml");
    assert!(Manifest::parse("vm.xml", text, Some("build & test")).is_ok());
    let error = Manifest::parse("vm.xml", text, Some("other")).unwrap_err().to_string();
    assert_eq!(error, "vm.xml:1:1: no VM is called \"other\": the file has \"build & test\"");
    let error = Manifest::parse("vm.xml", b"<watchdog model='i6300esb'/>", Some("other")).unwrap_err().to_string();
    assert_eq!(error, "vm.xml:1:1: no VM is called \"other\": the VM has no name here");
}

#[test]
fn a_domain_without_a_watchdog_is_a_warning() {
    let manifest = parse("<domain><name>bare</name><devices/></domain>");
    assert_eq!(manifest.warnings[0].message(), "this VM has no watchdog and no probe");
}

//! The XML that the hook writes.

use serde_json::json;

use crate::hook::{HANDWRITTEN, Hook, LAUNCHER, Q35, VIRT, device, options, vmi, web};

const QMP: &str = "unix:/var/run/kubevirt-hooks/hook-sidecar-0/vm-watchdog/qmp,server=on,wait=off";
const DECLARATION: &str = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'";

/// The text from `begin` to `end`, both included.
fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let at = text.find(begin).unwrap_or_else(|| panic!("no {begin} in {text}"));
    &text[at..at + text[at..].find(end).unwrap() + end.len()]
}

/// A domain with this machine, and nothing else that matters.
fn domain_of(os: &str) -> String {
    format!("<domain><os>{os}</os><devices/></domain>")
}

#[test]
fn a_domain_gets_the_device_and_a_qmp_socket_for_the_server() {
    let domain = Hook::new().define(&web(), Q35);
    let [qmp, qmp_value, device, device_value] = &options(&domain)[..] else { panic!("{domain}") };
    assert_eq!((&**qmp, &**qmp_value, &**device), ("-qmp", QMP, "-device"));
    let socket = json!({ "type": "unix", "path": format!("{LAUNCHER}/watchdog") });
    let expected = json!({
        "driver": "vfio-user-pci", "id": "vm-watchdog", "bus": "pcie.0", "addr": "0x1c", "socket": socket,
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(device_value).unwrap(), expected);
}

#[test]
fn every_other_byte_stays() {
    let hook = Hook::new();
    let domain = hook.define(&web(), Q35);
    assert_eq!(domain.replace(between(&domain, "  <qemu:commandline>", "</qemu:commandline>\n"), ""), Q35);
    let domain = hook.define(&web(), VIRT);
    let without = domain.replace(between(&domain, "  <qemu:commandline>", "</qemu:commandline>\n"), "");
    assert_eq!(without.replace(DECLARATION, ""), VIRT);
    let domain = hook.define(&web(), HANDWRITTEN);
    assert_eq!(domain.replace(between(&domain, "<q:arg value='-qmp'/>", "}}'/>"), ""), HANDWRITTEN);
}

#[test]
fn options_that_are_there_stay_before_ours_and_their_environment_after_them() {
    let domain = Hook::new().define(&web(), HANDWRITTEN);
    let options = options(&domain);
    assert_eq!(options[..2], ["-fw_cfg", "name=opt/com.example/config,file=/data.ign"]);
    assert_eq!(options[2..4], ["-qmp", QMP]);
    assert!(domain.find("vfio-user-pci") < domain.find("<q:env"), "as libvirt writes them: {domain}");
}

#[test]
fn every_form_of_the_namespace_is_understood() {
    let uri = "http://libvirt.org/schemas/domain/qemu/1.0";
    let os = "<os><type machine='q35'/></os>";
    let forms = [
        format!("<domain>{os}<commandline xmlns='{uri}'><arg value='-S'/></commandline></domain>"),
        format!("<domain>{os}<x:commandline xmlns:x='{uri}'><x:arg value='-S'/></x:commandline></domain>"),
        format!(
            "<domain>{os}<x:commandline xmlns:x='{uri}'><x:arg value='-S'></x:arg><x:env name='A'/></x:commandline></domain>"
        ),
        format!(
            "<domain xmlns:qemu='{uri}'>{os}<qemu:commandline xmlns:qemu='urn:none'/><qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>"
        ),
    ];
    for domain in forms {
        let new = Hook::new().define(&web(), &domain);
        assert_eq!(options(&new)[..3], ["-S", "-qmp", QMP], "{new}");
        assert_eq!(new.matches("commandline").count(), domain.matches("commandline").count(), "{new}");
    }
    let empty = format!("<domain xmlns:qemu='{uri}'>{os}<qemu:commandline /></domain>");
    let new = Hook::new().define(&web(), &empty);
    assert!(options(&new).len() == 4 && new.ends_with("</qemu:commandline></domain>"), "{new}");
    let taken = format!("<domain xmlns:qemu='urn:a' xmlns:qemu1='urn:b'>{os}</domain>");
    let new = Hook::new().define(&web(), &taken);
    assert!(options(&new).len() == 4 && new.contains("<qemu2:commandline>"), "{new}");
}

#[test]
fn a_second_call_changes_nothing() {
    for domain in [Q35, VIRT, HANDWRITTEN] {
        let first = Hook::new().define(&web(), domain);
        assert_eq!(Hook::new().define(&web(), &first), first);
    }
}

/// Our options as KubeVirt writes them after it has read them: Go has double quotes around attributes, and no empty elements.
fn rewritten(domain: &str) -> String {
    let line = |line: &str| match line.split_once("value='") {
        Some((before, value)) => {
            let value = value.strip_suffix("'/>").unwrap().replace('"', "&#34;");
            format!("{before}value=\"{value}\"></qemu:arg>\n")
        }
        None => format!("{line}\n"),
    };
    domain.lines().map(line).collect()
}

/// KubeVirt reads the first result, writes it with the addresses that libvirt has given, and calls the hook again.
#[test]
fn a_device_of_an_earlier_call_keeps_its_slot_or_leaves_one_that_is_used() {
    let rewritten = rewritten(&Hook::new().define(&web(), Q35));
    assert_eq!(device(&rewritten)["addr"], "0x1c");
    let address = |slot| {
        format!(
            "<rng><address type=\"pci\" domain=\"0x0000\" bus=\"0x00\" slot=\"{slot}\" function=\"0x0\"></address></rng></devices>"
        )
    };
    let hook = Hook::new();
    let other = hook.define(&web(), &rewritten.replace("</devices>", &address("0x02")));
    assert_eq!(device(&other)["addr"], "0x1c");
    let same = hook.define(&web(), &rewritten.replace("</devices>", &address("0x1c")));
    assert_eq!(device(&same)["addr"], "0x19");
    assert_eq!(options(&same).len(), 4, "{same}");
    // It stays where it is, although a better slot is free again.
    assert_eq!(device(&hook.define(&web(), &same.replace("0x1c", "0x03")))["addr"], "0x19");
}

#[test]
fn slots_that_are_used_are_left_to_their_devices() {
    // 0x1c and 0x19 (25) have devices; 0x1a and 0x1b are places of the chipset; 0x18 is a slot of the host.
    assert_eq!(device(&Hook::new().define(&web(), HANDWRITTEN))["addr"], "0x18");
    let more = HANDWRITTEN.replace(
        "<q:env",
        "<q:arg value='-device'/><q:arg value='{\"driver\":\"e1000\",\"addr\":\"0x18\"}'/>\
         <q:arg value='-device'/><q:arg value='e1000,bus=pcie.0,addr=17.0'/>\
         <q:arg value='-device'/><q:arg value='e1000,bus=pcie.1,addr=16.0'/><q:env",
    );
    assert_eq!(device(&Hook::new().define(&web(), &more))["addr"], "0x16");

    let slots: String =
        (0..32).map(|slot| format!("<rng><address type='pci' bus='0x00' slot='{slot:#x}'/></rng>")).collect();
    let full = format!("<domain><os><type machine='q35'/></os><devices>{slots}</devices></domain>");
    let message = Hook::new().refuse(&web().to_string(), &full);
    assert_eq!(message, "--domain:1:8: the first PCI bus has no free slot for the watchdog");
}

#[test]
fn the_bus_is_that_of_the_machine() {
    let buses = [
        ("arch='x86_64' machine='q35'", "pcie.0"),
        ("arch='x86_64' machine='pc-q35-rhel9.6.0'", "pcie.0"),
        ("machine='virt'", "pcie.0"),
        ("arch='aarch64' machine='virt-10.1'", "pcie.0"),
        ("arch='x86_64' machine='pc-i440fx-10.1'", "pci.0"),
        ("machine='pc'", "pci.0"),
    ];
    for (attributes, bus) in buses {
        let domain = domain_of(&format!("<type {attributes}>hvm</type>"));
        assert_eq!(device(&Hook::new().define(&web(), &domain))["bus"], bus, "{attributes}");
    }
}

#[test]
fn a_machine_without_a_place_for_it_is_refused() {
    let accepted = "accepted are q35, virt and pc, also with a version";
    let cases = [
        (
            "<type arch='s390x' machine='s390-ccw-virtio'/>",
            "os/type/@arch: \"s390x\": accepted are x86_64 and aarch64 for i6300esb".to_owned(),
        ),
        ("<type arch='x86_64' machine='microvm'/>", format!("os/type/@machine: \"microvm\": {accepted}")),
        ("<type machine='pcx'/>", format!("os/type/@machine: \"pcx\": {accepted}")),
        ("<type/>", format!("os/type/@machine: \"\": {accepted}")),
        ("", format!("os/type/@machine: \"\": {accepted}")),
    ];
    for (os, message) in cases {
        let hook = Hook::new();
        assert_eq!(hook.refuse(&web().to_string(), &domain_of(os)), format!("--domain:1:8: {message}"));
        hook.expect_no_server();
    }
}

#[test]
fn a_second_i6300esb_is_refused_and_another_watchdog_is_not() {
    let message = Hook::new().refuse(&web().to_string(), &HANDWRITTEN.replace("'ib700'", "'i6300esb'"));
    let expected =
        "--domain:32:5: the domain has an i6300esb already: remove it, or the annotation vm-watchdog/i6300esb";
    assert_eq!(message, expected);
}

#[test]
fn a_vm_that_asks_for_nothing_keeps_its_domain_and_gets_no_server() {
    for vmi in [vmi(&[]), vmi(&[("example.com/a", "b"), ("vm-watchdogs/i6300esb", "reset")])] {
        let hook = Hook::new();
        assert_eq!(hook.define(&vmi, HANDWRITTEN), HANDWRITTEN);
        hook.expect_no_server();
    }
    let hook = Hook::new();
    assert_eq!(hook.define(&serde_json::json!({ "metadata": { "annotations": null } }), "no XML"), "no XML");
}

//! A tenant of KubeVirt: the annotations of a VM, and the XML of its domain.
//!
//! The hook adds the device once, however often it is called, changes nothing else of the XML, and has a server started
//! whose arguments `serve` accepts. A VM without annotations of this program stays as it is. An error names the annotation,
//! or the line and the column, in a bounded text without control characters.
//!
//! From the top of the repository, after `cargo install --locked cargo-fuzz`. New inputs go to `corpus`, which is not
//! in git:
//!
//! ```text
//! mkdir -p fuzz/corpus/kubevirt
//! cargo +nightly fuzz run kubevirt fuzz/corpus/kubevirt fuzz/seeds/kubevirt -- -max_total_time=30
//! ```

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vm_watchdog_cli::fuzzing::{command_line, kubevirt_hook};

const ANNOTATIONS: [&str; 12] = [
    "i6300esb",
    "pretimeout",
    "before",
    "grace",
    "then",
    "action-interval",
    "action-burst",
    "interrupt",
    "metrics",
    "state",
    "id",
    "colour",
];
const VALUES: [&str; 16] = [
    "reset",
    "shutdown",
    "poweroff",
    "inject-nmi",
    "dump",
    "none",
    "5s",
    "1m",
    "3",
    "1",
    "msi",
    "9560",
    "[::1]:9560",
    "/var/lib/state",
    "",
    "reset,id=other",
];
const FRAGMENTS: [&str; 32] = [
    "<domain type='kvm'>",
    "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
    "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' xmlns:qemu='urn:other'>",
    "<os><type arch='x86_64' machine='pc-q35-rhel9.4.0'>hvm</type></os>",
    "<os><type arch='x86_64' machine='q35'>hvm</type></os>",
    "<os><type arch='aarch64' machine='virt'>hvm</type></os>",
    "<os><type machine='pc'>hvm</type></os>",
    "<devices>",
    "</devices>",
    "<interface type='ethernet'><address type='pci' domain='0x0000' bus='0x00' slot='0x1c' function='0x0'/></interface>",
    "<controller><address type='pci' slot='2'/></controller>",
    "<watchdog model='i6300esb' action='none'/>",
    "<watchdog model='itco' action='reset'/>",
    "<qemu:commandline>",
    "</qemu:commandline>",
    "<qemu:commandline/>",
    "<q:commandline  />",
    "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-s'/></commandline>",
    "<qemu:arg value='-device'/>",
    "<qemu:arg value='e1000,bus=pcie.0,addr=0x1c'/>",
    "<qemu:arg value='{\"driver\":\"vfio-user-pci\",\"id\":\"vm-watchdog\",\"bus\":\"pcie.0\",\"addr\":\"0x1b\"}'/>",
    "<qemu:arg value='-qmp'></qemu:arg>",
    "<qemu:arg value='unix:/var/run/launcher/qmp,server=on,wait=off'/>",
    "<qemu:env name='A' value='B'/>",
    "</domain>",
    "<!-- <domain> -->",
    "<![CDATA[</domain>]]>",
    "<?xml version='1.0'?>",
    "<!DOCTYPE domain>",
    "\n  ",
    "<metadata>&lt;&amp;</metadata>",
    "<a b='1' b='2'/>",
];

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Fragment(u8),
    Text(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Known(u8),
    Any(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Vmi<'a> {
    Annotations { name: Text<'a>, ours: Vec<(u8, Text<'a>)>, other: Option<(&'a str, &'a str)>, has_watchdog: bool },
    Json(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    vmi: Vmi<'a>,
    domain: Vec<Piece<'a>>,
}

impl Text<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Known(index) => VALUES[usize::from(*index) % VALUES.len()],
            Self::Any(text) => text,
        }
    }
}

impl Vmi<'_> {
    fn json(&self) -> String {
        let (name, ours, other, has_watchdog) = match self {
            Self::Json(text) => return (*text).to_owned(),
            Self::Annotations { name, ours, other, has_watchdog } => (name, ours, other, has_watchdog),
        };
        let annotation = |(index, value): &(u8, Text<'_>)| {
            let name = ANNOTATIONS[usize::from(*index) % ANNOTATIONS.len()];
            (format!("vm-watchdog/{name}"), Value::from(value.text()))
        };
        let mut annotations: Map<String, Value> = ours.iter().map(annotation).collect();
        annotations.extend(other.map(|(name, value)| (name.to_owned(), Value::from(value))));
        let watchdog = if *has_watchdog { json!({ "i6300esb": {} }) } else { Value::Null };
        json!({
            "metadata": { "name": name.text(), "annotations": annotations },
            "spec": { "domain": { "devices": { "watchdog": watchdog } } },
        })
        .to_string()
    }
}

fuzz_target!(|input: Input<'_>| {
    let vmi = input.vmi.json();
    let piece = |piece: &Piece<'_>| match piece {
        Piece::Fragment(index) => FRAGMENTS[usize::from(*index) % FRAGMENTS.len()].to_owned(),
        Piece::Text(text) => (*text).to_owned(),
    };
    let domain: String = input.domain.iter().take(100).map(piece).collect();
    match kubevirt_hook(&vmi, &domain) {
        Err(message) => check_message(&message),
        Ok((unchanged, None)) => {
            assert_eq!(unchanged, domain);
            let value: Value = serde_json::from_str(&vmi).expect("it was parsed");
            let annotations = value["metadata"]["annotations"].as_object();
            assert!(annotations.is_none_or(|all| !all.keys().any(|name| name.starts_with("vm-watchdog/"))));
        }
        Ok((changed, Some(server))) => {
            let words: Vec<&str> = ["vm-watchdog"].into_iter().chain(server.iter().map(String::as_str)).collect();
            assert_eq!(command_line(&words), Ok(()), "{words:?}");
            assert_eq!(kubevirt_hook(&vmi, &changed), Ok((changed.clone(), Some(server))), "the second call");
            assert!(changed.len() <= domain.len() + 1500);
            if !domain.contains("vm-watchdog") && !domain.contains("/var/run/launcher") {
                assert_eq!(changed.matches("\"vm-watchdog\"").count(), 1, "{changed}");
                let mut rest = changed.chars();
                let missing = domain.chars().find(|char| !rest.any(|other| other == *char));
                assert_eq!(missing, None, "{domain}\n{changed}");
            }
        }
    }
});

fn check_message(message: &str) {
    let starts = ["--vmi: ", "--vmi:", "--domain:", "annotation vm-watchdog/"];
    assert!(starts.iter().any(|start| message.starts_with(start)), "{message}");
    assert!(message.len() < 2000 && !message.contains(char::is_control), "{message:?}");
    if let Some(place) = message.strip_prefix("--domain:").filter(|place| !place.starts_with(' ')) {
        let numbers: Vec<_> = place.splitn(3, ':').take(2).map(str::parse::<u32>).collect();
        assert!(matches!(numbers[..], [Ok(1..), Ok(1..)]), "{message}");
    }
}

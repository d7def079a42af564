//! Calls `onDefineDomain`, with a stand-in for the first process of the sidecar.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::ResolveResult;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::TIMEOUT;

/// Domains as KubeVirt writes them, and one that a person has written.
pub const Q35: &str = include_str!("fixtures/q35.xml");
pub const VIRT: &str = include_str!("fixtures/virt.xml");
pub const HANDWRITTEN: &str = include_str!("fixtures/handwritten.xml");

/// The folder of the sockets as QEMU sees it.
pub const LAUNCHER: &str = "/var/run/kubevirt-hooks/hook-sidecar-0/vm-watchdog";

const QEMU: &[u8] = b"http://libvirt.org/schemas/domain/qemu/1.0";

/// A hook, and what it asks the first process for.
pub struct Hook {
    folder: TempDir,
    requests: Receiver<Vec<String>>,
}

/// A VM with these annotations.
pub fn vmi(annotations: &[(&str, &str)]) -> Value {
    let annotations: serde_json::Map<_, _> =
        annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": { "name": "web", "namespace": "shop", "creationTimestamp": null, "annotations": annotations },
        "spec": {
            "architecture": "amd64",
            "domain": { "devices": { "disks": [{ "name": "root", "disk": { "bus": "virtio" } }] } },
            "livenessProbe": { "tcpSocket": { "port": 80 } },
        },
        "status": {},
    })
}

/// A VM that asks for a watchdog with the action reset.
pub fn web() -> Value {
    vmi(&[("vm-watchdog/i6300esb", "reset")])
}

/// This program under the name of the hook, in a folder of its own.
pub fn link(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_vm-watchdog"), bin.join("onDefineDomain")).unwrap();
    bin
}

impl Hook {
    /// The first process starts every server.
    pub fn new() -> Self {
        Self::answered("")
    }

    /// The first process answers this; nothing means that the server listens.
    pub fn answered(answer: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        link(folder.path());
        let listener = UnixListener::bind(folder.path().join("requests")).unwrap();
        let (sender, requests) = channel();
        let answer = format!("{answer}\n");
        thread::spawn(move || {
            for mut stream in listener.incoming().map(Result::unwrap) {
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { folder, requests }
    }

    /// A hook outside of our sidecar.
    pub fn outside() -> Command {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut command = Command::new(link(&folder).join("onDefineDomain"));
        for name in ["SHARED", "LAUNCHER", "PRIVATE"] {
            command.env_remove(format!("VM_WATCHDOG_{name}_FOLDER"));
        }
        command
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(self.folder.path().join("bin/onDefineDomain"));
        command
            .env("VM_WATCHDOG_SHARED_FOLDER", "/var/run/kubevirt-hooks/vm-watchdog")
            .env("VM_WATCHDOG_LAUNCHER_FOLDER", LAUNCHER)
            .env("VM_WATCHDOG_PRIVATE_FOLDER", self.folder.path());
        command
    }

    pub fn call(&self, vmi: impl AsRef<OsStr>, domain: impl AsRef<OsStr>) -> Output {
        let arguments: [OsString; 4] = ["--vmi".into(), vmi.as_ref().into(), "--domain".into(), domain.as_ref().into()];
        self.command().args(arguments).output().unwrap()
    }

    /// The new domain.
    pub fn define(&self, vmi: &Value, domain: &str) -> String {
        let output = self.call(vmi.to_string(), domain);
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""));
        text(&output.stdout)
    }

    /// The one line of a hook that refuses.
    pub fn refuse(&self, vmi: &str, domain: &str) -> String {
        refusal(self.call(vmi, domain))
    }

    /// The arguments of the server that the last call asked for.
    pub fn server(&self) -> Vec<String> {
        self.requests.recv_timeout(TIMEOUT).unwrap()
    }

    /// No call has asked for a server.
    pub fn expect_no_server(&self) {
        assert_eq!(self.requests.try_recv(), Err(TryRecvError::Empty));
    }
}

/// The one line of a process that refuses and writes nothing.
pub fn refusal(output: Output) -> String {
    let message = text(&output.stderr);
    assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(1), ""), "{message}");
    let line = message.strip_prefix("vm-watchdog: ").unwrap_or_else(|| panic!("{message}"));
    let line = line.strip_suffix('\n').unwrap();
    assert!(!line.contains(|char: char| char.is_control()) && line.len() < 600, "{line}");
    line.to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// QEMU's options in a domain, as a parser with namespaces reads them.
pub fn options(domain: &str) -> Vec<String> {
    let mut reader = NsReader::from_str(domain);
    let (mut depth, mut is_in_options, mut found) = (0, false, Vec::new());
    reader.config_mut().expand_empty_elements = true;
    loop {
        let (namespace, event) = reader.read_resolved_event().unwrap();
        let is_qemu = matches!(namespace, ResolveResult::Bound(bound) if bound.as_ref() == QEMU);
        match event {
            Event::Start(element) => {
                depth += 1;
                match (depth, element.local_name().as_ref()) {
                    (2, name) => is_in_options = is_qemu && name == b"commandline",
                    (3, b"arg") if is_in_options && is_qemu => {
                        let value = element.try_get_attribute("value").unwrap().unwrap();
                        let value = value.normalized_value(quick_xml::XmlVersion::Explicit1_0).unwrap();
                        found.push(value.into_owned());
                    }
                    _ => {}
                }
            }
            Event::End(_) => depth -= 1,
            Event::Eof => return found,
            _ => {}
        }
    }
}

/// The device in a domain, which has exactly one of ours.
pub fn device(domain: &str) -> Value {
    let options = options(domain);
    let devices: Vec<_> = options.iter().filter(|option| option.contains("vfio-user-pci")).collect();
    let [device] = devices[..] else { panic!("{options:#?}") };
    serde_json::from_str(device).unwrap()
}

//! The fields of a VM that have to do with its health.

use vm_watchdog_probes::ProbeKind;

use super::documents::Document;
use super::ports::Ports;
use super::{probe, watchdog};
use crate::manifest::{Located, Manifest};
use crate::reader::{Fields, Others, Reader, Value};

pub fn read(reader: &mut Reader<'_, '_>, document: &Document, manifest: &mut Manifest) {
    reader.spec = if document.is_template { "spec.template.spec" } else { "spec" };
    let Some(root) = reader.fields(&document.root, &["apiVersion", "kind", "metadata", "spec"], Others::Ignored) else {
        return;
    };
    if let Some(metadata) = child(reader, &root, "metadata", &["name", "namespace"]) {
        manifest.name = metadata.get("name").and_then(|name| reader.name(name));
        manifest.namespace = metadata.get("namespace").and_then(|namespace| reader.name(namespace));
    }
    let instance = if document.is_template {
        let spec = required(reader, &root, "spec", &["template"]);
        let template = spec.and_then(|spec| required(reader, &spec, "template", &["spec"]));
        template.and_then(|template| required(reader, &template, "spec", &INSTANCE))
    } else {
        let spec = required(reader, &root, "spec", &INSTANCE_AND_TEMPLATE);
        if let Some(template) = spec.as_ref().and_then(|spec| spec.get("template")) {
            refuse_template(reader, template);
        }
        spec
    };
    if let Some(instance) = instance {
        instance_spec(reader, &instance, manifest);
    }
}

const INSTANCE: [&str; 5] =
    ["architecture", "domain", "livenessProbe", "readinessProbe", "terminationGracePeriodSeconds"];
/// Public guides have a template with labels in an instance, which has no meaning there.
const INSTANCE_AND_TEMPLATE: [&str; 6] =
    ["architecture", "domain", "livenessProbe", "readinessProbe", "terminationGracePeriodSeconds", "template"];

fn instance_spec(reader: &mut Reader<'_, '_>, spec: &Fields, manifest: &mut Manifest) {
    for (name, position) in &spec.nulls {
        if INSTANCE[2..4].contains(name) {
            reader.report.warn(*position, &spec.path(name), "has no value: this is no probe");
        }
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    manifest.termination_grace_period_s = grace.and_then(|grace| {
        let seconds = reader.count(grace)?;
        Some(Located::new(seconds, grace.position(), grace.path.as_str()))
    });
    let architecture = spec.get("architecture").and_then(|value| Some((reader.line(value)?, value.clone())));
    let domain = child(reader, spec, "domain", &["devices"]);
    let devices = domain.and_then(|domain| child(reader, &domain, "devices", &["interfaces", "watchdog"]));
    if let Some(device) = devices.as_ref().and_then(|devices| devices.get("watchdog")) {
        manifest.watchdogs.extend(watchdog::read(reader, device, architecture.as_ref()));
    }
    let mut ports = Ports::new(devices.as_ref().and_then(|devices| devices.get("interfaces")));
    let mut probe = |name, kind| spec.get(name).and_then(|value| probe::read(reader, value, kind, &mut ports));
    manifest.liveness = probe("livenessProbe", ProbeKind::Liveness);
    manifest.readiness = probe("readinessProbe", ProbeKind::Readiness);
    for (name, position) in spec.unknown.iter().filter(|(name, _)| name == "startupProbe") {
        reader.report.warn(*position, &spec.path(name), "unknown field, ignored: KubeVirt has no startup probe");
    }
}

/// The spec of an instance has no template. One that has belongs to a VirtualMachine.
fn refuse_template(reader: &mut Reader<'_, '_>, template: &Value) {
    let inner = reader.fields(template, &["spec"], Others::Ignored);
    if let Some(inner) = inner.as_ref().and_then(|template| template.get("spec")) {
        let message =
            "has no effect in a VirtualMachineInstance: write its fields in spec, or let kind be VirtualMachine";
        reader.error(inner, message);
    }
}

/// A mapping that may be absent.
fn child(reader: &mut Reader<'_, '_>, parent: &Fields, name: &'static str, known: &[&'static str]) -> Option<Fields> {
    reader.fields(parent.get(name)?, known, Others::Ignored)
}

/// A mapping that must be there.
fn required(
    reader: &mut Reader<'_, '_>,
    parent: &Fields,
    name: &'static str,
    known: &[&'static str],
) -> Option<Fields> {
    if parent.get(name).is_none() && !reader.report.has_errors() {
        reader.report.error(parent.position, &parent.path(name), "missing, or without a value");
    }
    child(reader, parent, name, known)
}

//! Files whose documents are no VM, several VMs, or no YAML.

use crate::{assert_refused, assert_spec_refused, refusal};

#[test]
fn documents_that_are_no_vm_are_named() {
    assert_refused(&[
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: []}}}\n",
            "2:7: kind: Deployment of apps/v1 is not a VM: accepted are VirtualMachine, VirtualMachineInstance of kubevirt.io",
        ),
        (
            "kind: Secret\napiVersion: v1\n---\nkind: Service\napiVersion: v1\n---\n",
            "1:1: no VM in this file, which has Secret of v1 (line 1), Service of v1 (line 4): accepted are VirtualMachine, \
             VirtualMachineInstance of kubevirt.io",
        ),
        (
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstanze\n",
            "2:7: kind: unknown kind \"VirtualMachineInstanze\": did you mean VirtualMachineInstance?",
        ),
        (
            "apiVersion: kubevirt/v1\nkind: VirtualMachine\n",
            "1:13: apiVersion: unknown API \"kubevirt/v1\": did you mean kubevirt.io/v1?",
        ),
        (
            "apiVersion: kubevirt.oi/v1\nkind: VirtualMachine\n",
            "1:13: apiVersion: unknown API \"kubevirt.oi/v1\": did you mean kubevirt.io/v1?",
        ),
        (
            "apiVersion: vmoperator.vmware.com/v1alpha2\nkind: VirtualMachine\n",
            "1:13: apiVersion: VirtualMachine of vmoperator.vmware.com/v1alpha2 is not a VM of KubeVirt: accepted are VirtualMachine, \
             VirtualMachineInstance of kubevirt.io/v1",
        ),
        ("kind: VirtualMachine\n", "1:1: the document has no apiVersion: accepted is kubevirt.io/v1"),
        ("apiVersion: kubevirt.io/v1\nkinds: VirtualMachine\n", "1:1: unknown field \"kinds\": did you mean kind?"),
        (
            "metadata: {name: a}\n",
            "1:1: the document has no kind: accepted are VirtualMachine, VirtualMachineInstance of kubevirt.io",
        ),
        (
            "just some text\n",
            "1:1: neither a manifest of KubeVirt (YAML or JSON), nor XML of libvirt, nor options of QEMU",
        ),
        ("apiVersion: kubevirt.io/v1\nkind: VirtualMachine\n", "1:1: spec: missing, or without a value"),
        (
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec: {}\n",
            "3:1: spec.template: missing, or without a value",
        ),
        (" \n\n", "1:1: the file is empty"),
    ]);
}

#[test]
fn a_document_that_may_be_a_part_of_the_vm_is_an_error() {
    let vm =
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  livenessProbe: {tcpSocket: {port: 80}}\n";
    let no_kind = "the document, which begins after a line of dots or hyphens, has no kind: accepted are VirtualMachine, \
                   VirtualMachineInstance of kubevirt.io";
    let cases = [
        ("...\n  readinessProbe: {tcpSocket: {port: 80}}\n", format!("6:3: {no_kind}")),
        ("---\nspec: {}\n", format!("6:1: {no_kind}")),
        (
            "---\nkind: virtualMachine\n",
            "6:7: kind: unknown kind \"virtualMachine\": did you mean VirtualMachine?".to_owned(),
        ),
    ];
    for (rest, expected) in cases {
        assert_eq!(refusal(&format!("{vm}{rest}"), None), expected);
    }
}

#[test]
fn several_vms_are_listed_to_choose_from() {
    let text = include_str!("../fixtures/several.yaml");
    let all = "\"shop/front\" (line 4), \"lab/front\" (line 12), \"shop/back\" (line 18)";
    let cases = [
        (None, format!("12:3: several VMs, choose one by its name: {all}")),
        (
            Some("front"),
            "12:3: several VMs are called \"front\": \"shop/front\" (line 4), \"lab/front\" (line 12)".to_owned(),
        ),
        (Some("middle"), format!("1:1: no VM is called \"middle\": the file has {all}")),
        (Some("lab/back"), format!("1:1: no VM is called \"lab/back\": the file has {all}")),
    ];
    for (vm, expected) in cases {
        assert_eq!(refusal(text, vm), expected);
    }
}

#[test]
fn yaml_and_json_errors_have_their_place() {
    assert_refused(&[
        ("apiVersion: kubevirt.io/v1\nkind: [VirtualMachine\n", "2:7: not valid YAML: unclosed bracket '['"),
        ("a: b: c\n", "1:5: not valid YAML: mapping values are not allowed in this context"),
        ("a: *b\n", "1:4: not valid YAML: while parsing node, found unknown anchor"),
        ("a: &b [*b]\n", "1:8: an alias inside of its own anchor is not accepted"),
    ]);
    assert_spec_refused(&[
        (
            "  livenessProbe: {tcpSocket: {port: 80}}\n  livenessProbe: {tcpSocket: {port: 81}}",
            "5:3: spec.livenessProbe: given twice",
        ),
        ("  <<: {livenessProbe: {}}", "4:3: spec.<<: merge keys are not supported: write the fields here"),
        (
            "  livenessProbe: {exec: {command: [!mine a]}}",
            "4:42: spec.livenessProbe.exec.command[0]: a tag is not accepted: write text",
        ),
    ]);
}

#[test]
fn several_problems_are_told_at_once_in_their_order() {
    assert_spec_refused(&[(
        "  livenessProbe:\n    tcpSocket: {port: 0}\n    failureTreshold: 3\n  readinessProve: {}",
        "5:23: spec.livenessProbe.tcpSocket.port: invalid value 0: accepted are whole numbers from 1 to 65535\n\
         6:5: spec.livenessProbe.failureTreshold: unknown field: did you mean failureThreshold?\n\
         7:3: spec.readinessProve: unknown field: did you mean readinessProbe?",
    )]);
}

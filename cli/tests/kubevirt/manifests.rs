//! The files of `packaging/kubevirt`, read by the programs that they are for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vm_watchdog_test_support::{python, skip};

use crate::hook::{Hook, Q35, device, vmi};

/// The programs and schemas of Kubernetes 1.37.
const KUBERNETES_VALIDATE: &str = "1.37.0";

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(packaging(name)).unwrap()
}

/// Runs a program that must succeed, and gives what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    format!("{}{stderr}", String::from_utf8_lossy(&output.stdout))
}

#[test]
fn the_annotations_of_the_example_are_those_of_the_hook() {
    let manifest = read("kubevirt/virtual-machine.yaml");
    let ours = manifest.lines().filter(|line| line.trim_start().starts_with("vm-watchdog/"));
    let annotations: Vec<_> = ours
        .map(|line| line.trim().split_once(": ").unwrap())
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    assert_eq!(annotations.len(), 4);
    let hook = Hook::new();
    device(&hook.define(&vmi(&annotations), Q35));
    assert!(hook.server().contains(&"i6300esb,action=reset,grace=60s,then=poweroff,id=web".to_owned()));
}

#[test]
fn the_example_is_a_vm_without_a_mistake_that_kubevirt_would_ignore() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
    let words = run(check.arg("check").arg(packaging("kubevirt/virtual-machine.yaml")));
    assert!(words.contains("VM of KubeVirt web\nWatchdog: none.\n"), "the device is ours: {words}");
}

#[test]
fn the_container_has_the_hook_under_its_name() {
    let file = read("kubevirt/Containerfile");
    for needed in ["ln -s vm-watchdog /out/onDefineDomain", "COPY --from=build /out/ /usr/bin/", "\"sidecar\"]"] {
        assert!(file.contains(needed), "{needed}");
    }
}

#[test]
fn the_rules_for_the_operator_are_those_for_prometheus() {
    let expected = read("prometheus/alerts.yaml");
    let manifest = run(&mut Command::new(packaging("kubevirt/prometheus-rule")));
    let (head, spec) = manifest.split_once("\nspec:\n").unwrap();
    assert!(head.contains("kind: PrometheusRule"), "{head}");
    let spec: Vec<_> = spec.lines().map(|line| line.strip_prefix("  ").unwrap()).collect();
    assert_eq!(spec, expected.lines().collect::<Vec<_>>());
    assert!(expected.contains("\ngroups:\n"), "{expected}");
}

#[test]
fn the_manifests_are_valid_for_kubernetes() {
    let folder = match python::package("kubernetes-validate", KUBERNETES_VALIDATE) {
        Ok(folder) => folder,
        Err(why) => return skip::loudly(&skip::this_test(), &why),
    };
    let validate = |file: &Path| {
        let mut validate = Command::new(folder.join("bin/kubernetes-validate"));
        validate.arg("--strict").arg(file).env("PYTHONPATH", &folder);
        validate
    };
    let policy = packaging("kubevirt/network-policy.yaml");
    assert!(run(&mut validate(&policy)).contains("passed for resource networkpolicy/vm-watchdog-metrics"));
    // Kinds that are not Kubernetes' own have no schema here: a warning.
    for name in ["virtual-machine", "pod-monitor"] {
        let words = run(&mut validate(&packaging(&format!("kubevirt/{name}.yaml"))));
        assert!(words.contains("WARN") && words.contains("find schema for kind"), "{words}");
    }
    let temporary = tempfile::tempdir().unwrap();
    let wrong = temporary.path().join("wrong.yaml");
    fs::write(&wrong, fs::read_to_string(policy).unwrap().replace("podSelector", "podSelektor")).unwrap();
    assert!(!validate(&wrong).output().unwrap().status.success(), "the checker sees a mistake");
}

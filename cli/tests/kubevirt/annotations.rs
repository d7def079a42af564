//! What annotations ask for, and those that are wrong.

use serde_json::json;

use crate::hook::{Hook, Q35, refusal, vmi, web};

/// The value after an option.
fn value<'a>(arguments: &'a [String], option: &str) -> &'a str {
    let at = arguments.iter().position(|argument| argument == option).unwrap_or_else(|| panic!("{arguments:?}"));
    &arguments[at + 1]
}

#[test]
fn the_server_gets_what_the_annotations_say() {
    let hook = Hook::new();
    hook.define(&web(), Q35);
    let server = hook.server();
    assert_eq!(server[0], "serve");
    assert_eq!(value(&server, "--watchdog"), "i6300esb,action=reset,id=web");
    let folder = "/var/run/kubevirt-hooks/vm-watchdog";
    assert_eq!(value(&server, "--socket"), format!("{folder}/watchdog"));
    assert_eq!(value(&server, "--qmp"), format!("{folder}/qmp"));
    assert_eq!(value(&server, "--metrics"), format!("unix:{folder}/metrics"));
    assert!(!value(&server, "--state").starts_with(folder), "QEMU cannot write the state");
    assert!(server.contains(&"--any-control-process".to_owned()), "QEMU is in another pid namespace: {server:?}");

    let all = vmi(&[
        ("vm-watchdog/i6300esb", "inject-nmi"),
        ("vm-watchdog/pretimeout", "inject-nmi"),
        ("vm-watchdog/before", "5s"),
        ("vm-watchdog/grace", "30s"),
        ("vm-watchdog/then", "poweroff"),
        ("vm-watchdog/action-interval", "1m"),
        ("vm-watchdog/action-burst", "2"),
        ("vm-watchdog/interrupt", "msi"),
        ("vm-watchdog/metrics", "9560"),
        ("vm-watchdog/state", "/state/watchdog"),
    ]);
    hook.define(&all, Q35);
    let server = hook.server();
    let expected = "i6300esb,action=inject-nmi,pretimeout=inject-nmi,before=5s,grace=30s,then=poweroff,action-interval=1m,\
                    action-burst=2,interrupt=msi,id=web";
    assert_eq!(value(&server, "--watchdog"), expected);
    assert_eq!(value(&server, "--metrics"), "0.0.0.0:9560");
    assert_eq!(value(&server, "--state"), "/state/watchdog");
}

#[test]
fn a_wrong_annotation_is_named_with_its_value_and_what_is_accepted() {
    let actions = "accepted are reset, shutdown, poweroff, pause, inject-nmi, none";
    let time = "accepted are a time like 500ms, 30s or 5m";
    let cases: [(&[(&str, &str)], String); 17] = [
        (&[("i6300esb", "explode")], format!("i6300esb: invalid value \"explode\": {actions}")),
        (&[("i6300esb", "dump")], format!("i6300esb: invalid value \"dump\": {actions}")),
        (&[("i6300esb", "")], format!("i6300esb: invalid value \"\": {actions}")),
        (&[("i6300esb", "reset,id=x")], format!("i6300esb: invalid value \"reset,id=x\": {actions}")),
        (&[("i6300esb", "reset"), ("then", "boom")], format!("then: invalid value \"boom\": {actions}")),
        (&[("i6300esb", "reset"), ("pretimeout", "Reset")], format!("pretimeout: invalid value \"Reset\": {actions}")),
        (
            &[("i6300esb", "reset"), ("then", "poweroff"), ("grace", "soon")],
            format!("grace: invalid value \"soon\": {time}"),
        ),
        (
            &[("i6300esb", "reset"), ("then", "poweroff"), ("grace", "30s,id=x")],
            format!("grace: invalid value \"30s,id=x\": {time}"),
        ),
        (
            &[("i6300esb", "reset"), ("grace", "30s")],
            "grace: needs the annotation vm-watchdog/then, which is missing".to_owned(),
        ),
        (
            &[("i6300esb", "reset"), ("then", "poweroff")],
            "then: needs the annotation vm-watchdog/grace, which is missing".to_owned(),
        ),
        (
            &[("i6300esb", "reset"), ("before", "1s")],
            "before: needs the annotation vm-watchdog/pretimeout, which is missing".to_owned(),
        ),
        (&[("grace", "30s")], "grace: needs the annotation vm-watchdog/i6300esb, which is missing".to_owned()),
        (&[("metrics", "9560")], "metrics: needs the annotation vm-watchdog/i6300esb, which is missing".to_owned()),
        (
            &[("i6300esb", "reset"), ("interrupt", "gpio")],
            "interrupt: invalid value \"gpio\": accepted are none, intx, msi".to_owned(),
        ),
        (
            &[("i6300esb", "reset"), ("metrics", "0")],
            "metrics: invalid value \"0\": accepted are a port like 9560, and an address with one, [::]:9560"
                .to_owned(),
        ),
        (
            &[("i6300esb", "reset"), ("state", "state")],
            "state: invalid value \"state\": accepted are absolute paths of a file, like /var/lib/vm-watchdog/state"
                .to_owned(),
        ),
        (
            &[("i6300esb", "reset"), ("steal-limit", "2")],
            "steal-limit: unknown: accepted are vm-watchdog/i6300esb, vm-watchdog/pretimeout, vm-watchdog/before, \
             vm-watchdog/grace, vm-watchdog/then, vm-watchdog/action-interval, vm-watchdog/action-burst, \
             vm-watchdog/interrupt, vm-watchdog/metrics, vm-watchdog/state"
                .to_owned(),
        ),
    ];
    let hook = Hook::new();
    for (annotations, message) in cases {
        let names: Vec<_> = annotations.iter().map(|(name, _)| format!("vm-watchdog/{name}")).collect();
        let annotations: Vec<_> =
            names.iter().map(String::as_str).zip(annotations.iter().map(|(_, value)| *value)).collect();
        let line = hook.refuse(&vmi(&annotations).to_string(), Q35);
        assert_eq!(line, format!("annotation vm-watchdog/{message}"));
        hook.expect_no_server();
    }
}

#[test]
fn a_watchdog_of_kubevirt_beside_ours_is_refused() {
    let mut vm = web();
    vm["spec"]["domain"]["devices"]["watchdog"] = json!({ "name": "wd", "i6300esb": { "action": "reset" } });
    let expected = "annotation vm-watchdog/i6300esb: the VM has an i6300esb of KubeVirt as well, in \
                    spec.domain.devices.watchdog: remove one of the two";
    assert_eq!(Hook::new().refuse(&vm.to_string(), Q35), expected);

    // It is KubeVirt's own business if we are not asked for.
    vm["metadata"]["annotations"] = json!({});
    assert_eq!(Hook::new().define(&vm, Q35), Q35);
}

#[test]
fn a_vm_without_a_plain_name_is_refused() {
    for (name, quoted) in [(json!("a,b"), "a,b"), (json!(""), ""), (json!(null), "")] {
        let mut vm = web();
        vm["metadata"]["name"] = name;
        let line = Hook::new().refuse(&vm.to_string(), Q35);
        let expected = "accepted are letters, digits, hyphens and dots";
        let message = format!("metadata.name: invalid value \"{quoted}\": {expected}");
        assert_eq!(line, format!("--vmi: no JSON of a VirtualMachineInstance: {message}"));
    }
}

#[test]
fn a_server_that_does_not_start_is_an_error_of_the_hook() {
    let reason = "it has ended (exit status: 1): its message is in the log of the sidecar";
    let line = Hook::answered(reason).refuse(&web().to_string(), Q35);
    assert_eq!(line, format!("the server for the watchdog: {reason}"));
}

#[test]
fn outside_of_our_sidecar_the_hook_says_what_is_missing() {
    let mut hook = Hook::outside();
    let line = refusal(hook.args(["--vmi", &web().to_string(), "--domain", Q35]).output().unwrap());
    let expected =
        "the server for the watchdog: it runs in a sidecar whose command is `vm-watchdog sidecar`, and this is none";
    assert_eq!(line, expected);
}

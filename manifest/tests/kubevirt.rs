//! Manifests of KubeVirt.

use vm_watchdog::{Action, DeviceModel};
use vm_watchdog_manifest::{Dialect, Manifest, Watchdog};
use vm_watchdog_probes::{Handler, Probe, Scheme};

fn parse(text: &str, vm: Option<&str>) -> Manifest {
    Manifest::parse("vm.yaml", text.as_bytes(), vm).unwrap_or_else(|error| panic!("{error}"))
}

fn watchdog(manifest: &Manifest) -> (DeviceModel, Action, Option<&str>) {
    let [watchdog] = &manifest.watchdogs[..] else { panic!("{:?}", manifest.watchdogs) };
    let Watchdog { model, action, name, .. } = &watchdog.value;
    (*model, *action, name.as_deref())
}

fn liveness(spec: &str) -> Probe {
    let text = format!("apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  livenessProbe: {spec}\n");
    parse(&text, None).liveness.expect("a probe").value
}

#[test]
fn a_virtual_machine_has_everything_in_its_template() {
    let manifest = parse(include_str!("fixtures/shop.yaml"), None);
    assert_eq!(manifest.dialect, Dialect::KubeVirt);
    assert_eq!((manifest.namespace.as_deref(), manifest.name.as_deref()), (Some("retail"), Some("shop")));
    assert_eq!(watchdog(&manifest), (DeviceModel::I6300esb, Action::Shutdown, Some("guard")));
    assert_eq!(manifest.termination_grace_period_s.as_ref().unwrap().value, 120);

    let liveness = manifest.liveness.as_ref().unwrap();
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let handler = Handler::HttpGet {
        scheme: Scheme::Https,
        host: Some("shop.example".to_owned()),
        port: 8080,
        path: "/alive?deep=1".to_owned(),
        headers: vec![header("Host", "shop.example"), header("X-Probe", "1")],
    };
    let expected = Probe {
        initial_delay_s: 90,
        period_s: 15,
        timeout_s: 4,
        failure_threshold: 5,
        termination_grace_period_s: Some(20),
        ..Probe::new(handler)
    };
    assert_eq!(liveness.value, expected);

    let command = ["test", "-e", "/run/shop ready"].map(str::to_owned).to_vec();
    let expected = Probe { success_threshold: 2, ..Probe::new(Handler::Exec { command }) };
    assert_eq!(manifest.readiness.as_ref().unwrap().value, expected);
    assert_eq!(manifest.warnings, []);
}

#[test]
fn parts_know_where_they_stand() {
    let manifest = parse(include_str!("fixtures/shop.yaml"), None);
    let liveness = manifest.liveness.unwrap().problem("slow");
    assert_eq!(liveness.to_string(), "52:7: spec.template.spec.livenessProbe: slow");
    let watchdog = manifest.watchdogs[0].problem("late");
    assert_eq!(watchdog.to_string(), "47:11: spec.template.spec.domain.devices.watchdog: late");
    let grace = manifest.termination_grace_period_s.unwrap().problem("long");
    assert_eq!(grace.to_string(), "28:38: spec.template.spec.terminationGracePeriodSeconds: long");
}

#[test]
fn older_versions_of_the_api_read_alike() {
    let manifest = parse(include_str!("fixtures/old-api.yaml"), None);
    assert_eq!(watchdog(&manifest), (DeviceModel::Diag288, Action::Reset, Some("ledger-watchdog")));
    assert_eq!(manifest.termination_grace_period_s, None);
    // 0 means the default.
    let readiness = manifest.readiness.unwrap().value;
    assert_eq!(readiness, Probe::new(Handler::TcpSocket { host: None, port: 5432 }));
}

#[test]
fn json_reads_as_yaml_does() {
    let manifest = parse(include_str!("fixtures/agent.json"), None);
    assert_eq!(watchdog(&manifest), (DeviceModel::I6300esb, Action::Poweroff, Some("wd")));
    assert_eq!(manifest.termination_grace_period_s.unwrap().value, 0);
    let liveness = manifest.liveness.unwrap();
    let expected = Probe { initial_delay_s: 60, failure_threshold: 2, ..Probe::new(Handler::GuestAgentPing) };
    assert_eq!(liveness.value, expected);
    let compact: String = include_str!("fixtures/agent.json").split(['\n', '\t']).collect();
    assert_eq!(parse(&compact, None).liveness.unwrap().value, expected);
}

#[test]
fn one_of_several_vms_is_chosen_by_its_name() {
    let text = include_str!("fixtures/several.yaml");
    for (name, port) in [("back", 82), ("shop/back", 82), ("shop/front", 80), ("lab/front", 81)] {
        let liveness = parse(text, Some(name)).liveness.unwrap().value;
        assert_eq!(liveness.handler, Handler::TcpSocket { host: None, port }, "{name}");
    }
}

#[test]
fn the_only_vm_may_be_named_too() {
    let manifest = parse(include_str!("fixtures/shop.yaml"), Some("retail/shop"));
    assert_eq!(manifest.name.as_deref(), Some("shop"));
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let http = |path: &str| Handler::HttpGet {
        scheme: Scheme::Http,
        host: None,
        port: 80,
        path: path.to_owned(),
        headers: Vec::new(),
    };
    assert_eq!(liveness("{httpGet: {port: 80}}"), Probe::new(http("/")));
    assert_eq!(liveness("{httpGet: {port: 80, path: '', host: '', scheme: '', httpHeaders: }}"), Probe::new(http("/")));
    assert_eq!(liveness("{httpGet: {port: 80, path: alive}, periodSeconds: ~}"), Probe::new(http("alive")));
}

#[test]
fn anchors_and_tags_of_text_are_read() {
    let text = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: !!str 1234}
spec:
  livenessProbe: &probe
    exec: {command: [!!str 1, &word two, *word]}
  readinessProbe: *probe
";
    let manifest = parse(text, None);
    assert_eq!(manifest.name.as_deref(), Some("1234"));
    assert_eq!(manifest.liveness.unwrap().value, manifest.readiness.as_ref().unwrap().value);
    let Handler::Exec { command } = manifest.readiness.unwrap().value.handler else { panic!() };
    assert_eq!(command, ["1", "two", "two"]);
}

#[test]
fn every_action_and_architecture_of_kubevirt_is_accepted() {
    for (model, architectures) in [("i6300esb", &["amd64", "arm64"][..]), ("diag288", &["s390x"])] {
        for architecture in architectures {
            for (settings, action) in [
                ("{action: poweroff}", Action::Poweroff),
                ("{action: shutdown}", Action::Shutdown),
                ("{action: reset}", Action::Reset),
                ("{action: ''}", Action::Reset),
                ("{}", Action::Reset),
            ] {
                let text = format!(
                    "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  architecture: {architecture}\n  \
                     domain: {{devices: {{watchdog: {{name: wd, {model}: {settings}}}}}}}\n"
                );
                let manifest = parse(&text, None);
                let (found, acted, _) = watchdog(&manifest);
                assert_eq!((found.as_str(), acted), (model, action), "{text}");
            }
        }
    }
}

#[test]
fn what_is_accepted_but_odd_is_a_warning() {
    let head = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n";
    let cases = [
        (
            "  livenessProbe: {tcpSocket: {port: 80}, timeoutSeconds: 10}\n",
            "4:58: spec.livenessProbe.timeoutSeconds: 10 is not less than periodSeconds, which is 10: an attempt may end when the next one is due",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: 80}, retries: 3}\n",
            "4:42: spec.livenessProbe.retries: unknown field, ignored: accepted are httpGet, tcpSocket, exec, guestAgentPing, initialDelaySeconds, \
             periodSeconds, timeoutSeconds, successThreshold, failureThreshold, terminationGracePeriodSeconds",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: 80}}\n  startupProbe: {tcpSocket: {port: 80}}\n",
            "5:3: spec.startupProbe: unknown field, ignored: KubeVirt has no startup probe",
        ),
        (
            "  livenessProbe:\n  readinessProbe: {tcpSocket: {port: 80}}\n",
            "4:3: spec.livenessProbe: has no value: this is no probe",
        ),
        ("  domain: {}\n", "1:1: this VM has no watchdog and no probe"),
    ];
    for (spec, expected) in cases {
        let warnings: Vec<_> = parse(&format!("{head}{spec}"), None).warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, [expected]);
    }
}

//! Fields of KubeVirt.

use crate::{assert_refused, assert_spec_refused};

#[test]
fn fields_that_are_nearly_known_are_errors() {
    assert_spec_refused(&[
        (
            "  livenessProve: {tcpSocket: {port: 80}}",
            "4:3: spec.livenessProve: unknown field: did you mean livenessProbe?",
        ),
        (
            "  LivenessProbe: {tcpSocket: {port: 80}}",
            "4:3: spec.LivenessProbe: unknown field: did you mean livenessProbe?",
        ),
        (
            "  readyness-probe: {tcpSocket: {port: 80}}",
            "4:3: spec.readyness-probe: unknown field: did you mean readinessProbe?",
        ),
        (
            "  livenessProbe:\n    tcpSocket: {port: 80}\n    periodSecond: 5",
            "6:5: spec.livenessProbe.periodSecond: unknown field: did you mean periodSeconds?",
        ),
        (
            "  livenessProbe:\n    httpget: {port: 80}",
            "5:5: spec.livenessProbe.httpget: unknown field: did you mean httpGet?",
        ),
        (
            "  livenessProbe: {tcpSocket: {ports: 80}}",
            "4:31: spec.livenessProbe.tcpSocket.ports: unknown field: did you mean port?",
        ),
        (
            "  domain: {devices: {watchDog: {}}}",
            "4:22: spec.domain.devices.watchDog: unknown field: did you mean watchdog?",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, i6300ESB: {}}}}",
            "4:42: spec.domain.devices.watchdog.i6300ESB: unknown field: did you mean i6300esb?",
        ),
        (
            "  terminationGracePeriodSecond: 5",
            "4:3: spec.terminationGracePeriodSecond: unknown field: did you mean terminationGracePeriodSeconds?",
        ),
    ]);
}

#[test]
fn fields_in_the_wrong_place_are_errors() {
    assert_spec_refused(&[
        ("  domain:\n    livenessProbe: {}", "5:5: spec.domain.livenessProbe: has no effect here: it belongs in spec"),
        ("  watchdog: {}", "4:3: spec.watchdog: has no effect here: it belongs in spec.domain.devices"),
        (
            "  template:\n    spec: {livenessProbe: {}}",
            "5:5: spec.template.spec: has no effect in a VirtualMachineInstance: write its fields in spec, or let kind be VirtualMachine",
        ),
    ]);
    assert_refused(&[(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec:\n  livenessProbe: {}\n  template: {spec: {}}\n",
        "4:3: spec.livenessProbe: has no effect here: it belongs in spec.template.spec",
    )]);
}

#[test]
fn placeholders_and_elisions_of_guides_are_named() {
    assert_spec_refused(&[
        (
            "  domain: {devices: {watchdog: {name: <watchdog>, i6300esb: {action: <action>}}}}",
            "4:39: spec.domain.devices.watchdog.name: \"<watchdog>\" is a placeholder of a guide: write the value that it stands for\n\
             4:70: spec.domain.devices.watchdog.i6300esb.action: \"<action>\" is a placeholder of a guide: write the value that it stands for",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, <model>: {}}}}",
            "4:42: spec.domain.devices.watchdog.<model>: is a placeholder of a guide: accepted here are i6300esb, diag288",
        ),
        (
            "  livenessProbe:\n    periodSeconds: <seconds>\n    tcpSocket: {port: <port>}",
            "5:20: spec.livenessProbe.periodSeconds: \"<seconds>\" is a placeholder of a guide: write a whole number\n\
             6:23: spec.livenessProbe.tcpSocket.port: \"<port>\" is a placeholder of a guide: write the value that it stands for",
        ),
        (
            "  ...\n  livenessProbe: {tcpSocket: {port: 80}}",
            "4:3: ... stands for lines that a guide has left out: write them, or remove it",
        ),
        ("  domain: ...", "4:11: spec.domain: ... stands for what a guide has left out: write a mapping with fields"),
        (
            "  domain: {...}",
            "4:12: spec.domain.\"...\": stands for lines that a guide has left out: write them, or remove it",
        ),
    ]);
    assert_refused(&[(
        "<domain>...</domain",
        "1:12: not valid XML: syntax error: tag not closed: `>` not found before end of input",
    )]);
}

#[test]
fn watchdogs_of_kubevirt_follow_its_rules() {
    assert_spec_refused(&[
        (
            "  domain: {devices: {watchdog: {name: a, i6300esb: {action: explode}}}}",
            "4:61: spec.domain.devices.watchdog.i6300esb.action: unknown watchdog action \"explode\": accepted are poweroff, reset, shutdown",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, i6300esb: {action: Power-Off}}}}",
            "4:61: spec.domain.devices.watchdog.i6300esb.action: unknown watchdog action \"Power-Off\": did you mean poweroff?",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, i6300esb: {action: pause}}}}",
            "4:61: spec.domain.devices.watchdog.i6300esb.action: unknown watchdog action \"pause\": accepted are poweroff, reset, shutdown",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, i6300esb: {}, diag288: {}}}}",
            "4:22: spec.domain.devices.watchdog: i6300esb and diag288: accepted is exactly one model",
        ),
        (
            "  domain: {devices: {watchdog: {name: a}}}",
            "4:22: spec.domain.devices.watchdog: no model: accepted are i6300esb, diag288",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, ib700: {}}}}",
            "4:42: spec.domain.devices.watchdog.ib700: unknown watchdog model: accepted are i6300esb, diag288",
        ),
        (
            "  domain: {devices: {watchdog: {name: a, i6300esb: }}}",
            "4:42: spec.domain.devices.watchdog.i6300esb: has no value, which means no watchdog: write i6300esb: {}",
        ),
        (
            "  domain: {devices: {watchdog: {i6300esb: {}}}}",
            "4:22: spec.domain.devices.watchdog.name: missing: KubeVirt wants a name",
        ),
        (
            "  domain: {devices: {watchdog: [i6300esb]}}",
            "4:22: spec.domain.devices.watchdog: is a list: accepted is a mapping with fields",
        ),
        (
            "  architecture: s390x\n  domain: {devices: {watchdog: {name: a, i6300esb: {}}}}",
            "4:17: spec.architecture: i6300esb does not exist on s390x: accepted are amd64, arm64",
        ),
        (
            "  architecture: amd64\n  domain: {devices: {watchdog: {name: a, diag288: {}}}}",
            "4:17: spec.architecture: diag288 does not exist on amd64: accepted are s390x",
        ),
    ]);
}

#[test]
fn probes_have_exactly_one_handler() {
    let handlers = "httpGet, tcpSocket, exec, guestAgentPing";
    assert_spec_refused(&[
        ("  livenessProbe: {}", &format!("4:3: spec.livenessProbe: no handler: accepted is exactly one of {handlers}")),
        (
            "  livenessProbe:\n    httpGet: {port: 80}\n    guestAgentPing: {}",
            "6:5: spec.livenessProbe: httpGet and guestAgentPing: accepted is exactly one handler",
        ),
        (
            "  readinessProbe:\n    guestAgentPing:\n    periodSeconds: 5",
            "5:5: spec.readinessProbe.guestAgentPing: has no value, which means no handler: write guestAgentPing: {} or its fields",
        ),
        (
            "  livenessProbe: {httpGet: {path: /}}",
            "4:19: spec.livenessProbe.httpGet.port: missing: accepted are 1 to 65535 and the name of a port of an interface",
        ),
        ("  livenessProbe: {exec: {}}", "4:3: spec.livenessProbe.exec.command: invalid value []: must name a program"),
        (
            "  livenessProbe: {exec: {command: cat /tmp/x}}",
            "4:35: spec.livenessProbe.exec.command: invalid value \"cat /tmp/x\": accepted is a list",
        ),
        (
            "  livenessProbe: {exec: {command: [sleep, 5]}}",
            "4:43: spec.livenessProbe.exec.command[1]: 5 is a number, not text: put it in quotes",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, scheme: https}}",
            "4:47: spec.livenessProbe.httpGet.scheme: unknown scheme \"https\": did you mean HTTPS?",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, scheme: ftp}}",
            "4:47: spec.livenessProbe.httpGet.scheme: unknown scheme \"ftp\": accepted are HTTP, HTTPS",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: 'X Y', value: a}]}}",
            "4:60: spec.livenessProbe.httpGet.httpHeaders[0].name: invalid value \"X Y\": must be the name of an HTTP header",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: A}]}}",
            "4:53: spec.livenessProbe.httpGet.httpHeaders[0].value: missing",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, httpHeaders: [{name: A, value: true}]}}",
            "4:70: spec.livenessProbe.httpGet.httpHeaders[0].value: true is a boolean, not text: write \"true\"",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: 80, host: 'a b'}}",
            "4:47: spec.livenessProbe.tcpSocket.host: invalid value \"a b\": must be an IP address or a DNS name",
        ),
        (
            "  livenessProbe: {httpGet: {port: 80, path: \"/\\r\\nHost: x\"}}",
            "4:45: spec.livenessProbe.httpGet.path: invalid value \"/\\r\\nHost: x\": control characters are not accepted",
        ),
        (
            "  livenessProbe: {exec: {command: [\"a\\0b\"]}}",
            "4:36: spec.livenessProbe.exec.command[0]: a NUL character is not accepted",
        ),
    ]);
}

#[test]
fn numbers_have_the_ranges_of_kubernetes() {
    let probe = "  livenessProbe:\n    tcpSocket: {port: 80}\n";
    let ready = "  readinessProbe:\n    tcpSocket: {port: 80}\n";
    let cases = [
        (probe, "initialDelaySeconds: -1", "invalid value -1: accepted are whole numbers from 0 to 2147483647"),
        (probe, "periodSeconds: 1.5", "invalid value \"1.5\": accepted is a whole number"),
        (probe, "periodSeconds: 010", "invalid value \"010\": accepted is a whole number"),
        (probe, "periodSeconds: ten", "invalid value \"ten\": accepted is a whole number"),
        (probe, "periodSeconds: 10s", "invalid value \"10s\": accepted is a whole number"),
        (probe, "periodSeconds: \"10\"", "\"10\" is text: write the number without quotes"),
        (probe, "periodSeconds: [10]", "is a list: accepted is a whole number"),
        (
            probe,
            "timeoutSeconds: 2147483648",
            "invalid value 2147483648: accepted are whole numbers from 0 to 2147483647",
        ),
        (
            probe,
            "timeoutSeconds: 99999999999999999999999",
            "invalid value 99999999999999999999999: accepted are whole numbers from 0 to 2147483647",
        ),
        (probe, "failureThreshold: 0", "invalid value 0: must be at least 1"),
        (probe, "successThreshold: 2", "invalid value 2: must be 1 in a liveness probe"),
        (ready, "successThreshold: 0", "invalid value 0: must be at least 1"),
        (probe, "terminationGracePeriodSeconds: 0", "invalid value 0: must be at least 1"),
        (ready, "terminationGracePeriodSeconds: 5", "invalid value 5: must be absent in a readiness probe"),
    ];
    for (probe, field, expected) in cases {
        let (name, value) = field.split_once(": ").unwrap();
        let is_list = value.starts_with('[');
        let column = if is_list { 5 } else { 7 + name.len() };
        let kind = probe.trim_start().split(':').next().unwrap();
        assert_spec_refused(&[(
            &format!("{probe}    {field}"),
            &format!("6:{column}: spec.{kind}.{name}: {expected}"),
        )]);
    }
    assert_spec_refused(&[(
        "  terminationGracePeriodSeconds: 1m",
        "4:34: spec.terminationGracePeriodSeconds: invalid value \"1m\": accepted is a whole number",
    )]);
}

#[test]
fn ports_are_numbers_or_names_of_the_interfaces() {
    let ports = "  domain: {devices: {interfaces: [{ports: [{name: web, port: 80}, {name: web, port: 81}, {name: dns, port: 53, protocol: UDP}]}]}}\n";
    assert_spec_refused(&[
        (
            "  livenessProbe: {tcpSocket: {port: 0}}",
            "4:37: spec.livenessProbe.tcpSocket.port: invalid value 0: accepted are whole numbers from 1 to 65535",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: 65536}}",
            "4:37: spec.livenessProbe.tcpSocket.port: invalid value 65536: accepted are whole numbers from 1 to 65535",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: \"80\"}}",
            "4:37: spec.livenessProbe.tcpSocket.port: \"80\" is text: write the number without quotes",
        ),
        (
            "  livenessProbe: {tcpSocket: {port: web}}",
            "4:37: spec.livenessProbe.tcpSocket.port: unknown port \"web\": accepted are 1 to 65535 and the ports of the interfaces, \
             which have no named TCP port",
        ),
        (
            &format!("{ports}  livenessProbe: {{tcpSocket: {{port: dns}}}}"),
            "5:37: spec.livenessProbe.tcpSocket.port: unknown port \"dns\": accepted are 1 to 65535 and the ports of the interfaces, \
             \"web\", \"web\"",
        ),
        (
            &format!("{ports}  livenessProbe: {{tcpSocket: {{port: web}}}}"),
            "5:37: spec.livenessProbe.tcpSocket.port: several ports are called \"web\": 80, 81",
        ),
    ]);
}

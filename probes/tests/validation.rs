//! What Kubernetes accepts in the fields of a probe, and the message for what it does not.

use vm_watchdog_probes::{GuestAddress, Handler, Probe, ProbeKind, Scheme};

fn http_get(host: Option<&str>, port: u16, headers: &[(&str, &str)]) -> Handler {
    Handler::HttpGet {
        scheme: Scheme::Http,
        host: host.map(str::to_owned),
        port,
        path: "/".to_owned(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
    }
}

fn exec(command: &[&str]) -> Handler {
    Handler::Exec { command: command.iter().map(|word| word.to_string()).collect() }
}

#[test]
fn the_message_names_the_field_the_value_and_what_is_accepted() {
    let ping = Probe::new(Handler::GuestAgentPing);
    let with = |handler| Probe::new(handler);
    let rows = [
        (
            ProbeKind::Liveness,
            Probe { failure_threshold: 0, ..ping.clone() },
            "failureThreshold: invalid value 0: must be at least 1",
        ),
        (
            ProbeKind::Liveness,
            Probe { success_threshold: 0, ..ping.clone() },
            "successThreshold: invalid value 0: must be 1 in a liveness probe",
        ),
        (
            ProbeKind::Liveness,
            Probe { success_threshold: 3, ..ping.clone() },
            "successThreshold: invalid value 3: must be 1 in a liveness probe",
        ),
        (
            ProbeKind::Readiness,
            Probe { success_threshold: 0, ..ping.clone() },
            "successThreshold: invalid value 0: must be at least 1",
        ),
        (
            ProbeKind::Liveness,
            Probe { termination_grace_period_s: Some(0), ..ping.clone() },
            "terminationGracePeriodSeconds: invalid value 0: must be at least 1",
        ),
        (
            ProbeKind::Readiness,
            Probe { termination_grace_period_s: Some(30), ..ping.clone() },
            "terminationGracePeriodSeconds: invalid value 30: must be absent in a readiness probe",
        ),
        (ProbeKind::Readiness, with(http_get(None, 0, &[])), "httpGet.port: invalid value 0: must be from 1 to 65535"),
        (
            ProbeKind::Readiness,
            with(Handler::TcpSocket { host: None, port: 0 }),
            "tcpSocket.port: invalid value 0: must be from 1 to 65535",
        ),
        (
            ProbeKind::Readiness,
            with(Handler::TcpSocket { host: Some(String::new()), port: 1 }),
            "tcpSocket.host: invalid value \"\": must be an IP address or a DNS name",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(Some("a b"), 80, &[])),
            "httpGet.host: invalid value \"a b\": must be an IP address or a DNS name",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(Some("[::1]"), 80, &[])),
            "httpGet.host: invalid value \"[::1]\": must be an IP address or a DNS name",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(Some("a..b"), 80, &[])),
            "httpGet.host: invalid value \"a..b\": must be an IP address or a DNS name",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(Some("127.0.0.1%lo"), 80, &[])),
            "httpGet.host: invalid value \"127.0.0.1%lo\": must be an IP address or a DNS name",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(None, 80, &[("A", "b"), ("", "x")])),
            "httpGet.httpHeaders[1].name: invalid value \"\": must be the name of an HTTP header",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(None, 80, &[("X:Y", "x")])),
            "httpGet.httpHeaders[0].name: invalid value \"X:Y\": must be the name of an HTTP header",
        ),
        (
            ProbeKind::Readiness,
            with(http_get(None, 80, &[("X", "a\r\nY: b")])),
            "httpGet.httpHeaders[0].value: invalid value \"a\\r\\nY: b\": must have no control characters",
        ),
        (ProbeKind::Liveness, with(exec(&[])), "exec.command: invalid value []: must name a program"),
        (ProbeKind::Liveness, with(exec(&["", "x"])), "exec.command[0]: invalid value \"\": must name a program"),
    ];
    for (kind, probe, message) in rows {
        assert_eq!(probe.checked(kind).map_err(|error| error.to_string()), Err(message.to_owned()));
    }
}

#[test]
fn every_field_is_reported() {
    let probe =
        Probe { failure_threshold: 0, success_threshold: 2, ..Probe::new(http_get(Some(""), 0, &[("", "\0")])) };
    let error = probe.checked(ProbeKind::Liveness).expect_err("six mistakes");
    let fields: Vec<&str> = error.fields().iter().map(|field| field.field()).collect();
    let expected = [
        "failureThreshold",
        "successThreshold",
        "httpGet.host",
        "httpGet.port",
        "httpGet.httpHeaders[0].name",
        "httpGet.httpHeaders[0].value",
    ];
    assert_eq!(fields, expected);
    assert_eq!(error.to_string().matches("; ").count(), 5);
}

#[test]
fn what_kubernetes_accepts_is_accepted() {
    let ping = Probe::new(Handler::GuestAgentPing);
    let largest = Probe {
        initial_delay_s: u32::MAX,
        period_s: u32::MAX,
        timeout_s: u32::MAX,
        failure_threshold: u32::MAX,
        ..ping.clone()
    };
    let rows = [
        (ProbeKind::Liveness, ping.clone()),
        (ProbeKind::Liveness, largest),
        (ProbeKind::Liveness, Probe { termination_grace_period_s: Some(1), ..ping.clone() }),
        (ProbeKind::Readiness, Probe { success_threshold: 3, ..ping.clone() }),
        (ProbeKind::Readiness, Probe { timeout_s: 60, period_s: 1, ..ping }),
        (
            ProbeKind::Readiness,
            Probe::new(http_get(Some("fe80::1%tap0"), 65535, &[("X-Custom_1", "tab\t and ümlaut")])),
        ),
        (ProbeKind::Readiness, Probe::new(http_get(Some("app_1.Example.org."), 1, &[]))),
        (ProbeKind::Readiness, Probe::new(exec(&["cat", ""]))),
    ];
    for (kind, probe) in rows {
        assert_eq!(probe.clone().checked(kind), Ok(probe));
    }
}

#[test]
fn a_period_or_timeout_of_0_is_the_default() {
    let probe = Probe { period_s: 0, timeout_s: 0, ..Probe::new(Handler::GuestAgentPing) };
    assert_eq!(probe.warnings(), [""; 0]);
    assert_eq!(probe.checked(ProbeKind::Liveness), Ok(Probe::new(Handler::GuestAgentPing)));
}

#[test]
fn a_timeout_that_is_not_less_than_the_period_is_a_warning() {
    let ping = Probe::new(Handler::GuestAgentPing);
    for (period_s, timeout_s, warns) in
        [(10, 9, false), (10, 10, true), (1, 1, true), (0, 10, true), (1, 0, true), (2, 0, false)]
    {
        let probe = Probe { period_s, timeout_s, ..ping.clone() };
        assert_eq!(!probe.warnings().is_empty(), warns, "period {period_s}, timeout {timeout_s}");
    }
}

#[test]
fn an_address_prints_as_it_is_parsed() {
    for text in ["192.168.122.7", "::1", "fd00::7", "fe80::1%tap0", "fe80::1%2"] {
        assert_eq!(text.parse::<GuestAddress>().map(|address| address.to_string()), Ok(text.to_owned()));
    }
    for text in [
        "",
        "guest",
        "1.2.3",
        "fe80::1%",
        "fe80::1%a/b",
        "fe80::1%a%b",
        "fe80::1%0123456789abcdef",
        "%eth0",
        "[::1]",
        "::1 ",
    ] {
        let error = text.parse::<GuestAddress>().expect_err("not an address").to_string();
        assert!(error.starts_with(&format!("invalid address {text:?}: accepted are an IPv4 address")), "{error}");
    }
}

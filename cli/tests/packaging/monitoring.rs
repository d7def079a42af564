//! The alert rules, the dashboard and the page of metrics, against the metrics of real servers.
//!
//! Each test of an alert brings a server into a state and has promtool evaluate the rules on what the server wrote before and
//! after. A metric that is renamed fails them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vm_watchdog_test_support::prometheus::Promtool;
use vm_watchdog_test_support::skip;

use crate::client::{Client, RESET};
use crate::fakes::{FakeQmp, QmpClient};
use crate::server::{Builder, Server, TIMEOUT};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/prometheus/alerts.yaml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/grafana/dashboard.json");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring.md");

/// How many minutes a state lasts, and the one after it.
const BEFORE: usize = 6;
const AFTER: usize = 40;

/// The alerts that fire.
const FIRING: &str = "count by (alertname) (ALERTS{alertstate=\"firing\"})";

/// A metric with its labels, and its value.
type Scrape = BTreeMap<String, String>;

/// A metric with its labels, and its values in promtool's notation, one a minute.
type Series = BTreeMap<String, String>;

/// A VM of a fake QEMU, and its server.
struct Vm {
    server: Server,
    qmp: QmpClient,
    client: Client,
}

impl Vm {
    fn start(watchdogs: &str) -> Self {
        Self::with(Builder::new(), watchdogs)
    }

    /// With a liveness and a readiness probe that connect to this port.
    fn probed(port: u16, watchdogs: &str) -> Self {
        let builder = Builder::new().options("--manifest vm.yaml --address 127.0.0.1 --liveness-action none");
        let probe = format!("{{tcpSocket: {{port: {port}}}, periodSeconds: 1, failureThreshold: 1}}");
        let manifest = format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  livenessProbe: {probe}\n  readinessProbe: {probe}\n"
        );
        fs::write(builder.path().join("vm.yaml"), manifest).unwrap();
        Self::with(builder, watchdogs)
    }

    /// `watchdogs` are options; the VM is connected to `s`.
    fn with(builder: Builder, watchdogs: &str) -> Self {
        let builder = builder.options("--name web --qmp q --metrics unix:m").options(watchdogs);
        let qmp = FakeQmp::listen(&builder.path().join("q"));
        let server = builder.start();
        let qmp = qmp.accept(&server, true);
        let client = server.client();
        Self { server, qmp, client }
    }

    fn scrape(&self) -> Scrape {
        scrape(&self.server)
    }

    /// Scrapes until the watchdog's metric has this value.
    fn scrape_when(&self, name: &str, wanted: &str) -> Scrape {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let scrape = self.scrape();
            if value(&scrape, name) == wanted {
                return scrape;
            }
            assert!(Instant::now() < deadline, "{name} is not {wanted}: {scrape:#?}");
            sleep(Duration::from_millis(10));
        }
    }

    fn time_out(&mut self) {
        self.client.arm(1);
        self.server.expect_where("expiry", |event| event["stage"] == "timeout");
    }
}

fn scrape(server: &Server) -> Scrape {
    let text = scraped_text(server);
    let line = |line: &str| line.rsplit_once(' ').map(|(series, value)| (series.to_owned(), value.to_owned()));
    text.lines().filter(|line| !line.starts_with('#')).map(|text| line(text).expect("a value")).collect()
}

fn scraped_text(server: &Server) -> String {
    let mut stream = UnixStream::connect(server.path("m")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The value of a metric of the first watchdog; empty if there is none.
fn value<'a>(scrape: &'a Scrape, name: &str) -> &'a str {
    let series = format!("vm_watchdog_{name}{{id=\"watchdog0\",vm=\"web\"}}");
    scrape.get(&series).map_or("", String::as_str)
}

/// What Prometheus has: one scrape for some minutes, and then the other one.
fn series(before: &Scrape, after: &Scrape) -> Series {
    let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let values = |name: &String| {
        let first = before.get(name).map_or_else(|| format!("_x{BEFORE}"), |value| format!("{value}+0x{}", BEFORE - 1));
        // Prometheus marks a series that is no longer in a scrape.
        let then = match after.get(name) {
            Some(value) => format!("{value}+0x{AFTER}"),
            None => format!("stale _x{AFTER}"),
        };
        format!("{first} {then}")
    };
    let labelled = |name: &String| name.replacen('{', "{instance=\"host:9560\",job=\"vm-watchdog\",", 1);
    all.into_iter().map(|name| (labelled(name), values(name))).collect()
}

/// A test of promtool: what fires after so many minutes.
fn firing(series: &Series, minute: usize, alerts: &[&str]) -> Value {
    let input: Vec<_> = series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    let sample = |alert: &&str| json!({"labels": format!("{{alertname=\"{alert}\"}}"), "value": 1});
    let samples: Vec<_> = alerts.iter().map(sample).collect();
    let query = json!({"expr": FIRING, "eval_time": format!("{minute}m"), "exp_samples": samples});
    json!({"interval": "1m", "input_series": input, "promql_expr_test": [query]})
}

/// Runs promtool, or reports the test as skipped.
fn promtool(arguments: &[&str], input: &str) -> Option<Output> {
    let promtool = match Promtool::fetch() {
        Ok(promtool) => promtool,
        Err(why) => {
            skip::loudly(&skip::this_test(), &why);
            return None;
        }
    };
    let mut command = promtool.command();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

fn report(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Has promtool run these tests of the rules in a file.
fn check(rules: &str, tests: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tests.json");
    let text = json!({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}).to_string();
    fs::write(&path, text).unwrap();
    if let Some(output) = promtool(&["test", "rules", path.to_str().unwrap()], "") {
        let report = report(&output);
        assert!(output.status.success(), "{report}");
    }
}

/// Checks what fires a few minutes after a change.
fn expect(before: &Scrape, after: &Scrape, minute: usize, alerts: &[&str]) {
    check(RULES, &[firing(&series(before, after), minute, alerts)]);
}

const SOON: usize = 10;

#[test]
fn a_vm_that_is_well_raises_no_alert() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut vm = Vm::probed(listener.local_addr().unwrap().port(), "--socket s --watchdog i6300esb");
    vm.client.arm(60_000);
    vm.client.ping();
    vm.server.expect_where("probe", |event| event["id"] == "readiness" && event["result"] == "success");
    let scrape = vm.scrape();
    expect(&scrape, &scrape, AFTER, &[]);
}

#[test]
fn a_timeout_is_an_alert_and_a_guest_that_does_not_recover_is_another_one() {
    let mut vm = Vm::start("--socket s --watchdog i6300esb");
    let before = vm.scrape();
    vm.time_out();
    vm.qmp.answer("system_reset", json!({}));
    let after = vm.scrape_when("actions_total", "1");
    expect(&before, &after, SOON, &["VmWatchdogNotRecovered", "VmWatchdogTimeout"]);
    vm.client.ask(RESET, &[]).unwrap();
    expect(&before, &vm.scrape_when("armed", "0"), SOON, &["VmWatchdogTimeout"]);
}

#[test]
fn an_action_that_fails_is_an_alert() {
    let mut vm = Vm::start("--socket s --watchdog i6300esb");
    let before = vm.scrape();
    vm.time_out();
    vm.qmp.refuse("system_reset", "not now");
    let after = vm.scrape_when("action_failures_total", "1");
    expect(&before, &after, SOON, &["VmWatchdogActionFailed", "VmWatchdogNotRecovered", "VmWatchdogTimeout"]);
}

#[test]
fn an_action_beyond_the_rate_is_an_alert() {
    let mut vm = Vm::start("--socket s --watchdog i6300esb,action-interval=60m,action-burst=1");
    let before = vm.scrape();
    vm.time_out();
    vm.qmp.answer("system_reset", json!({}));
    vm.server.expect("performed");
    vm.time_out();
    vm.server.expect("action-delayed");
    let after = vm.scrape_when("delayed_actions_total", "1");
    expect(&before, &after, SOON, &["VmWatchdogActionSuppressed", "VmWatchdogNotRecovered", "VmWatchdogTimeout"]);
}

#[test]
fn a_late_heartbeat_is_an_alert_before_the_timeout() {
    let mut vm = Vm::start("--socket s --watchdog i6300esb,action=none");
    // A period of 5.9 s, of which a quarter is left after 4.4 s. On a loaded machine it may be over after the sleep.
    vm.client.arm(3000);
    let (before, after) = (0..10)
        .find_map(|_| {
            vm.client.ping();
            let before = vm.scrape();
            sleep(Duration::from_millis(4600));
            let after = vm.scrape();
            (!value(&after, "time_left_seconds").is_empty()).then_some((before, after))
        })
        .expect("a scrape in the last quarter");
    expect(&before, &after, SOON, &["VmWatchdogHeartbeatLate"]);
    expect(&before, &before, SOON, &[]);
}

#[test]
fn a_guest_that_is_not_protected_is_an_alert_whose_text_names_its_vm() {
    let mut vm = Vm::start("--socket s --watchdog i6300esb,action=none --no-rearm");
    vm.client.arm(3000);
    vm.client.ask(RESET, &[]).unwrap();
    let before = vm.scrape();
    for _ in 0..3 {
        sleep(Duration::from_millis(600));
        vm.client.ping();
    }
    vm.server.expect("unprotected");
    let series = series(&before, &vm.scrape());
    let mut test = firing(&series, SOON, &["VmWatchdogUnprotected"]);
    test["alert_rule_test"] = json!([{
        "eval_time": format!("{SOON}m"),
        "alertname": "VmWatchdogUnprotected",
        "exp_alerts": [{
            "exp_labels": {"severity": "critical", "vm": "web", "id": "watchdog0", "instance": "host:9560", "job": "vm-watchdog"},
            "exp_annotations": {
                "summary": "The guest of VM web is not protected, and does not know it",
                "description": "The guest feeds watchdog watchdog0 at host:9560, which a snapshot, a migration or a new server has disarmed.",
                "runbook": "Reset the VM, or restart the program in the guest that feeds the watchdog. The event unprotected of the server has the reason.",
            },
        }],
    }]);
    check(RULES, &[test]);
}

#[test]
fn a_connection_that_is_lost_is_an_alert_and_a_watchdog_that_is_not_armed_is_one_later() {
    let Vm { server, qmp, client } = Vm::start("--socket s --watchdog i6300esb");
    let before = scrape(&server);
    expect(&before, &before, SOON, &[]);
    expect(&before, &before, AFTER, &["VmWatchdogNotArmed"]);
    drop(client);
    server.expect("disconnected");
    expect(&before, &scrape(&server), 15, &["VmWatchdogLost"]);
    let _client = server.client();
    server.expect("connected");
    drop(qmp);
    server.expect_where("control", |event| event["connected"] == false);
    expect(&before, &scrape(&server), SOON, &["VmWatchdogNoControl"]);
}

#[test]
fn probes_that_fail_or_cannot_be_run_are_alerts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let vm = Vm::probed(listener.local_addr().unwrap().port(), "--socket s --watchdog i6300esb,action=none");
    let of =
        |id: &'static str, result: &'static str| move |event: &Value| event["id"] == id && event["result"] == result;
    vm.server.expect_where("probe", of("readiness", "success"));
    let before = vm.scrape();
    drop(listener);
    let (skipped, _) = vm.server.find("probe", of("readiness", "failure"));
    if !skipped.iter().any(of("liveness", "failure")) {
        vm.server.expect_where("probe", of("liveness", "failure"));
    }
    let mut failed = series(&before, &vm.scrape());
    check(RULES, &[firing(&failed, 20, &["VmNotAlive", "VmNotReady"])]);

    // No test makes the host fail to run a handler, so the values are made up. The name and the labels are not.
    failed = series(&before, &before);
    let errors = failed.iter_mut().find(|(name, _)| {
        name.starts_with("vm_watchdog_probe_attempts_total{")
            && name.contains("outcome=\"error\"")
            && name.contains("probe=\"readiness\"")
    });
    *errors.expect("attempts that end in an error").1 = format!("0+1x{AFTER}");
    check(RULES, &[firing(&failed, 20, &["VmProbeError"])]);
}

#[test]
fn a_server_that_is_gone_is_an_alert() {
    let up = r#"up{instance="host:9560",job="vm-watchdog"}"#.to_owned();
    let file =
        r#"node_textfile_mtime_seconds{file="/var/lib/prometheus/node-exporter/vm-watchdog-web.prom"}"#.to_owned();
    let gone = Series::from([(up.clone(), "1+0x5 0+0x40".to_owned()), (file.clone(), "0+0x46".to_owned())]);
    let there = Series::from([(up, "1+0x46".to_owned()), (file, "0+60x46".to_owned())]);
    let fire = firing(&gone, SOON, &["VmWatchdogMetricsFileOld", "VmWatchdogServerDown"]);
    check(RULES, &[fire, firing(&there, SOON, &[])]);
}

/// What a server writes that has everything enabled: two watchdogs, of which one has timed out, probes and QMP.
fn everything() -> (Vm, Client, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let watchdogs = "--socket s --socket t --watchdog i6300esb,action=none";
    let mut vm = Vm::probed(listener.local_addr().unwrap().port(), watchdogs);
    vm.client.arm(60_000);
    vm.client.ping();
    vm.server.expect("armed");
    let mut other = vm.server.client_of("t");
    other.arm(1);
    vm.server.expect_where("expiry", |event| event["stage"] == "timeout");
    (vm, other, listener)
}

#[test]
fn the_rules_are_valid_and_the_page_has_a_section_for_each_alert() {
    if let Some(output) = promtool(&["check", "rules", RULES], "") {
        let report = report(&output);
        assert!(output.status.success(), "{report}");
    }
    let (rules, page) = (fs::read_to_string(RULES).unwrap(), fs::read_to_string(PAGE).unwrap());
    let alerts: BTreeSet<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `Vm")?.split_once('`'));
    let documented: BTreeSet<_> = rows.map(|(name, _)| format!("Vm{name}")).collect();
    assert_eq!(alerts, documented.iter().map(String::as_str).collect());
    for field in ["summary:", "description:", "runbook:", "severity:"] {
        assert_eq!(rules.matches(field).count(), alerts.len(), "{field}");
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let (vm, _other, _listener) = everything();
    if let Some(output) = promtool(&["check", "metrics"], &scraped_text(&vm.server)) {
        let report = report(&output);
        assert!(output.status.success() && report.is_empty(), "{report}");
    }
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_part(character)).filter(|word| word.starts_with("vm_watchdog_")).collect()
}

#[test]
fn rules_dashboard_and_page_name_metrics_that_exist_and_the_page_has_them_all() {
    let (vm, _other, _listener) = everything();
    let text = scraped_text(&vm.server);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let existing: BTreeSet<&str> = types.collect();
    for file in [RULES, DASHBOARD, PAGE] {
        let text = fs::read_to_string(file).unwrap();
        let unknown: Vec<_> = names(&text).difference(&existing).copied().collect();
        assert_eq!(unknown, [""; 0], "in {file}");
    }
    let page = fs::read_to_string(PAGE).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `vm_watchdog_")).collect();
    let first_cells: String = rows.iter().filter_map(|row| row.split('|').nth(1)).collect();
    assert_eq!(names(&first_cells), existing);
}

/// Every query of the dashboard, with the values that Grafana puts into it.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(query)) = object.get("expr") {
                let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$vm", ".*");
                assert!(!query.contains('$'), "an unknown variable: {query}");
                found.push(query);
            }
            object.values().for_each(|value| queries(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn every_query_of_the_dashboard_has_data() {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let mut found = Vec::new();
    queries(&dashboard["panels"], &mut found);
    assert!(found.len() > 20, "{found:?}");
    // An alert for each query, which fires if the query has data.
    let rule = |(index, query)| json!({"alert": format!("Query{index:02}"), "expr": format!("count({query}) > 0")});
    let rules: Vec<Value> = found.iter().enumerate().map(rule).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.json");
    fs::write(&path, json!({"groups": [{"name": "queries", "rules": rules}]}).to_string()).unwrap();
    let (vm, _other, _listener) = everything();
    let scrape = vm.scrape();
    let names: Vec<_> = (0..found.len()).map(|index| format!("Query{index:02}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    check(path.to_str().unwrap(), &[firing(&series(&scrape, &scrape), SOON, &names)]);
}

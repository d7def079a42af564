//! The probes of a manifest, and what follows from them, with a guest that answers what the test says.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fakes::{FakeQmp, QmpClient};
use crate::metrics::{metrics_port, request, scrape};
use crate::server::{Builder, Server, TIMEOUT};

/// The shortest period of a probe.
const PERIOD: Duration = Duration::from_secs(1);
/// Long enough for a probe that runs to make two attempts.
const QUIET: Duration = Duration::from_millis(2500);

/// Accepts the request and never answers.
const SILENCE: u16 = 0;

/// An HTTP server in the guest.
struct Guest {
    port: u16,
    status: Arc<AtomicU16>,
    /// When requests came.
    requests: Receiver<Instant>,
}

impl Guest {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = channel();
        let guest = Self { port, status: Arc::new(status.into()), requests };
        let status = guest.status.clone();
        thread::spawn(move || serve(&listener, &status, &sender));
        guest
    }

    /// Answers with this status from now on.
    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn is_asked(&self) -> Instant {
        self.requests.recv_timeout(TIMEOUT).expect("a request")
    }

    /// No request comes for a while, except for one that is under way, which has a second.
    fn is_left_alone(&self) {
        thread::sleep(2 * PERIOD);
        while self.requests.try_recv().is_ok() {}
        assert!(self.requests.recv_timeout(QUIET).is_err(), "a request");
    }
}

fn serve(listener: &TcpListener, status: &AtomicU16, sender: &Sender<Instant>) {
    let mut unanswered = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            request.push(byte[0]);
        }
        let status = status.load(Ordering::SeqCst);
        if status == SILENCE {
            unanswered.push(stream);
        } else {
            answer(stream, status);
        }
        if sender.send(Instant::now()).is_err() {
            return;
        }
    }
}

fn answer(mut stream: TcpStream, status: u16) {
    let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // A probe may have given up.
    let _ = stream.write_all(answer.as_bytes());
}

/// A VirtualMachineInstance with these probes, each of them `NAME: {...}` in flow style, and further lines of `spec`.
fn manifest(lines: &[String]) -> String {
    let head = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {name: vm}\nspec:\n";
    lines.iter().fold(head.to_owned(), |text, line| text + "  " + line + "\n")
}

fn http(name: &str, guest: &Guest, fields: &str) -> String {
    format!("{name}: {{httpGet: {{port: {}, path: /healthz}}, periodSeconds: 1, {fields}}}", guest.port)
}

fn builder(options: &str, lines: &[String]) -> Builder {
    let builder = Builder::new().options("--manifest vm.yaml --address 127.0.0.1").options(options);
    fs::write(builder.path().join("vm.yaml"), manifest(lines)).unwrap();
    builder
}

/// A server with these probes, and a VM of QEMU that runs.
fn start(options: &str, lines: &[String]) -> (Server, QmpClient) {
    let builder = builder(options, lines).options("--qmp q");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let qmp = qmp.accept(&server, true);
    (server, qmp)
}

fn of<'a>(id: &'a str, result: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["id"] == id && event["result"] == result
}

#[test]
fn a_guest_that_fails_its_liveness_probe_is_shut_down_and_after_the_grace_period_powered_off() {
    let guest = Guest::start(200);
    let probe = http("livenessProbe", &guest, "failureThreshold: 2, terminationGracePeriodSeconds: 1");
    let (server, mut qmp) = start("", &[probe]);
    guest.is_asked();
    guest.answers(500);
    let attempt = server.expect("attempt");
    let text = "HTTP probe failed with statuscode: 500";
    assert_eq!((&attempt["outcome"], &attempt["message"]), (&json!("failure"), &json!(text)));
    let result = server.expect("probe");
    assert!(of("liveness", "failure")(&result), "{result}");
    assert_eq!(result["reason"], format!("2 failures in a row, the last one: {text}"));
    let expiry = server.expect("expiry");
    assert_eq!((&expiry["id"], &expiry["action"]), (&json!("liveness"), &json!("shutdown")));
    let asked = Instant::now();
    qmp.answer("system_powerdown", json!({}));
    qmp.answer("quit", json!({}));
    assert!(asked.elapsed() >= PERIOD, "the guest has its grace period");
}

#[test]
fn a_guest_that_is_reset_by_its_liveness_probe_starts_over_and_again_later_each_time() {
    let guest = Guest::start(500);
    let probe = http("livenessProbe", &guest, "failureThreshold: 2");
    let (server, mut qmp) = start("--liveness-action reset --metrics 0", &[probe]);
    let port = metrics_port(&server);
    qmp.answer("system_reset", json!({}));
    guest.is_left_alone();
    guest.answers(200);
    qmp.event("RESET");
    let result = server.expect_where("probe", of("liveness", "success"));
    assert_eq!(result["reason"], "the VM was reset");
    guest.is_asked();
    guest.answers(500);
    assert_eq!(server.expect("back-off")["seconds"], 10);
    qmp.no_command(QUIET);
    assert!(scrape(port).contains("vm_watchdog_liveness_actions_total 1"), "{}", scrape(port));
}

#[test]
fn readiness_is_served_after_its_thresholds_and_nothing_acts_on_it() {
    let guest = Guest::start(200);
    let probe = http("readinessProbe", &guest, "successThreshold: 3, failureThreshold: 2");
    let builder = builder("--metrics 0 --qmp q", &[probe]);
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    let port = metrics_port(&server);
    let ready = || request(port, b"GET /readyz HTTP/1.1\r\n\r\n");
    assert!(
        ready().starts_with("HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"),
        "{}",
        ready()
    );
    let mut qmp = qmp.accept(&server, true);
    assert!(of("readiness", "success")(&server.expect("probe")));
    assert!(guest.requests.try_iter().count() >= 3, "three successes in a row");
    assert!(ready().starts_with("HTTP/1.1 200 OK"), "{}", ready());
    assert!(scrape(port).contains("vm_watchdog_probe_success{probe=\"readiness\"} 1"), "{}", scrape(port));
    guest.answers(404);
    assert!(of("readiness", "failure")(&server.expect("probe")));
    let answer = ready();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["probe"], "readiness");
    assert_eq!(body["result"], "failure");
    assert_eq!(body["reason"], "2 failures in a row, the last one: HTTP probe failed with statuscode: 404");
    assert!(request(port, b"GET /livez HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 Not Found"));
    qmp.no_command(PERIOD);
}

#[test]
fn nothing_is_probed_while_the_vm_is_paused_or_not_there() {
    let guest = Guest::start(500);
    let probe = http("livenessProbe", &guest, "failureThreshold: 4");
    let builder = builder("--qmp q", &[probe]);
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start();
    guest.is_left_alone();
    let mut qmp = qmp.accept(&server, true);
    guest.is_asked();
    qmp.pause(&server);
    guest.is_left_alone();
    qmp.resume(&server);
    guest.is_asked();
    drop(qmp);
    server.expect_where("control", |event| event["connected"] == false);
    guest.is_left_alone();
}

#[test]
fn an_attempt_that_a_pause_interrupts_is_made_again() {
    let guest = Guest::start(SILENCE);
    let probe = http("livenessProbe", &guest, "timeoutSeconds: 2, failureThreshold: 1");
    let (server, mut qmp) = start("", &[probe]);
    guest.is_asked();
    qmp.pause(&server);
    qmp.no_command(3 * PERIOD);
    guest.answers(200);
    qmp.resume(&server);
    guest.is_asked();
    qmp.no_command(PERIOD);
    guest.answers(500);
    qmp.answer("system_powerdown", json!({}));
}

#[test]
fn a_guest_that_was_asked_to_shut_down_or_has_done_so_does_not_fail() {
    let guest = Guest::start(200);
    let probes = [http("livenessProbe", &guest, "failureThreshold: 1"), http("readinessProbe", &guest, "")];
    let (server, mut qmp) = start("", &probes);
    server.expect_where("probe", of("readiness", "success"));
    qmp.event("POWERDOWN");
    server.expect_where("vm", |event| event["name"] == "powerdown");
    guest.answers(500);
    qmp.no_command(QUIET);
    qmp.event("SHUTDOWN");
    let result = server.expect_where("probe", of("readiness", "failure"));
    assert_eq!(result["reason"], "the VM has stopped");
    qmp.no_command(QUIET);
    guest.is_left_alone();
}

#[test]
fn a_guest_that_does_not_shut_down_in_its_grace_period_is_probed_again() {
    let guest = Guest::start(200);
    let probe = http("livenessProbe", &guest, "failureThreshold: 1, terminationGracePeriodSeconds: 3");
    let (server, mut qmp) = start("--liveness-action reset", &[probe]);
    guest.is_asked();
    let asked = Instant::now();
    qmp.event("POWERDOWN");
    server.expect_where("vm", |event| event["name"] == "powerdown");
    guest.answers(500);
    qmp.answer("system_reset", json!({}));
    assert!(asked.elapsed() >= 3 * PERIOD, "{:?}", asked.elapsed());
}

#[test]
fn a_watchdog_and_both_probes_come_from_one_manifest_and_each_acts_alone() {
    let (alive, ready) = (Guest::start(200), Guest::start(500));
    let lines = [
        "domain: {devices: {watchdog: {name: dog, i6300esb: {action: poweroff}}}}".to_owned(),
        http("livenessProbe", &alive, ""),
        http("readinessProbe", &ready, ""),
    ];
    let (server, mut qmp) = start("--socket s", &lines);
    ready.is_asked();
    alive.is_asked();
    let mut client = server.client();
    client.arm(256);
    let expiry = server.expect_where("expiry", |event| event["stage"] == "timeout");
    assert_eq!((&expiry["id"], &expiry["action"]), (&json!("dog"), &json!("poweroff")));
    qmp.answer("quit", json!({}));
}

#[test]
fn without_qmp_the_vm_is_there_while_its_watchdog_is_connected() {
    let guest = Guest::start(200);
    let lines =
        ["domain: {devices: {watchdog: {name: dog, i6300esb: {}}}}".to_owned(), http("readinessProbe", &guest, "")];
    let server = builder("--socket s --exec true", &lines).start();
    guest.is_left_alone();
    let client = server.client();
    server.expect_where("probe", of("readiness", "success"));
    drop(client);
    assert_eq!(server.expect_where("probe", of("readiness", "failure"))["reason"], "the VM has stopped");
    guest.is_left_alone();
}

#[test]
fn the_probe_of_a_vm_whose_first_watchdog_was_unplugged_still_acts() {
    let guest = Guest::start(200);
    let lines = [http("livenessProbe", &guest, "failureThreshold: 1")];
    let (server, mut qmp) = start("--socket s --watchdog i6300esb --socket t --watchdog i6300esb", &lines);
    let (first, _second) = (server.client(), server.client_of("t"));
    guest.is_asked();
    drop(first);
    server.expect("disconnected");
    guest.answers(500);
    qmp.answer("system_powerdown", json!({}));
    assert_eq!(server.expect("performed")["id"], "liveness");
}

#[test]
fn without_qmp_the_vm_is_there_while_any_of_its_watchdogs_is_connected() {
    let guest = Guest::start(200);
    let options = "--socket s --watchdog i6300esb --socket t --watchdog i6300esb --exec true";
    let server = builder(options, &[http("readinessProbe", &guest, "")]).start();
    let first = server.client();
    server.expect_where("probe", of("readiness", "success"));
    let second = server.client_of("t");
    // Unplugged, while the VM runs.
    drop(first);
    server.expect("disconnected");
    while guest.requests.try_recv().is_ok() {}
    guest.is_asked();
    guest.is_asked();
    drop(second);
    let (before, stopped) = server.find("probe", of("readiness", "failure"));
    assert_eq!(stopped["reason"], "the VM has stopped");
    assert!(before.iter().all(|event| event["event"] != "probe"), "the probe has not started over: {before:?}");
    guest.is_left_alone();
}

#[test]
fn a_manifest_that_cannot_be_served_is_refused_with_the_reason() {
    let watchdog = "domain: {devices: {watchdog: {name: dog, i6300esb: {}}}}";
    let exec = "livenessProbe: {exec: {command: [cat, /tmp/healthy]}}";
    let tcp = "readinessProbe: {tcpSocket: {port: 22}}";
    for (options, lines, reason) in [
        ("--qmp q", watchdog, "the manifest has a watchdog, so it needs one --socket"),
        ("--qmp q --socket s", tcp, "the manifest has no watchdog, so --socket needs --watchdog"),
        ("--qmp q", exec, "--agent"),
        ("--qmp q --agent a --socket s --watchdog i6300esb", watchdog, "--watchdog"),
        ("", "livenessProbe: {tcpSocket: {port: 22}}", "needs one of --qmp, --cloud-hypervisor, --exec"),
        ("--qmp q", "livenessProve: {tcpSocket: {port: 22}}", "livenessProbe"),
        ("--qmp q", "running: true", "neither a watchdog nor a probe"),
    ] {
        let (status, message) = builder(options, &[lines.to_owned()]).fail();
        assert_eq!(status, 2, "{lines}: {message}");
        assert!(message.contains(reason), "{lines}: {message}");
    }
}

#[test]
fn what_is_probably_not_meant_in_a_manifest_is_a_warning() {
    let probe = "livenessProbe: {tcpSocket: {port: 1}, initialDelaySeconds: 1000, periodSeconds: 1, timeoutSeconds: 5}";
    let (server, _qmp) = start("", &[probe.to_owned()]);
    let warning = server.expect_where("log", |event| event["message"].as_str().unwrap().starts_with("vm.yaml:"));
    assert_eq!(warning["level"], "warn", "{warning}");
    assert!(warning["message"].as_str().unwrap().contains("timeoutSeconds"), "{warning}");
}

#[test]
fn a_guest_agent_that_is_not_there_is_a_failure() {
    let probe = "readinessProbe: {guestAgentPing: {}, periodSeconds: 1}".to_owned();
    let (server, mut qmp) = start("--agent agent", &[probe]);
    assert_eq!(server.expect("attempt")["outcome"], "failure");
    qmp.no_command(PERIOD);
}

#[test]
fn a_guest_that_never_answers_takes_no_longer_than_the_timeout() {
    let guest = Guest::start(SILENCE);
    let (server, _qmp) = start("", &[http("readinessProbe", &guest, "failureThreshold: 1")]);
    let [first, second] = [(); 2].map(|()| server.expect("attempt"));
    let time = |event: &Value| event["vm_time_ns"].as_u64().unwrap();
    assert!(time(&second) - time(&first) < 10 * PERIOD.as_nanos() as u64, "{first} {second}");
}

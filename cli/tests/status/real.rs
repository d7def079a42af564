//! The status of real servers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fakes::FakeQmp;
use crate::server::{Builder, Server, TIMEOUT};
use crate::{Run, status};

/// A server in the folder of its VM, which is called web, below its own folder.
fn builder(options: &str) -> Builder {
    let builder = Builder::new().options("--metrics unix:web/metrics").options(options);
    fs::create_dir(builder.path().join("web")).unwrap();
    builder
}

fn shown(server: &Server) -> (Run, Value) {
    let run = status(server.folder.path(), &["--json", "web"]);
    let vm = run.json()["vms"][0].clone();
    (run, vm)
}

/// The row of the first watchdog.
fn row(server: &Server) -> String {
    status(server.folder.path(), &[]).output.lines().nth(1).unwrap().to_owned()
}

fn timer_wakes(server: &Server) -> String {
    let mut stream = UnixStream::connect(server.path("web/metrics")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find(|line| line.starts_with("vm_watchdog_timer_wakes_total{"));
    line.unwrap().to_owned()
}

#[test]
fn a_watchdog_is_shown_from_its_start_to_a_failed_action() {
    let builder = builder("--name web-01 --socket s --qmp q --watchdog i6300esb,id=dog");
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let mut server = builder.start();
    let mut qmp = qmp.accept(&server, true);
    let (run, vm) = shown(&server);
    assert_eq!((run.status, &vm["findings"]), (Some(3), &json!(["QEMU runs and has lost its watchdog"])));
    assert_eq!(row(&server), "web   lost       no     -          never      -            -");

    let mut client = server.client();
    server.expect("connected");
    let (run, vm) = shown(&server);
    assert_eq!((run.status, &vm["findings"]), (Some(4), &json!(["the guest has not armed its watchdog"])));

    client.arm(60_000);
    client.ping();
    server.expect("armed");
    // Arming the watchdog has woken its thread, or is about to.
    let deadline = Instant::now() + TIMEOUT;
    while !timer_wakes(&server).ends_with(" 1") {
        assert!(Instant::now() < deadline, "{}", timer_wakes(&server));
    }
    let (run, vm) = shown(&server);
    assert_eq!((run.status, &vm["severity"], &vm["findings"]), (Some(0), &json!("ok"), &json!([])));
    assert_eq!((&vm["name"], &vm["status"]["name"]), (&json!("web"), &json!("web-01")), "the folder names it");
    assert_eq!((&vm["status"]["actions_by"], &vm["status"]["qmp_connected"]), (&json!("QMP"), &json!(true)));
    let dog = &vm["status"]["watchdogs"][0];
    assert_eq!((&dog["id"], &dog["socket"], &dog["heartbeats"]), (&json!("dog"), &json!("s"), &json!(1)));
    // Two stages of 60,000 units of 983.04 us.
    assert_eq!(dog["period_ms"], 117_964);
    let number = |name: &str| dog[name].as_u64().unwrap();
    assert!(number("time_left_ms") <= 117_964 && number("last_heartbeat_ms") < TIMEOUT.as_millis() as u64, "{dog}");
    for _ in 0..20 {
        shown(&server);
    }
    assert!(timer_wakes(&server).ends_with(" 1"), "the thread of the watchdog sleeps: {}", timer_wakes(&server));

    qmp.pause(&server);
    let paused = row(&server);
    assert!(paused.starts_with("web   paused     yes    1m"), "{paused}");
    qmp.resume(&server);
    client.arm(1);
    qmp.refuse("system_reset", "not now");
    server.expect("action-failed");
    let (run, vm) = shown(&server);
    let failed = "reset failed: QEMU refuses system_reset: not now";
    let findings = json!(["the guest has timed out and has not recovered", failed]);
    assert_eq!((run.status, &vm["findings"]), (Some(3), &findings));
    let action = &vm["status"]["watchdogs"][0]["last_action"];
    assert_eq!(
        (&action["action"], &action["stage"], &action["outcome"]),
        (&json!("reset"), &json!("timeout"), &json!("failed"))
    );
    let table = status(server.folder.path(), &[]).output;
    assert!(table.ends_with(&format!("\n\nweb: {failed}\n")), "{table}");
    qmp.answer("system_reset", json!({}));
    server.expect("performed");
    let last = row(&server);
    assert!(last.contains("  timed out  ") && last.contains("  reset ") && last.contains(" ago  "), "{last}");

    server.signal(Signal::KILL);
    assert_eq!(row(&server), "web   no server");
}

#[test]
fn probes_are_shown_with_what_followed_from_them() {
    let (alive, ready) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let probe = |port: u16| format!("{{tcpSocket: {{port: {port}}}, periodSeconds: 1, failureThreshold: 1}}");
    let builder = builder("--manifest vm.yaml --address 127.0.0.1 --exec true --liveness-action reset");
    let manifest = format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nspec:\n  livenessProbe: {}\n  readinessProbe: {}\n",
        probe(port(&alive)),
        probe(port(&ready)),
    );
    fs::write(builder.path().join("vm.yaml"), manifest).unwrap();
    let server = builder.start();
    server.expect_where("probe", |event| event["id"] == "readiness" && event["result"] == "success");
    assert_eq!(row(&server), "web   -          -      -          -          -            ready");
    assert_eq!(shown(&server).0.status, Some(0));
    drop(ready);
    server.expect_where("probe", |event| event["id"] == "readiness" && event["result"] == "failure");
    let (run, vm) = shown(&server);
    assert_eq!((run.status, &vm["severity"]), (Some(4), &json!("warning")));
    assert!(vm["findings"][0].as_str().unwrap().starts_with("not ready: 1 failure"), "{vm}");
    drop(alive);
    server.expect("performed");
    let row = row(&server);
    // The probe starts over after the reset, and fails again.
    assert!(row.contains("  reset ") && (row.ends_with("not ready") || row.ends_with("not alive")), "{row}");
    assert_eq!(shown(&server).1["status"]["probes"][0]["last_action"]["outcome"], "performed");
}

#[test]
fn several_watchdogs_of_a_vm_have_a_row_each() {
    let options =
        "--socket s --socket t --watchdog i6300esb,action=none,id=system --watchdog i6300esb,action=none,id=app";
    let server = builder(options).start();
    let _client = server.client_of("t");
    server.expect("connected");
    let table = status(server.folder.path(), &[server.path("web/metrics").to_str().unwrap()]).output;
    let rows: Vec<_> = table.lines().skip(1).collect();
    assert_eq!(
        rows,
        [
            "web/system  no         no     -          never      -            -",
            "web/app     yes        no     -          never      -            -",
        ]
    );
}

//! The sandbox of a server with all options, and the helper processes beside it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustix::process::{Pid, Signal};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::commands::{is_running, pids, wait_for_the_end_of};
use crate::fakes::FakeQmp;
use crate::server::{Builder, Server, TIMEOUT};

/// A field of `/proc/PID/status`.
fn field(status: &Path, name: &str) -> String {
    let text = fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.trim_start_matches(':').trim().to_owned()
}

/// What each thread of a server has of the sandbox: its filter of system calls, and that it gains no privileges.
fn threads(server: &Server) -> Vec<(String, String, String)> {
    let folder = format!("/proc/{}/task", server.pid());
    let of_thread = |thread: fs::DirEntry| {
        let status = thread.path().join("status");
        (field(&status, "Name"), field(&status, "Seccomp"), field(&status, "NoNewPrivs"))
    };
    fs::read_dir(folder).unwrap().map(|thread| of_thread(thread.unwrap())).collect()
}

/// What the descriptors of a process are.
fn links(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links.filter_map(|link| fs::read_link(link.unwrap().path()).ok()).map(|link| link.display().to_string()).collect()
}

/// The processes that a server has started and that run.
fn children(pid: u32) -> Vec<u32> {
    let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children: String = threads.map(|thread| of_thread(thread.unwrap())).collect();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(|pid| is_running(*pid)).collect()
}

/// An HTTPS server in the guest, which answers everything with 200.
fn https() -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_ref().to_vec()));
    let key = provider.key_provider.load_private_key(key).unwrap();
    let pem = include_bytes!("../../../probes/tests/handlers/expired.pem");
    let shown = CertifiedKey::new(vec![CertificateDer::from_pem_slice(pem).unwrap()], key);
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(shown))));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            let mut line = String::new();
            while line != "\r\n" && stream.read_line(&mut line).is_ok_and(|count| count > 0) {
                line = if line == "\r\n" { line } else { String::new() };
            }
            // A probe may have given up.
            let _ = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    port
}

/// A guest agent that answers every command with an empty object.
fn agent(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text: Vec<_> = line.drain(..).filter(|byte| *byte != 0xff).collect();
                let command: Value = serde_json::from_slice(&text).unwrap();
                let answer = match &command["arguments"]["id"] {
                    Value::Null => json!({ "return": {} }).to_string(),
                    id => format!("\u{0}{}", json!({ "return": id })),
                };
                let mut bytes = answer.into_bytes();
                if bytes[0] == 0 {
                    bytes[0] = 0xff;
                }
                bytes.push(b'\n');
                stream.write_all(&bytes).unwrap();
            }
        }
    });
}

fn manifest(builder: &Builder, probes: &[String]) {
    let head = "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {name: vm}\nspec:\n";
    let text = probes.iter().fold(head.to_owned(), |text, probe| text + "  " + probe + "\n");
    fs::write(builder.path().join("vm.yaml"), text).unwrap();
}

fn scrape(server: &Server, socket: &str) -> String {
    let mut stream = UnixStream::connect(server.path(socket)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_thread_of_a_server_with_all_options_is_restricted_and_all_of_them_work() {
    let files = "--state state/file --metrics unix:m --metrics-file metrics/file.prom --qmp q --agent agent";
    let vm = "--manifest vm.yaml --liveness-action reset --watchdog i6300esb,pretimeout=debug,interrupt=intx";
    let builder = Builder::new().options("--socket s").options(files).options(vm).option("--exec", "touch acted");
    for folder in ["state", "metrics"] {
        fs::create_dir(builder.path().join(folder)).unwrap();
    }
    let liveness = format!(
        "livenessProbe: {{httpGet: {{port: {}, path: /, scheme: HTTPS, host: localhost}}, periodSeconds: 1}}",
        https()
    );
    manifest(&builder, &[liveness, "readinessProbe: {guestAgentPing: {}, periodSeconds: 1}".to_owned()]);
    agent(&builder.path().join("agent"));
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let mut server = builder.start_and(|server| {
        let event = server.expect("sandbox");
        assert_eq!(event["seccomp"], "on", "{event}");
    });
    let mut qmp = qmp.accept(&server, true);
    server.expect_where("probe", |event| event["id"] == "readiness" && event["result"] == "success");
    qmp.pause(&server);
    qmp.resume(&server);
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
    assert!(server.path("acted").exists());
    let attempts = |outcome: &str| {
        let metric = format!("vm_watchdog_probe_attempts_total{{outcome=\"{outcome}\",probe=\"liveness\"}} ");
        let text = scrape(&server, "m");
        let value = text.lines().find_map(|line| line.strip_prefix(&metric)).expect(&text);
        value.parse::<u64>().unwrap()
    };
    wait_for("a liveness probe over TLS to a name", || attempts("success") > 0);
    wait_for("the state file", || {
        fs::read_to_string(server.path("state/file")).unwrap().contains("\"wdt_timeout\": true")
    });
    let threads = threads(&server);
    let names: Vec<_> = threads.iter().map(|(name, ..)| name.as_str()).collect();
    for name in ["events", "state", "metrics", "metrics-file", "qmp", "helper", "close", "liveness", "readiness"] {
        assert!(names.iter().any(|found| found.starts_with(name)), "{name} is none of {names:?}");
    }
    for (name, filter, no_new_privileges) in &threads {
        assert_eq!((filter.as_str(), no_new_privileges.as_str()), ("2", "1"), "the thread {name}");
    }
    assert_eq!((attempts("error"), attempts("failure")), (0, 0));
    assert!(server.signal(Signal::TERM).success());
    for name in ["s", "m", "metrics/file.prom"] {
        assert!(!server.path(name).exists(), "{name} is left behind");
    }
}

#[test]
fn a_probe_by_tcp_the_events_file_and_dumps_work_in_the_sandbox() {
    let guest = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = guest.local_addr().unwrap().port();
    let options = "--socket s --manifest vm.yaml --address 127.0.0.1 --watchdog i6300esb,action=dump,id=wd --qmp q";
    let builder = Builder::new().options(options).options("--dump-folder dumps --events-file logs/events --metrics 0");
    manifest(&builder, &[format!("readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}")]);
    for folder in ["dumps", "logs"] {
        fs::create_dir(builder.path().join(folder)).unwrap();
    }
    let qmp = FakeQmp::listen(&builder.path().join("q"));
    let server = builder.start_silent();
    let has = |file: &str, text: &str| fs::read_to_string(server.path(file)).is_ok_and(|all| all.contains(text));
    let mut qmp = qmp.accept_unseen(true);
    wait_for("a probe that succeeds", || has("logs/events", "\"result\":\"success\""));
    fs::rename(server.path("logs/events"), server.path("logs/events.1")).unwrap();
    server.send_signal(Signal::HUP);
    // Only then: the server may see the client before the signal.
    wait_for("a new file of events", || server.path("logs/events").exists());
    let mut client = server.client();
    wait_for("an event in it", || has("logs/events", "connected"));
    client.arm(1);
    qmp.answer("query-chardev", json!([]));
    qmp.answer("query-dump", json!({"status": "none", "completed": 0, "total": 0}));
    qmp.answer("query-memory-size-summary", json!({"base-memory": 1 << 20, "plugged-memory": 0}));
    let arguments = qmp.answer("dump-guest-memory", json!({}));
    let path = arguments["protocol"].as_str().unwrap().strip_prefix("file:").unwrap().to_owned();
    fs::write(server.path(&path), "half").unwrap();
    qmp.say(
        json!({"event": "DUMP_COMPLETED", "data": {"result": {"status": "failed"}, "error": "no"}, "timestamp": {}}),
    );
    wait_for("the removal of a dump that is not complete", || !server.path(&path).exists());
}

#[test]
fn a_command_is_outside_of_the_sandbox_and_inherits_nothing_of_the_service_manager() {
    let script = "cat /proc/self/status > new; env >> new; ls -l /proc/self/fd > fds; mv new status";
    let options = "--socket s --watchdog i6300esb,action=poweroff";
    let builder = Builder::new().options(options).option("--exec", script).env("WATCHDOG_USEC", "100000000");
    let server = builder.start();
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
    let this = Path::new("/proc/self/status");
    for name in ["Seccomp", "NoNewPrivs", "SigBlk"] {
        assert_eq!(field(&server.path("status"), name), field(this, name), "{name}");
    }
    let ignored = |status: &Path| u64::from_str_radix(&field(status, "SigIgn"), 16).unwrap();
    // Signals up to 31, because glibc ignores two of its own while it starts a process. A shell ignores some for a job in the
    // background, and so for this test; Rust ignores SIGPIPE in this process alone.
    let inherited = ignored(this) & !(1 << (Signal::PIPE.as_raw() - 1));
    assert_eq!(ignored(&server.path("status")) & !inherited & 0x7FFF_FFFF, 0);
    let environment = fs::read_to_string(server.path("status")).unwrap();
    assert!(
        environment.contains("WATCHDOG_ACTION=poweroff") && !environment.contains("WATCHDOG_USEC"),
        "{environment}"
    );
    let descriptors = fs::read_to_string(server.path("fds")).unwrap();
    assert!(descriptors.contains("/memfd:event"), "{descriptors}");
    let of_this = links(std::process::id());
    for link in links(server.pid()).iter().filter(|link| link.starts_with("socket:") && !of_this.contains(link)) {
        assert!(!descriptors.contains(link), "{link}: {descriptors}");
    }
}

#[test]
fn a_kernel_without_filters_is_an_error_that_names_the_option() {
    let builder = Builder::refused("seccomp", "ENOSYS").options("--socket s --watchdog i6300esb,action=none");
    let (status, message) = builder.fail();
    assert_eq!((status, message.lines().count()), (1, 1), "{message}");
    assert!(message.contains("the filter of system calls") && message.contains("--sandbox=off"), "{message}");
    Builder::refused("seccomp", "ENOSYS").options("--socket s --watchdog i6300esb,action=none --sandbox=off").start();
}

#[test]
fn a_kernel_without_landlock_is_reported_and_the_filter_remains() {
    let builder = Builder::refused("landlock_create_ruleset", "ENOSYS");
    let server = builder.options("--socket s --watchdog i6300esb,action=none").start_and(|server| {
        let event = server.expect("sandbox");
        assert_eq!((&event["seccomp"], &event["landlock"]), (&"on".into(), &"none".into()), "{event}");
        assert_eq!(event.get("landlock_abi"), None);
    });
    assert!(threads(&server).iter().all(|(_, filter, no_new)| filter == "2" && no_new == "1"));
}

#[test]
fn without_the_sandbox_nothing_is_restricted() {
    let options = "--socket s --watchdog i6300esb,action=none --sandbox=off";
    let server = Builder::new().options(options).start_and(|server| {
        let event = server.expect("sandbox");
        assert_eq!((&event["seccomp"], &event["landlock"]), (&"off".into(), &"off".into()));
    });
    let this = field(Path::new("/proc/self/status"), "Seccomp");
    assert!(threads(&server).iter().all(|(_, filter, _)| *filter == this));
}

#[test]
fn a_server_that_runs_as_root_says_so() {
    let server = Builder::new().options("--socket s --watchdog i6300esb,action=none").start_and(|server| {
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(server.expect("sandbox")["root"], is_root);
        if is_root {
            let warning = server.expect_where("log", |event| event["level"] == "warn");
            assert!(warning["message"].as_str().unwrap().contains("root"), "{warning}");
        }
    });
    drop(server);
}

#[test]
fn a_server_without_commands_and_names_has_no_helper() {
    let server = Server::harmless();
    assert!(children(server.pid()).is_empty());
}

#[test]
fn a_server_whose_helper_for_commands_is_killed_ends_with_the_reason() {
    let (builder, mut stderr) = Builder::new().options("--socket s").option("--exec", "true").with_stderr();
    let mut server = builder.start();
    let mut client = server.client();
    client.ping();
    let [helper] = children(server.pid())[..] else { panic!("not one helper") };
    rustix::process::kill_process(Pid::from_raw(helper as i32).unwrap(), Signal::KILL).unwrap();
    server.expect("stopped");
    assert_eq!(server.end().code(), Some(1));
    let mut message = String::new();
    stderr.read_to_string(&mut message).unwrap();
    assert_eq!(message, "vm-watchdog: the process that runs commands has ended: signal: 9 (SIGKILL)\n");
}

#[test]
fn a_server_whose_helper_for_names_is_killed_serves_on_and_its_probe_has_errors() {
    let builder = Builder::new().options("--socket s --watchdog i6300esb,action=none --manifest vm.yaml");
    let guest = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = guest.local_addr().unwrap().port();
    manifest(
        &builder,
        &[format!("readinessProbe: {{tcpSocket: {{port: {port}, host: localhost}}, periodSeconds: 1}}")],
    );
    let server = builder.start();
    let mut client = server.client();
    server.expect_where("probe", |event| event["result"] == "success");
    let [helper] = children(server.pid())[..] else { panic!("not one helper") };
    rustix::process::kill_process(Pid::from_raw(helper as i32).unwrap(), Signal::KILL).unwrap();
    server.expect_where("log", |event| event["message"].as_str().unwrap().contains("looks up names has ended"));
    let attempt = server.expect("attempt");
    assert_eq!(attempt["outcome"], "error", "{attempt}");
    client.ping();
}

#[test]
fn commands_and_the_helper_end_with_a_server_that_is_killed() {
    let script = "trap 'touch cleaned-up; exit' TERM; echo $$ > new; mv new pids; while :; do sleep 0.1; done";
    let mut server =
        Builder::new().options("--socket s --watchdog i6300esb,action=poweroff").option("--exec", script).start();
    let mut client = server.client();
    client.arm(1);
    let mut processes = pids(&server, "pids", 1);
    processes.extend(children(server.pid()));
    assert_eq!(processes.len(), 2);
    server.signal(Signal::KILL);
    wait_for_the_end_of(&processes);
    assert!(server.path("cleaned-up").exists(), "it is asked to end before it is killed");
}

#[test]
fn signals_to_all_processes_of_a_server_leave_the_helper_to_the_server() {
    let mut server = Builder::new().options("--socket s").option("--exec", "touch acted").start();
    let [helper] = children(server.pid())[..] else { panic!("not one helper") };
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        rustix::process::kill_process(Pid::from_raw(helper as i32).unwrap(), signal).unwrap();
    }
    let mut client = server.client();
    client.arm(1);
    server.expect("performed");
    assert!(server.signal(Signal::TERM).success());
    wait_for_the_end_of(&[helper]);
}

//! `vm-watchdog sidecar` with a stand-in for sidecar-shim, which calls the hook as that does.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::hook::{Q35, link, options, refusal, vmi, web};
use crate::server::TIMEOUT;

/// Calls the hook for each line of its queue, which names a folder with the input, and ends with a status.
const SHIM: &str = r#"#!/bin/sh
[ "$1 $2" = "--version v1alpha3" ] || exit 90
exec < queue
while read -r folder; do
    case $folder in exit*) exit "${folder#exit}" ;; esac
    output=$(onDefineDomain --vmi "$(cat "$folder/vmi")" --domain "$(cat "$folder/domain")" 2> "$folder/stderr")
    status=$?
    printf %s "$output" > "$folder/stdout"
    echo "$status" > "$folder/status.part"
    mv "$folder/status.part" "$folder/status"
done
"#;

/// A pod's sidecar, with the folder that it shares with the launcher.
pub struct Sidecar {
    child: Child,
    /// The events of the server.
    events: Receiver<Value>,
    queue: fs::File,
    folder: TempDir,
    calls: u32,
}

impl Sidecar {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = link(folder.path());
        let shim = folder.path().join("sidecar-shim");
        fs::write(&shim, SHIM).unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("hooks")).unwrap();
        assert!(Command::new("mkfifo").arg(folder.path().join("queue")).status().unwrap().success());
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut child = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"))
            .args(["sidecar", "--folder"])
            .arg(folder.path().join("hooks"))
            .arg("--shim")
            .arg(&shim)
            .current_dir(&folder)
            .env("PATH", path)
            .env("TMPDIR", folder.path())
            .env_remove("CONTAINER_NAME")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let (sender, events) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        thread::spawn(move || {
            for line in lines {
                let event = serde_json::from_str(&line.unwrap()).expect("a line of JSON");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        // Waits until the shim has begun.
        let queue = fs::File::options().write(true).open(folder.path().join("queue")).unwrap();
        Self { child, events, queue, folder, calls: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket of the watchdog.
    pub fn watchdog(&self) -> PathBuf {
        self.path("hooks/vm-watchdog/watchdog")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Has the shim call the hook, and waits for its end.
    fn call(&mut self, vmi: &Value, domain: &str) -> Output {
        self.calls += 1;
        let folder = self.path(&format!("call{}", self.calls));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("vmi"), vmi.to_string()).unwrap();
        fs::write(folder.join("domain"), domain).unwrap();
        writeln!(self.queue, "{}", folder.display()).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while !folder.join("status").exists() {
            assert!(Instant::now() < deadline, "the hook does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        let read = |name| fs::read(folder.join(name)).unwrap();
        let status: i32 = String::from_utf8(read("status")).unwrap().trim().parse().unwrap();
        Output { status: ExitStatus::from_raw(status << 8), stdout: read("stdout"), stderr: read("stderr") }
    }

    /// The new domain.
    pub fn define(&mut self, vmi: &Value, domain: &str) -> String {
        let output = self.call(vmi, domain);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits for an event of the server, and skips others.
    pub fn expect(&self, name: &str) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).unwrap_or_else(|_| panic!("no {name}: {}", self.log()));
            if event["event"] == name {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Has the shim end, as the launcher asks for when QEMU has ended.
    fn end_shim(&mut self, status: u8) {
        writeln!(self.queue, "exit{status}").unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the sidecar does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process of the server: the one that has the socket's name among its arguments.
    fn server(&self) -> Pid {
        let of_server = |folder: &Path| {
            let arguments = fs::read(folder.join("cmdline")).unwrap_or_default();
            let socket = self.watchdog();
            let mut arguments = arguments.split(|&byte| byte == 0);
            arguments.any(|argument| argument == socket.as_os_str().as_encoded_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let server = processes.into_iter().find(|folder| of_server(folder)).expect("a server");
        let pid = server.file_name().unwrap().to_str().unwrap().parse().unwrap();
        Pid::from_raw(pid).unwrap()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(sidecar: &Sidecar) -> Client {
    let mut client = Client::connect(&sidecar.watchdog());
    client.negotiate();
    client
}

#[test]
fn the_server_listens_when_the_hook_has_returned_and_serves_the_watchdog() {
    let mut sidecar = Sidecar::start();
    let domain = sidecar.define(&vmi(&[("vm-watchdog/i6300esb", "none")]), Q35);
    let mut client = connect(&sidecar);
    assert!(options(&domain)[3].contains(sidecar.watchdog().to_str().unwrap()), "{domain}");
    assert_eq!(sidecar.expect("listening")["id"], "web");
    client.arm(50);
    let expiry = sidecar.expect("expiry");
    assert_eq!((&expiry["id"], &expiry["stage"]), (&"web".into(), &"timeout".into()));
}

#[test]
fn nothing_but_a_private_folder_is_where_the_launcher_looks_for_grpc() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&web(), Q35);
    let names: Vec<_> = fs::read_dir(sidecar.path("hooks")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["vm-watchdog"]);
    let folder = fs::metadata(sidecar.path("hooks/vm-watchdog")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    let mut inside: Vec<_> =
        fs::read_dir(sidecar.path("hooks/vm-watchdog")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    inside.sort();
    assert_eq!(inside, ["metrics", "watchdog"], "neither the state nor what starts servers");
}

#[test]
fn an_action_goes_to_the_qemu_of_the_other_container() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&web(), Q35);
    let qemu = UnixListener::bind(sidecar.path("hooks/vm-watchdog/qmp")).unwrap();
    let (sender, commands) = channel();
    thread::spawn(move || {
        let mut stream = qemu.accept().unwrap().0;
        stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n").unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let answer = match command["execute"].as_str().unwrap() {
                "query-status" => "{\"status\": \"running\", \"running\": true}",
                _ => "{}",
            };
            stream.write_all(format!("{{\"return\": {answer}, \"id\": {}}}\n", command["id"]).as_bytes()).unwrap();
            sender.send(command["execute"].clone()).unwrap();
        }
    });
    while sidecar.expect("control")["connected"] != true {}
    let mut client = connect(&sidecar);
    client.arm(50);
    assert_eq!(sidecar.expect("performed")["action"], "reset");
    assert!(commands.try_iter().any(|command| command == "system_reset"));
}

#[test]
fn further_calls_for_the_same_vm_keep_the_server_and_its_client() {
    let mut sidecar = Sidecar::start();
    let first = sidecar.define(&web(), Q35);
    let server = sidecar.server();
    let mut client = connect(&sidecar);
    assert_eq!(sidecar.define(&web(), &first), first);
    assert_eq!(sidecar.server(), server);
    assert!(!client.is_enabled(), "the connection still serves");

    // An annotation that was corrected before QEMU has started.
    drop(client);
    sidecar.define(&vmi(&[("vm-watchdog/i6300esb", "poweroff")]), Q35);
    assert_ne!(sidecar.server(), server);
    connect(&sidecar);
}

#[test]
fn the_state_outlives_a_server_that_is_killed_and_the_next_call_starts_another() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&web(), Q35);
    let mut client = connect(&sidecar);
    client.arm(50);
    // The state is written before the action, which fails because there is no QEMU.
    sidecar.expect("action-failed");
    let server = sidecar.server();
    rustix::process::kill_process(server, Signal::KILL).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while !sidecar.log().contains("the server has ended (signal: 9 (SIGKILL)): the guest has no watchdog") {
        assert!(Instant::now() < deadline, "{}", sidecar.log());
        thread::sleep(Duration::from_millis(5));
    }
    sidecar.define(&web(), Q35);
    assert_ne!(sidecar.server(), server);
    assert_eq!(sidecar.expect("restored")["wdt_timeout"], true);
}

#[test]
fn a_server_that_cannot_start_fails_the_hook_and_not_the_sidecar() {
    let mut sidecar = Sidecar::start();
    let wrong = vmi(&[("vm-watchdog/i6300esb", "reset"), ("vm-watchdog/state", "/nowhere/at/all/state")]);
    let line = refusal(sidecar.call(&wrong, Q35));
    let expected =
        "the server for the watchdog: it has ended (exit status: 1): its message is in the log of the sidecar";
    assert_eq!(line, expected);
    assert!(sidecar.log().contains("/nowhere/at/all/state"), "{}", sidecar.log());
    sidecar.define(&web(), Q35);
}

#[test]
fn the_sidecar_ends_with_its_shim_and_leaves_nothing() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&web(), Q35);
    sidecar.end_shim(3);
    assert_eq!(sidecar.end().code(), Some(3));
    sidecar.expect("stopped");
    assert_eq!(fs::read_dir(sidecar.path("hooks/vm-watchdog")).unwrap().count(), 0);
    let temporary = |name: &str| name.starts_with("vm-watchdog");
    let left = fs::read_dir(sidecar.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !temporary(name.to_str().unwrap())));
}

#[test]
fn sigterm_ends_a_sidecar_without_a_vm() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&web(), Q35);
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.end().code(), Some(0));
    sidecar.expect("stopped");
}

#[test]
fn after_sigterm_the_server_stays_until_qemu_has_left_it() {
    let mut sidecar = Sidecar::start();
    sidecar.define(&vmi(&[("vm-watchdog/i6300esb", "none")]), Q35);
    let mut client = connect(&sidecar);
    sidecar.signal(Signal::TERM);
    client.arm(1000);
    // Several times as long as the sidecar takes to look.
    thread::sleep(Duration::from_secs(2));
    sidecar.expect("expiry");
    assert!(client.is_enabled(), "the guest that shuts down is protected");
    drop(client);
    assert_eq!(sidecar.end().code(), Some(0));
}

#[test]
fn a_program_that_is_no_shim_and_a_folder_that_is_none_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut sidecar = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
        let mut child = sidecar.arg("sidecar").args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        (child.wait().unwrap().code(), message)
    };
    let path = folder.path().to_str().unwrap();
    let (status, message) = run(&["--folder", path, "--shim", "/nowhere/sidecar-shim"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("/nowhere/sidecar-shim: No such file"), "{message}");
    let (status, message) = run(&["--folder", "/nowhere/hooks"]);
    assert_eq!((status, message.contains("/nowhere/hooks/vm-watchdog: No such file")), (Some(1), true), "{message}");
    let (status, message) = run(&["--folder", path, "--launcher-folder", "/a,b"]);
    assert_eq!((status, message.contains("folder /a,b/vm-watchdog: accepted are")), (Some(1), true), "{message}");
}

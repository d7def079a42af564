//! A stand-in for the VMM, which runs inside the guest of [`crate::pid1`]: there, this program is `/packaging`, and
//! a unit executes one of these tests. The VMM is one process, as QEMU is, because an action goes only to the process that
//! has connected to the watchdog.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, thread};

use serde_json::{Value, json};

use crate::client::Client;
use crate::server::TIMEOUT;

/// The variable with the folder of the VM.
pub const FOLDER: &str = "VMM_FOLDER";
/// Two stages of so many units of about a millisecond.
const STAGE: u32 = 100;

fn folder() -> PathBuf {
    env::var_os(FOLDER).expect("the folder of the VM").into()
}

fn connect() -> Client {
    let mut client = Client::connect(&folder().join("watchdog"));
    client.negotiate();
    client
}

/// QEMU: it creates its QMP socket, connects to the watchdog, and is asked for a reset when its guest does not feed.
#[test]
#[ignore = "runs in the guest of pid1.rs"]
fn qemu() {
    let path = folder().join("qmp");
    // QEMU replaces the socket of an earlier one, too.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).unwrap();
    let mut client = connect();
    let (mut qmp, _) = listener.accept().unwrap();
    qmp.set_read_timeout(Some(TIMEOUT)).unwrap();
    let say = |qmp: &mut UnixStream, message: Value| qmp.write_all(format!("{message}\r\n").as_bytes()).unwrap();
    say(&mut qmp, json!({"QMP": {"version": {"qemu": {"major": 11}}, "capabilities": ["oob"]}}));
    let mut commands = BufReader::new(qmp.try_clone().unwrap()).lines();
    loop {
        let command: Value = serde_json::from_str(&commands.next().expect("a command").unwrap()).unwrap();
        let result = match command["execute"].as_str() {
            Some("query-status") => json!({"status": "running", "running": true}),
            _ => json!({}),
        };
        say(&mut qmp, json!({"return": result, "id": command["id"]}));
        match command["execute"].as_str() {
            Some("query-status") => client.arm(STAGE),
            Some("system_reset") => break,
            _ => {}
        }
    }
    assert!(client.timed_out());
}

/// Another VMM, for which a command acts: it leaves the file `acted`.
#[test]
#[ignore = "runs in the guest of pid1.rs"]
fn other_vmm() {
    let mut client = connect();
    client.arm(STAGE);
    let deadline = Instant::now() + TIMEOUT;
    while !folder().join("acted").exists() {
        assert!(Instant::now() < deadline, "no action");
        thread::sleep(Duration::from_millis(20));
    }
}

//! A real QEMU with the options that the hook adds, and a server in the sidecar.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vm_watchdog_test_support::qemu::Qemu;
use vm_watchdog_test_support::skip;

use crate::hook::{Q35, device, options, web};
use crate::server::TIMEOUT;
use crate::sidecar::Sidecar;

/// A QEMU that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks QEMU by another QMP socket.
fn ask(stream: &UnixStream, command: &str) -> Value {
    let mut writer = stream;
    writer.write_all(format!("{}\n", json!({ "execute": command })).as_bytes()).unwrap();
    for line in BufReader::new(stream).lines() {
        let answer: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if !answer["return"].is_null() {
            return answer["return"].clone();
        }
    }
    panic!("no answer to {command}");
}

#[test]
fn qemu_starts_with_the_options_and_has_the_device_in_the_slot() {
    let qemu = match Qemu::current() {
        Ok(qemu) => qemu,
        Err(why) => return skip::loudly(&skip::this_test(), &why),
    };
    let mut sidecar = Sidecar::start();
    let domain = sidecar.define(&web(), Q35);
    let own = sidecar.watchdog().with_file_name("test-qmp");
    let mut machine = qemu.system("x86_64");
    machine.args(["-machine", "q35", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-S"]);
    machine.arg("-qmp").arg(format!("unix:{},server=on,wait=off", own.display())).args(options(&domain));
    let _running = Running(machine.stdin(Stdio::null()).spawn().unwrap());
    sidecar.expect("connected");
    while sidecar.expect("control")["connected"] != true {}

    let deadline = Instant::now() + TIMEOUT;
    let stream = loop {
        match UnixStream::connect(&own) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    ask(&stream, "qmp_capabilities");
    let buses = ask(&stream, "query-pci");
    let slot = u64::from_str_radix(device(&domain)["addr"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let devices = buses[0]["devices"].as_array().unwrap();
    let watchdog = devices.iter().find(|device| device["slot"] == slot).unwrap_or_else(|| panic!("{buses:#}"));
    assert_eq!((&watchdog["id"]["vendor"], &watchdog["id"]["device"]), (&json!(0x8086), &json!(0x25ab)));
    assert_eq!(watchdog["qdev_id"], "vm-watchdog");
}

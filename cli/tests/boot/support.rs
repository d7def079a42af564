//! Runs the binary and reads its events.
#![allow(dead_code, reason = "each test target uses its part")]

use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vm_watchdog_test_support::{Unavailable, skip};

/// A run that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test whose guest is healthy while it is given the processor: once, or again if the machine stood still for so
/// long that the guest could not feed its watchdog. Such a run shows nothing.
pub fn while_the_machine_runs(test: impl Fn()) {
    /// A built-in guest feeds every 0.3 s, and its watchdog has 1 s.
    const STILL: Duration = Duration::from_millis(250);
    const INTERVAL: Duration = Duration::from_millis(10);
    for attempt in 1.. {
        let is_over = Arc::new(AtomicBool::new(false));
        let watched = is_over.clone();
        let watch = spawn(move || {
            let mut longest = Duration::ZERO;
            while !watched.load(Ordering::Relaxed) {
                let before = Instant::now();
                sleep(INTERVAL);
                longest = longest.max(before.elapsed());
            }
            longest
        });
        let outcome = catch_unwind(AssertUnwindSafe(&test));
        is_over.store(true, Ordering::Relaxed);
        let longest = watch.join().unwrap();
        match outcome {
            Ok(()) => return,
            Err(_) if longest > STILL && attempt < 5 => {
                eprintln!("the machine stood still for {longest:?}: the test is run again");
            }
            Err(failure) => resume_unwind(failure),
        }
    }
}

/// How a run ended.
pub struct Run {
    /// The exit status; none after a signal.
    pub status: Option<i32>,
    /// The guest's console.
    pub console: String,
    /// Standard error.
    pub messages: String,
}

/// Runs `vm-watchdog boot` to its end.
pub fn boot(arguments: &[&str]) -> Run {
    Running::start(arguments).finish(LIMIT)
}

/// A run that is not over yet.
pub struct Running {
    child: Child,
    console: Option<JoinHandle<String>>,
    lines: Receiver<String>,
    messages: String,
}

impl Running {
    /// Starts `vm-watchdog boot`.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
        command.arg("boot").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let console = spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let (sender, lines) = channel();
        spawn(move || BufReader::new(stderr).lines().map_while(|line| sender.send(line.unwrap()).ok()).for_each(drop));
        Self { child, console: Some(console), lines, messages: String::new() }
    }

    /// The next event of this name.
    pub fn wait_for(&mut self, name: &str) -> Value {
        let start = Instant::now();
        loop {
            let left = LIMIT.saturating_sub(start.elapsed());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no {name} after\n{}", self.messages));
            self.messages += &format!("{line}\n");
            match serde_json::from_str::<Value>(&line) {
                Ok(event) if event["event"] == name => return event,
                _ => {}
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.id(), signal).unwrap();
    }

    /// The process.
    pub fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The thread that runs the guest.
    pub fn vcpu(&self) -> Pid {
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let path = thread.unwrap().path();
            if std::fs::read_to_string(path.join("comm")).unwrap().trim() == "vcpu0" {
                let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                return Pid::from_raw(id).expect("a thread's id is not 0");
            }
        }
        panic!("no vCPU thread");
    }

    /// Waits for the end, and kills the process at the limit.
    pub fn finish(mut self, limit: Duration) -> Run {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(10));
        }
        // It may have ended just now.
        let _ = self.child.kill();
        let status = self.child.wait().unwrap().code();
        let console = self.console.take().unwrap().join().unwrap();
        self.messages.extend(self.lines.iter().map(|line| line + "\n"));
        let run = Run { status, console, messages: std::mem::take(&mut self.messages) };
        assert!(!run.messages.contains("panicked"), "{}", run.messages);
        run
    }
}

impl Drop for Running {
    /// Kills the VM of a test that fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Run {
    /// Every event of a run with `--events json`.
    pub fn events(&self) -> Vec<Value> {
        self.messages
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The events of this name.
    pub fn all(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    /// The one expiry of this stage.
    pub fn expiry(&self, stage: &str) -> Value {
        let expiries: Vec<_> = self.all("expiry").into_iter().filter(|expiry| expiry["stage"] == stage).collect();
        assert_eq!(expiries.len(), 1, "{}", self.messages);
        expiries[0].clone()
    }

    /// The remarks of the built-in guest.
    pub fn remarks(&self) -> Vec<String> {
        self.all("guest").iter().map(|remark| remark["message"].as_str().unwrap().to_owned()).collect()
    }
}

/// A number in an event.
pub fn number(event: &Value, field: &str) -> u64 {
    event[field].as_u64().unwrap_or_else(|| panic!("{field} in {event}"))
}

/// The option that leaves a VM without KVM.
pub const NO_KVM: &str = "--kvm-device=/nonexistent/kvm";

/// The options for each way to run the built-in guest on this machine. Without KVM that part of the test is skipped.
pub fn each() -> Vec<&'static [&'static str]> {
    let mut each: Vec<&[&str]> = vec![&[NO_KVM]];
    if has_kvm() {
        each.push(&[]);
    }
    each
}

/// Whether KVM can be used. If not, reports the part of the calling test that needs it as skipped.
pub fn has_kvm() -> bool {
    static KVM: OnceLock<Result<(), Unavailable>> = OnceLock::new();
    match KVM.get_or_init(probe_kvm) {
        Ok(()) => true,
        Err(why) => {
            skip::loudly(&format!("{}, with KVM", skip::this_test()), why);
            false
        }
    }
}

fn probe_kvm() -> Result<(), Unavailable> {
    let mut probe = Running::start(&["--events=json"]);
    match probe.wait_for("boot").get("because") {
        None => Ok(()),
        Some(because) => Err(Unavailable::new(because.as_str().unwrap_or_default())),
    }
}

/// A file that is removed when it is dropped.
pub struct Temporary(pub PathBuf);

impl Temporary {
    /// A path that no other test uses.
    pub fn new(name: &str) -> Self {
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id())))
    }

    /// A file with these bytes.
    pub fn with(name: &str, bytes: &[u8]) -> Self {
        let file = Self::new(name);
        std::fs::write(&file.0, bytes).unwrap();
        file
    }

    /// The path as an argument.
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A 64-bit ELF kernel with this code at 1 MiB.
pub fn kernel(name: &str, code: &[u8]) -> Temporary {
    const START: u64 = 0x10_0000;
    let mut file = b"\x7FELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for field in [START, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for field in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    for field in [120, START, START, code.len() as u64, code.len() as u64, 1] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    Temporary::with(name, &file)
}

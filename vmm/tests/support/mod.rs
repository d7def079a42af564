//! Runs the binary and reads its events.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No run of these tests takes this long on a sane machine.
const LIMIT: Duration = Duration::from_secs(60);

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
    boot_for(arguments, LIMIT)
}

/// Runs `vm-watchdog boot` for so long, or to its end if that comes first.
pub fn boot_for(arguments: &[&str], limit: Duration) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vm-watchdog"));
    command.arg("boot").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(10));
    }
    // It may have ended just now.
    let _ = child.kill();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let run = Run { status: status.code(), console: text(stdout), messages: text(stderr) };
    assert!(!run.messages.contains("panicked"), "{}", run.messages);
    run
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

    /// The one fire of this stage.
    pub fn fire(&self, stage: &str) -> Value {
        let fires: Vec<_> = self.all("fire").into_iter().filter(|fire| fire["stage"] == stage).collect();
        assert_eq!(fires.len(), 1, "{}", self.messages);
        fires[0].clone()
    }

    /// What the built-in guest said.
    pub fn remarks(&self) -> Vec<String> {
        self.all("guest").iter().map(|remark| remark["message"].as_str().unwrap().to_owned()).collect()
    }
}

/// Whether KVM can be used. Says so loudly when not, and fails where tests must not be skipped.
pub fn has_kvm() -> bool {
    static HAS_KVM: OnceLock<bool> = OnceLock::new();
    *HAS_KVM.get_or_init(probe_kvm)
}

fn probe_kvm() -> bool {
    let probe = boot_for(&["--events=json"], Duration::from_millis(300));
    let Some(because) = probe.all("boot")[0].get("because").cloned() else {
        return true;
    };
    assert!(std::env::var("VM_WATCHDOG_REQUIRE_GUESTS").as_deref() != Ok("1"), "{because}");
    eprintln!("SKIPPED: {because}");
    false
}

/// A file that goes away again.
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

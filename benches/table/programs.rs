//! The command `vm-watchdog`, built as users build it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Names another build of the command to measure.
const VARIABLE: &str = "VM_WATCHDOG_PROGRAM";

/// Builds the command with the release profile, and returns its path.
pub fn vm_watchdog() -> PathBuf {
    if let Some(program) = env::var_os(VARIABLE) {
        return program.into();
    }
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let arguments = ["build", "--release", "--quiet", "--package", "vm-watchdog-cli", "--message-format=json"];
    let build = Command::new(env!("CARGO")).args(arguments).args(["--manifest-path", manifest]).output();
    let messages = String::from_utf8_lossy(&build.expect("cargo").stdout).into_owned();
    let executable = messages.lines().filter_map(|message| message.split_once("\"executable\":\"")).next_back();
    PathBuf::from(executable.and_then(|(_, rest)| rest.split('"').next()).expect("the command is built"))
}

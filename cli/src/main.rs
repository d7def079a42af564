//! The `vm-watchdog` command, which is a hook of KubeVirt as well if it is called `onDefineDomain`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vm_watchdog_cli::main()
}

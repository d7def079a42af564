//! Guest tests: Debian's stock and cloud kernels with their own watchdog drivers and busybox, inside `vm-watchdog boot`.
//!
//! Each test is a [scenario](scenarios). Where KVM is real they run on it; elsewhere in an outer guest whose KVM QEMU
//! emulates (see [`host`]). Some run once more on QEMU's own device, which must look the same to the guest.
//!
//! Two tests run at a time, each thread with an outer guest of its own: more would only compete for two cores.

mod host;
mod scenarios;
mod transcript;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vm_watchdog_test_support::{Unavailable, assets, skip};

use crate::host::Hosts;
use crate::scenarios::{SCENARIOS, Scenario};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let hosts = Arc::new(OnceLock::new());
    let ours = SCENARIOS.iter().map(|scenario| trial("ours", scenario, &hosts, on_ours));
    let qemu =
        SCENARIOS.iter().filter(|scenario| scenario.compare).map(|scenario| trial("qemu", scenario, &hosts, on_qemu));
    libtest_mimic::run(&arguments, ours.chain(qemu).collect()).exit_code()
}

/// What all tests share, once the first one runs.
type Shared = Arc<OnceLock<Result<Hosts, Unavailable>>>;

fn trial(
    device: &str,
    scenario: &'static Scenario,
    hosts: &Shared,
    run: fn(&Hosts, &Scenario) -> Result<(), Failed>,
) -> Trial {
    let hosts = hosts.clone();
    let name = format!("{device}::{}", scenario.name);
    Trial::ignorable_test(name.clone(), move || {
        match hosts.get_or_init(|| assets::machine_for_this_process().and_then(|()| Hosts::prepare())) {
            Ok(hosts) => run(hosts, scenario).map(|()| Completion::Completed),
            Err(why) => {
                skip::loudly(&name, why);
                Ok(Completion::ignored_with(why))
            }
        }
    })
}

fn on_ours(hosts: &Hosts, scenario: &Scenario) -> Result<(), Failed> {
    let transcript = hosts.run_on_ours(scenario)?;
    transcript.check(|| {
        assert_eq!(transcript.said_by_guest(), scenario.guest_says);
        (scenario.check)(&transcript);
    })?;
    Ok(())
}

fn on_qemu(hosts: &Hosts, scenario: &Scenario) -> Result<(), Failed> {
    let transcript = hosts.run_on_qemu(scenario)?;
    transcript.check(|| {
        assert_eq!(transcript.status, Some(0), "the exit status of QEMU");
        assert_eq!(transcript.said_by_guest(), scenario.guest_says);
    })?;
    Ok(())
}

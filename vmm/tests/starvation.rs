//! A host with too much to do: the vCPU's thread on SCHED_IDLE, beside busy loops on its processor.
//!
//! The tests run one after the other: they take a processor for themselves.

mod support;

use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::Pid;
use support::{Run, Running, boot, has_kvm, number};

/// Two stages of 1024 << 15 ticks of 30 ns.
const PERIOD_NS: u64 = 2_013_265_920;
const PATIENCE: u64 = 3;
const POWEROFF: &str = "--watchdog=i6300esb,action=poweroff";
const PATIENT: &str = "--watchdog=i6300esb,action=poweroff,patience=3";
const END: Duration = Duration::from_secs(60);
/// Longer than the timeout, shorter than the patience.
const STARVED: Duration = Duration::from_millis(3500);
/// With so many beside it, a thread of SCHED_IDLE runs less than a thousandth of the time.
const BUSY_LOOPS: usize = 8;

/// Programs that leave a processor to nobody.
struct BusyLoops(Vec<Child>);

impl BusyLoops {
    /// Starves a thread on the first processor that we may use.
    fn beside(thread: Pid) -> Self {
        let processor = first_processor();
        run("chrt", &["--idle", "--pid", "0", &thread.to_string()]);
        run("taskset", &["--cpu-list", "--pid", &processor, &thread.to_string()]);
        let busy = |_| {
            let arguments = ["--cpu-list", &processor, "sh", "-c", "while :; do :; done"];
            Command::new("taskset").args(arguments).spawn().unwrap()
        };
        Self((0..BUSY_LOOPS).map(busy).collect())
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for busy in &mut self.0 {
            let _ = busy.kill();
            let _ = busy.wait();
        }
    }
}

fn first_processor() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    allowed.split(['-', ',']).next().unwrap().to_owned()
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

/// A guest whose vCPU is starved from the moment at which it has armed its watchdog, and gets better or not.
fn starved(guest: &str, watchdog: &str, recovers: bool) -> Run {
    let mut running = Running::start(&["--events=json", guest, watchdog]);
    running.wait_for("armed");
    let busy = BusyLoops::beside(running.vcpu());
    if recovers {
        std::thread::sleep(STARVED);
        drop(busy);
        return running.finish(END);
    }
    running.finish(END)
}

/// KVM, and the processor for ourselves.
fn quiet_host() -> Option<MutexGuard<'static, ()>> {
    static HOST: Mutex<()> = Mutex::new(());
    has_kvm().then(|| HOST.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How long it took from the last heartbeat, or from the start, by the clock of the VM.
fn bitten_after(run: &Run) -> u64 {
    assert_eq!(run.status, Some(3), "{}", run.messages);
    let fed = run.all("heartbeat").last().map(|heartbeat| number(heartbeat, "last_heartbeat_ns"));
    let since = fed.unwrap_or_else(|| number(&run.all("armed")[0], "vm_time_ns"));
    number(&run.all("exit")[0], "vm_time_ns") - since
}

#[test]
fn a_starved_guest_is_not_bitten_with_patience() {
    if let Some(_host) = quiet_host() {
        let run = starved("--built-in=feeding", PATIENT, true);
        assert_eq!(run.status, Some(0), "{}", run.messages);
        assert_eq!(run.all("fire").iter().filter(|fire| fire["stage"] == "timeout").count(), 0, "{}", run.messages);
        assert_eq!(run.all("disarmed").len(), 1, "{}", run.messages);
    }
}

#[test]
fn a_starved_guest_is_bitten_without() {
    if let Some(_host) = quiet_host() {
        // Now and then it runs for a moment, and feeds: so it is starved until such a moment comes too late.
        let after = bitten_after(&starved("--built-in=feeding", POWEROFF, false));
        eprintln!("starved, without patience: bitten after {after} ns");
        assert!(after < PERIOD_NS * 3 / 2, "{after}");
    }
}

#[test]
fn patience_with_a_starved_guest_ends() {
    if let Some(_host) = quiet_host() {
        let after = bitten_after(&starved("--built-in=spinning", PATIENT, false));
        eprintln!("starved for ever, patience {PATIENCE}: bitten after {after} ns");
        assert!(after > PERIOD_NS * 2, "starved all the time: {after}");
        assert!(after < PERIOD_NS * PATIENCE + PERIOD_NS / 2, "{after}");
    }
}

#[test]
fn a_halted_guest_is_not_starved_even_beside_busy_loops() {
    if let Some(_host) = quiet_host() {
        let mut running = Running::start(&["--events=json", "--built-in=halting", PATIENT]);
        running.wait_for("armed");
        // Starved before it can halt, it would be a guest that wants to run.
        std::thread::sleep(Duration::from_millis(300));
        let _busy = BusyLoops::beside(running.vcpu());
        let after = bitten_after(&running.finish(END));
        eprintln!("halted beside busy loops, patience {PATIENCE}: bitten after {after} ns");
        assert!(after < PERIOD_NS * 3 / 2, "{after}");
    }
}

#[test]
fn a_guest_that_spins_or_halts_is_bitten_with_patience_and_without() {
    if let Some(_host) = quiet_host() {
        for guest in ["--built-in=spinning", "--built-in=halting"] {
            for watchdog in [POWEROFF, PATIENT] {
                let after = bitten_after(&boot(&["--events=json", guest, watchdog]));
                eprintln!("{guest} {watchdog}: bitten after {after} ns");
                // On a host that is busy with other things the one that spins is starved now and then.
                let latest = PERIOD_NS * PATIENCE + PERIOD_NS / 2;
                assert!((PERIOD_NS - 50_000_000..latest).contains(&after), "{guest} {watchdog}: {after}");
            }
        }
    }
}

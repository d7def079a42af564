//! Steal-time compensation in real time: the vCPU's thread has SCHED_IDLE and shares its processor with busy loops.
//!
//! The tests run one at a time, because each needs a processor without the load of another test.

#[path = "boot/support.rs"]
mod support;

use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use support::{Run, Running, has_kvm, number};

/// Two stages of 1024 << 15 ticks of 30 ns.
const PERIOD_NS: u64 = 2_013_265_920;
const LIMIT: u64 = 3;
const POWEROFF: &str = "--watchdog=i6300esb,action=poweroff";
const COMPENSATED: &str = "--watchdog=i6300esb,action=poweroff,steal-limit=3";
/// The time between two readings of the run delay, and so the most by which a reading delays an action.
const READING_NS: u64 = 100_000_000;
/// How late an action may be on a busy host, that time included.
const LATE_NS: u64 = READING_NS + 400_000_000;
/// How late a halted guest may time out: on a busy host its thread waits for the processor each time it leaves KVM.
const HALTED_NS: u64 = PERIOD_NS * 3 / 2;
const END: Duration = Duration::from_secs(60);
/// Longer than the timeout, shorter than the limit allows.
const STARVED: Duration = Duration::from_millis(3500);
/// Linux gives a thread of SCHED_IDLE the weight 3 and each of these loops 1024, so the thread gets a ten-thousandth of
/// the processor: about half a millisecond, and then nothing for five seconds, which is longer than the timeout. With
/// eight loops it waits for about one second, and a healthy guest feeds in time.
const BUSY_LOOPS: usize = 32;

/// Processes that never sleep, on one processor.
struct BusyLoops(Vec<Child>);

impl BusyLoops {
    /// Starves a thread: moves it to the first processor that this process may use, and starts the loops there.
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
        // Kills all before it waits for one: beside running loops a killed process takes long to end.
        self.0.iter_mut().for_each(|busy| drop(busy.kill()));
        self.0.iter_mut().for_each(|busy| drop(busy.wait()));
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

/// Starts a guest, and waits until it has armed its watchdog.
fn armed(guest: &str, watchdog: &str) -> Running {
    let mut running = Running::start(&["--events=json", guest, watchdog]);
    running.wait_for("armed");
    running
}

/// Runs a guest to its end, and starves its vCPU from the moment at which it has armed its watchdog.
fn starved(guest: &str, watchdog: &str) -> Run {
    let running = armed(guest, watchdog);
    let _busy = BusyLoops::beside(running.vcpu());
    running.finish(END)
}

/// The processor time of a thread, from its `schedstat`; `None` once it has ended.
fn processor_time(process: Pid, thread: Pid) -> Option<Duration> {
    let account = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).ok()?;
    account.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Waits for the end of a run. Also returns the processor time that the vCPU's thread uses from now on.
fn finish_and_account(running: Running) -> (Run, Duration) {
    let (process, vcpu) = (running.id(), running.vcpu());
    let account = move || processor_time(process, vcpu);
    let before = account().expect("the vCPU runs");
    let last = std::thread::spawn(move || {
        let every = |_: &Duration| {
            std::thread::sleep(Duration::from_millis(10));
            account()
        };
        std::iter::successors(Some(before), every).last().unwrap_or(before)
    });
    let run = running.finish(END);
    (run, last.join().unwrap() - before)
}

/// Excludes the other tests of this file; `None` without KVM.
fn quiet_host() -> Option<MutexGuard<'static, ()>> {
    static HOST: Mutex<()> = Mutex::new(());
    has_kvm().then(|| HOST.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A timeout, in nanoseconds of the VM's clock.
struct Timeout {
    /// From the last heartbeat to the deadline; without a heartbeat, from the start. The start is between the guest's
    /// message and the event `armed`, so this is the smallest and the largest possible value.
    due_after: (u64, u64),
    /// The smallest possible time from there to the action. The process ends later, when its vCPU's thread runs.
    after: u64,
}

/// The timeout that ended this run. Checks that neither the timeout nor its deadline is early.
fn timeout(run: &Run) -> Timeout {
    assert_eq!(run.status, Some(3), "{}", run.messages);
    let expiry = run.expiry("timeout");
    let (started_after, started_before) = match expiry["last_heartbeat_ns"].as_u64() {
        Some(last_heartbeat) => (last_heartbeat, last_heartbeat),
        None => (number(&run.all("guest")[0], "vm_time_ns"), number(&run.all("armed")[0], "vm_time_ns")),
    };
    let deadline = number(&expiry, "deadline_ns");
    assert!(number(&expiry, "observed_ns") >= deadline, "early: {expiry}");
    assert!(deadline >= started_after + PERIOD_NS, "early: {expiry}");
    Timeout {
        due_after: (deadline - started_before, deadline - started_after),
        after: number(&expiry, "observed_ns") - started_before,
    }
}

/// Checks that no steal time was added to the timeout.
fn assert_not_extended(timeout: &Timeout) {
    assert!(timeout.due_after.0 <= PERIOD_NS, "due after {} ns", timeout.due_after.0);
    assert!(timeout.after < PERIOD_NS + LATE_NS, "{}", timeout.after);
}

#[test]
fn a_starved_guest_does_not_time_out_with_compensation() {
    if let Some(_host) = quiet_host() {
        let running = armed("--built-in=feeding", COMPENSATED);
        let (process, vcpu) = (running.id(), running.vcpu());
        let started = Instant::now();
        let busy = BusyLoops::beside(vcpu);
        let before = processor_time(process, vcpu).expect("the vCPU runs");
        std::thread::sleep(STARVED.saturating_sub(started.elapsed()));
        let ran = processor_time(process, vcpu).expect("the vCPU runs") - before;
        drop(busy);
        // With SCHED_IDLE other programs of the host could still starve it.
        run("chrt", &["--other", "--pid", "0", &vcpu.to_string()]);
        assert!(ran < STARVED / 10, "not starved: it ran for {ran:?} of {STARVED:?}");
        let run = running.finish(END);
        assert_eq!(run.status, Some(0), "{}", run.messages);
        assert_eq!(
            run.all("expiry").iter().filter(|expiry| expiry["stage"] == "timeout").count(),
            0,
            "{}",
            run.messages
        );
        assert_eq!(run.all("disarmed").len(), 1, "{}", run.messages);
    }
}

#[test]
fn a_starved_guest_times_out_without_compensation() {
    if let Some(_host) = quiet_host() {
        // The starved guest still feeds once in some seconds, until one heartbeat comes too late.
        let timeout = timeout(&starved("--built-in=feeding", POWEROFF));
        eprintln!("starved, without compensation: timeout after {} ns", timeout.after);
        assert_not_extended(&timeout);
    }
}

#[test]
fn compensation_for_a_starved_guest_is_limited() {
    if let Some(_host) = quiet_host() {
        let timeout = timeout(&starved("--built-in=spinning", COMPENSATED));
        eprintln!("starved for ever, limit {LIMIT}: timeout after {} ns", timeout.after);
        let most = PERIOD_NS * LIMIT;
        assert!(timeout.due_after.1 >= most, "always starved, but due after {} ns", timeout.due_after.1);
        assert!(timeout.due_after.0 <= most + READING_NS, "due after {} ns", timeout.due_after.0);
        assert!(timeout.after < most + LATE_NS, "{}", timeout.after);
    }
}

#[test]
fn a_halted_guest_is_not_starved_even_beside_busy_loops() {
    if let Some(_host) = quiet_host() {
        let running = armed("--built-in=halting", COMPENSATED);
        // Waits for its HLT: a guest that is starved before it is runnable, not halted.
        std::thread::sleep(Duration::from_millis(300));
        let _busy = BusyLoops::beside(running.vcpu());
        let timeout = timeout(&running.finish(END));
        eprintln!("halted beside busy loops, limit {LIMIT}: timeout after {} ns", timeout.after);
        assert!(timeout.after < HALTED_NS, "{}", timeout.after);
    }
}

#[test]
fn a_guest_that_spins_or_halts_times_out_with_compensation_and_without() {
    if let Some(_host) = quiet_host() {
        for guest in ["--built-in=spinning", "--built-in=halting"] {
            for watchdog in [POWEROFF, COMPENSATED] {
                let (run, ran) = finish_and_account(armed(guest, watchdog));
                let timeout = timeout(&run);
                eprintln!("{guest} {watchdog}: timeout after {} ns, of which it ran for {ran:?}", timeout.after);
                match (guest, watchdog) {
                    // Measured in processor time, because other programs of the host may delay the guest.
                    ("--built-in=spinning", COMPENSATED) => {
                        assert!(ran < Duration::from_nanos(PERIOD_NS + LATE_NS), "it ran for {ran:?}");
                    }
                    (_, COMPENSATED) => assert!(timeout.after < HALTED_NS, "{}", timeout.after),
                    _ => assert_not_extended(&timeout),
                }
            }
        }
    }
}

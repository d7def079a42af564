//! The guest under test: Linux with our watchdog, and the same Linux with QEMU's.

use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vm_watchdog::diag288::Diag288;
use vm_watchdog::{Action, Event, HandlerError, Policy, VmClock, Watchdog, WatchdogThread};

use crate::bridge::Bridge;
use crate::guest::{Guest, Parts, SpecificationException};
use crate::machine::Device;
use crate::qmp::Qmp;
use crate::wait::WAIT_LIMIT;

/// Largest lateness of a timeout on a loaded machine with emulated processors. A timeout is never early.
const LATEST: Duration = Duration::from_secs(20);

/// A guest with a watchdog that performs one action.
pub struct Rig {
    pub guest: Guest,
    /// `None` if the watchdog is QEMU's.
    pub ours: Option<Ours>,
    record: Vec<String>,
}

/// Our watchdog, with its events and calls.
pub struct Ours {
    pub watchdog: Watchdog<Diag288>,
    pub bridge: Bridge,
    /// Every call of the handler.
    pub events: Receiver<(Instant, Event)>,
    _thread: WatchdogThread,
}

/// Runs a scenario with our watchdog and with QEMU's at the same time, and compares the records.
pub fn compare_with_qemu(
    parts: &Parts,
    action: Action,
    scenario: impl Fn(&mut Rig) -> Result<(), Box<dyn Error>> + Sync,
) {
    let run = |with_ours: bool| {
        let name = if with_ours { "ours" } else { "QEMU's" };
        let mut rig = Rig::boot(parts, action, with_ours).unwrap_or_else(|error| panic!("{name}: {error}"));
        scenario(&mut rig).unwrap_or_else(|error| panic!("{name}: {error}\nso far: {:#?}", rig.record));
        rig.record
    };
    let [ours, qemus] = thread::scope(|scope| {
        let threads = [true, false].map(|with_ours| scope.spawn(move || run(with_ours)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    assert_eq!(ours, qemus, "ours, and QEMU's");
}

impl Rig {
    fn boot(parts: &Parts, action: Action, with_ours: bool) -> Result<Self, Box<dyn Error>> {
        let device = if with_ours { Device::None } else { Device::Qemu { action: action.as_str() } };
        let guest = Guest::boot(parts, device)?;
        let ours = if with_ours { Some(Ours::attach(&guest, action)?) } else { None };
        Ok(Self { guest, ours, record: Vec::new() })
    }

    /// Executes a command in the guest, which must succeed.
    pub fn run(&mut self, command: &str) -> Result<(), Box<dyn Error>> {
        let (status, printed) = self.guest.run(command)?;
        self.note(format!("{command}: status {status}, {printed:?}"));
        if status == 0 { Ok(()) } else { Err(format!("{command}: status {status}, {printed:?}").into()) }
    }

    /// Loads the driver.
    pub fn load_driver(&mut self) -> Result<(), Box<dyn Error>> {
        self.run("insmod /lib/watchdog.ko")?;
        self.run("insmod /lib/diag288_wdt.ko")
    }

    /// Starts busybox' watchdog daemon in the guest.
    pub fn feed(&mut self) -> Result<(), Box<dyn Error>> {
        self.run("feed 2 15")
    }

    /// Runs busybox' watchdog daemon for some time, then kills it. Linux sends a last heartbeat after that, so the last
    /// heartbeat is not before the returned instant.
    pub fn feed_and_kill(&mut self) -> Result<Instant, Box<dyn Error>> {
        self.feed()?;
        self.run("sleep 3")?;
        let alive = Instant::now();
        self.run("end_feeder KILL")?;
        Ok(alive)
    }

    /// Waits until `timed_out` returns, and checks that this takes 15 s from the guest's last heartbeat: never less by
    /// the clock of the test, and at most [`LATEST`] more.
    pub fn expect_timeout(
        &mut self,
        alive: Instant,
        timed_out: impl FnOnce(&Qmp) -> std::io::Result<()>,
    ) -> Result<(), Box<dyn Error>> {
        timed_out(&self.guest.qmp)?;
        assert_on_time(alive.elapsed());
        if let Some(ours) = &self.ours {
            let (fired, _) = ours.events.recv_timeout(WAIT_LIMIT)?;
            let last = ours.bridge.last_success();
            assert_on_time(fired - last.ok_or("no call of the guest")?);
        }
        self.note("timed out".to_owned());
        Ok(())
    }

    /// Waits until QEMU has ended successfully.
    pub fn expect_end(&mut self) -> Result<(), Box<dyn Error>> {
        let ended = self.guest.process.wait(WAIT_LIMIT)?;
        assert!(ended.status.success(), "{}: {}", ended.status, ended.record);
        Ok(())
    }

    /// Waits until the guest has booted again.
    pub fn expect_reboot(&mut self) -> Result<(), Box<dyn Error>> {
        let address = self.guest.wait_for_boot()?;
        assert_eq!(address, self.guest.specification_exception, "the kernel's address after the reset");
        self.note("booted".to_owned());
        Ok(())
    }

    /// Records the new messages of the watchdog and its driver in the guest's kernel log.
    pub fn note_kernel_log(&mut self) -> Result<(), Box<dyn Error>> {
        self.run("dmesg -c | sed -n 's/.*\\] \\(\\(diag288_wdt\\|watchdog\\): .*\\)/\\1/p'")
    }

    /// Resumes a paused machine as a VMM does: the VM's clock, then the VM.
    pub fn resume(&self) -> std::io::Result<()> {
        match &self.ours {
            Some(ours) => {
                ours.watchdog.clock().resume();
                ours.bridge.resume();
            }
            None => drop(self.guest.qmp.execute("cont")?),
        }
        Ok(())
    }

    /// Adds a line that both records must have at this position.
    pub fn note(&mut self, line: String) {
        self.record.push(line);
    }
}

/// The timeout that the guests set.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// Checks the time from the last heartbeat to the timeout.
pub fn assert_on_time(waited: Duration) {
    assert!(waited >= TIMEOUT, "early timeout, {waited:?} after a heartbeat");
    assert!(waited < TIMEOUT + LATEST, "late timeout, {waited:?} after a heartbeat");
}

impl Ours {
    fn attach(guest: &Guest, action: Action) -> Result<Self, Box<dyn Error>> {
        let clock = VmClock::monotonic();
        let (reported, events) = channel();
        let reported = Mutex::new(reported);
        let handler = {
            let (qmp, clock) = (guest.qmp.clone(), clock.clone());
            move |event: &Event| -> Result<(), HandlerError> {
                reported.lock().unwrap().send((Instant::now(), event.clone()))?;
                perform(event.action, &qmp, &clock)
            }
        };
        let watchdog =
            Watchdog::builder("diag288", Diag288::new()).clock(clock).policy(Policy::new(action)).build(handler)?;
        let thread = watchdog.spawn()?;
        let device = watchdog.clone();
        let hook = SpecificationException(guest.specification_exception);
        let bridge =
            Bridge::attach(guest.debug()?, hook, move |guest| guest.call().map(|call| device.diagnose(&call)))?;
        Ok(Self { watchdog, bridge, events, _thread: thread })
    }
}

/// Performs an action as a VMM does.
fn perform(action: Action, qmp: &Arc<Qmp>, clock: &VmClock) -> Result<(), HandlerError> {
    let command = match action {
        Action::Reset => "system_reset",
        Action::Shutdown => "system_powerdown",
        Action::Poweroff => "quit",
        Action::InjectNmi => "inject-nmi",
        Action::Pause => {
            clock.pause();
            "stop"
        }
        other => return Err(format!("no test asks for {other}").into()),
    };
    qmp.execute(command)?;
    Ok(())
}

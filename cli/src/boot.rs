//! `vm-watchdog boot`: its arguments, and a run of the reference VMM.

use std::path::PathBuf;

use vm_watchdog::WatchdogConfig;
use vm_watchdog_timeline::Format;
use vm_watchdog_vmm::{BootOptions, BuiltInGuest, ExitStatus, MemorySize};

use crate::exit;
use crate::format::parser;

/// Boots a guest in a small VMM on KVM and acts when its watchdog expires.
///
/// Without a kernel, a built-in guest arms the watchdog, feeds it, stops, and is reset when the watchdog expires. It needs
/// no KVM: without it the guest is played in-process. The guest's serial console (3F8h, interrupt 4) is standard output.
#[derive(Clone, Debug, clap::Args)]
pub struct BootArguments {
    /// The kernel: a bzImage or a 64-bit ELF (vmlinux)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// The initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "console=ttyS0 panic=-1 reboot=k no_timer_check"
    )]
    pub cmdline: String,

    /// Where the second serial port (2F8h, interrupt 3) writes; without this, there is no such port
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub second_serial: Option<PathBuf>,

    /// Guest memory, with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub memory: MemorySize,

    /// A watchdog; may be given up to four times
    ///
    /// MODEL is i6300esb (a PCI function), or wdat (the ACPI watchdog table, for kernels without a driver for the i6300esb),
    /// once. period=1s makes a guest count a wdat in seconds, as Hyper-V's does, in place of milliseconds.
    ///
    /// action=, pretimeout= and then= take reset, shutdown (an ACPI power button), poweroff, pause, inject-nmi, dump,
    /// none or debug (as none). The pretimeout action is due before=TIME before the timeout, by default a quarter of the
    /// period: a guest that feeds later than that (systemd and the watchdog daemon feed at half of it, busybox as -t
    /// says) is acted on although it is healthy. grace=30s with then= acts again when the action did not help.
    /// steal-limit=4: time in which the vCPU was runnable and did not run (steal time) does not count, up to four timeouts
    /// in all. interrupt=intx connects the device's own interrupt, which comes at the end of its first stage;
    /// interrupt=msi adds MSI.
    #[arg(
        long = "watchdog",
        value_name = "MODEL[,action=ACTION][,pretimeout=ACTION[,before=TIME]][,grace=TIME,then=ACTION][,action-interval=TIME[,action-burst=NUMBER]][,steal-limit=TIMES][,id=NAME][,interrupt=intx|msi][,period=1ms|1s]",
        default_value = "i6300esb,action=reset"
    )]
    pub watchdogs: Vec<WatchdogConfig>,

    /// How the timeline is written
    ///
    /// json writes one object a line. "event" names it: boot, armed, disarmed, heartbeat, expiry, nmi, power-button,
    /// paused, resumed, saved, restored, dump, action-failed, reset, guest, log or exit; "vm_time_ns" is when it was
    /// written, on the clock of the VM, which is paused with it. "expiry" has id, stage, action, attempt, deadline_ns,
    /// observed_ns, lateness_ns, heartbeats and last_heartbeat_ns. What a guest can cause is written at most 20 times a
    /// second; "suppressed" counts what was left out since the line before.
    #[arg(long, value_name = "FORMAT", value_parser = parser(), default_value = "text")]
    pub events: Format,

    /// Where the timeline goes [default: standard error]
    #[arg(long, value_name = "FILE")]
    pub events_file: Option<PathBuf>,

    /// Where the action dump writes guest memory, as an ELF core; an older dump is overwritten
    #[arg(long, value_name = "FILE", default_value = "vm-watchdog.core")]
    pub dump_file: PathBuf,

    /// Where SIGUSR1 saves the VM (a built-in guest's); without this, it only pauses the VM. SIGUSR2 resumes it
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    pub snapshot: Option<PathBuf>,

    /// Restores a saved VM, with its watchdogs and its memory
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "memory", "watchdogs", "built_in"])]
    pub restore: Option<PathBuf>,

    /// Which built-in guest
    #[arg(long, value_name = "GUEST", default_value = "expiring", hide = true, conflicts_with = "kernel")]
    pub built_in: BuiltInGuest,

    /// The KVM device
    #[arg(long, value_name = "FILE", default_value = "/dev/kvm")]
    pub kvm_device: PathBuf,
}

/// Runs the VM to its end.
pub fn run(arguments: BootArguments) -> ExitStatus {
    vm_watchdog_vmm::run(arguments.into()).unwrap_or_else(|error| {
        exit::report(&error);
        error.exit_status()
    })
}

impl From<BootArguments> for BootOptions {
    fn from(arguments: BootArguments) -> Self {
        let BootArguments { kernel, initrd, cmdline, second_serial, memory, watchdogs, events, .. } = arguments;
        let BootArguments { events_file, dump_file, snapshot, restore, built_in, kvm_device, .. } = arguments;
        Self {
            kernel,
            initrd,
            cmdline,
            second_serial,
            memory,
            watchdogs,
            events,
            events_file,
            dump_file,
            snapshot,
            restore,
            built_in,
            kvm_device,
        }
    }
}

//! `vm-watchdog boot`: a reference VMM. It links the library as any VMM would, by its public API only.
//!
//! Three threads of control: the vCPU's thread runs the guest and owns the devices ([`processor`]); the main thread's
//! event loop serves the watchdogs' timers ([`vm_watchdog::WatchdogSubscriber`]) and does what is asked for
//! ([`machine`]). A watchdog's callback only leaves a message ([`inbox`]).

mod builtin;
mod core_dump;
mod devices;
mod error;
mod inbox;
mod kvm;
mod linux;
mod log;
mod machine;
mod memory;
mod options;
mod processor;
mod timeline;
mod watchdogs;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vm_watchdog::{VmClock, WatchdogSubscriber};

pub use self::options::BootOptions;

use self::builtin::{Player, TABLE, assemble, remarks};
use self::devices::Devices;
use self::devices::pci::{HostBridge, PciBus};
use self::devices::serial::{self, Console};
use self::devices::test_ports::TestPorts;
use self::error::BootError;
use self::kvm::KvmMachine;
use self::linux::LinuxGuest;
use self::machine::{Guest, Machine};
use self::memory::{GuestMemory, MemorySize};
use self::processor::{Processor, Vcpu, VcpuThread};
use self::timeline::{Entry, Timeline};
use self::watchdogs::Watchdogs;
use crate::exit::ExitStatus;

/// Less than this serves no guest.
const LEAST_MEMORY: MemorySize = MemorySize::mib(16);

/// Runs a VM to its end.
pub fn run(options: BootOptions) -> ExitStatus {
    try_run(options).unwrap_or_else(|error| {
        eprintln!("vm-watchdog: {error}");
        error.exit_status()
    })
}

fn try_run(options: BootOptions) -> Result<ExitStatus, BootError> {
    watchdogs::check(&options.watchdogs)?;
    if options.memory.bytes() < LEAST_MEMORY.bytes() {
        let needed = format!("at least {LEAST_MEMORY} are needed");
        return Err(BootError::TooLittleMemory { size: options.memory, needed });
    }
    let linux = match &options.kernel {
        Some(kernel) => {
            let BootOptions { initrd, cmdline, memory, .. } = options.clone();
            Some(LinuxGuest::open(kernel.clone(), initrd, cmdline, memory)?)
        }
        None => None,
    };
    let memory = memory::allocate(options.memory)?;
    let kvm = KvmMachine::open(&options.kvm_device, memory.clone());
    let (kvm, why_not) = match kvm {
        Ok(kvm) => (Some(kvm), None),
        Err(reason) if linux.is_some() => return Err(BootError::KvmUnusable { reason }),
        Err(reason) => (None, Some(reason)),
    };

    let clock = VmClock::monotonic();
    let timeline = Arc::new(Timeline::new(clock.clone(), options.events, open_events(&options)?));
    log::install(timeline.clone());
    timeline.record(Entry::Boot {
        guest: linux.as_ref().map_or("built-in".to_owned(), LinuxGuest::name),
        runs_on: if kvm.is_some() { "kvm" } else { "in-process" },
        because: why_not,
        memory_bytes: options.memory.bytes(),
        watchdogs: watchdogs::summaries(&options.watchdogs),
    });
    let outcome = run_machine(options, linux, kvm, memory, clock, &timeline);
    let (status, reason) = match &outcome {
        Ok(status) => (*status, status.to_string()),
        Err(error) => (error.exit_status(), error.to_string()),
    };
    timeline.record(Entry::Exit { status: status as u8, reason });
    outcome
}

/// Puts the machine together and runs it.
fn run_machine(
    options: BootOptions,
    linux: Option<LinuxGuest>,
    kvm: Option<KvmMachine>,
    memory: GuestMemory,
    clock: VmClock,
    timeline: &Arc<Timeline>,
) -> Result<ExitStatus, BootError> {
    let (inbox, for_watchdogs, for_vcpu, bell) = inbox::open().map_err(BootError::host("create an eventfd"))?;
    let test_ports = linux.is_none().then(|| TestPorts {
        clock: clock.clone(),
        timeline: timeline.clone(),
        remarks: remarks(TABLE),
    });
    let mut devices = Devices { pci: PciBus::default(), console: open_console()?, test_ports };
    devices.pci.insert(0, Box::new(HostBridge));
    let watchdogs = Watchdogs { clock: &clock, timeline, kvm: kvm.as_ref(), actions: &for_watchdogs };
    let watchdogs = watchdogs.build(&options.watchdogs, &mut devices.pci)?;

    let (guest, processor) = choose(linux, kvm, &memory, &devices)?;
    let vcpu = VcpuThread::spawn(Vcpu { processor, devices, running: false }, for_vcpu)?;

    let mut events: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()?;
    events.add_subscriber(Box::new(bell));
    for watchdog in &watchdogs {
        events.add_subscriber(Box::new(WatchdogSubscriber::new(watchdog.clone())));
    }
    let mut machine = Machine {
        vcpu,
        memory,
        guest,
        clock,
        watchdogs,
        timeline: timeline.clone(),
        dump_file: options.dump_file,
        inbox,
        resets: (0, None),
    };
    machine.start()?;
    loop {
        events.run()?;
        if let Some(status) = machine.serve()? {
            return Ok(status);
        }
    }
}

/// The guest, loaded, and what runs it.
fn choose(
    linux: Option<LinuxGuest>,
    kvm: Option<KvmMachine>,
    memory: &GuestMemory,
    devices: &Devices,
) -> Result<(Guest, Box<dyn Processor>), BootError> {
    let bar = watchdogs::base_address(0);
    let mut guest = match (linux, &kvm) {
        (Some(linux), _) => Guest::Linux(linux),
        (None, Some(_)) => Guest::BuiltIn(assemble(TABLE, bar)),
        (None, None) => Guest::Played,
    };
    let processor: Box<dyn Processor> = match (guest.load(memory)?, kvm) {
        (Some(entry), Some(kvm)) => {
            kvm.connect_edge(devices.console.interrupt(), serial::GSI)?;
            Box::new(kvm.processor(entry)?)
        }
        _ => Box::new(Player::new(TABLE, bar)),
    };
    Ok((guest, processor))
}

fn open_console() -> Result<Console, BootError> {
    Console::new(|| Box::new(std::io::stdout())).map_err(BootError::host("create an eventfd"))
}

fn open_events(options: &BootOptions) -> Result<Box<dyn Write + Send>, BootError> {
    match &options.events_file {
        None => Ok(Box::new(std::io::stderr())),
        Some(path) => match File::create(path) {
            Ok(file) => Ok(Box::new(file)),
            Err(source) => Err(BootError::EventsFile { path: path.clone(), source }),
        },
    }
}

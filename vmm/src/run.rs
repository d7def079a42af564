//! Builds a machine and runs it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vm_watchdog::{ThreadRunDelay, VmClock, WatchdogSubscriber};
use vm_watchdog_timeline::install_logger;

use crate::builtin::assembler::assemble;
use crate::builtin::player::Player;
use crate::builtin::table::remarks;
use crate::devices::Devices;
use crate::devices::pci::{HostBridge, PciBus};
use crate::devices::power::{self, PowerManagement};
use crate::devices::serial::{self, SerialPort};
use crate::devices::test_ports::TestPorts;
use crate::error::BootError;
use crate::exit::ExitStatus;
use crate::inbox;
use crate::kvm::KvmMachine;
use crate::kvm::entry::EntryPoint;
use crate::linux::LinuxGuest;
use crate::machine::{Guest, Machine};
use crate::memory::{self, GuestMemory};
use crate::memory_size::MemorySize;
use crate::operator::OperatorSignals;
use crate::options::BootOptions;
use crate::processor::Processor;
use crate::snapshot::{Snapshot, SnapshotWriter};
use crate::timeline::{Entry, Timeline};
use crate::vcpu::{Vcpu, VcpuThread};
use crate::watchdog_options;
use crate::watchdogs::{self, Watchdogs};

/// The least memory of a guest.
const LEAST_MEMORY: MemorySize = MemorySize::mib(16);

/// Runs a VM to its end.
///
/// # Errors
///
/// [`BootError`] if the VM cannot be started, or fails.
pub fn run(options: BootOptions) -> Result<ExitStatus, BootError> {
    let snapshot = options.restore.as_deref().map(Snapshot::read).transpose()?;
    let options = match &snapshot {
        Some(snapshot) => snapshot.adopt(options),
        None => options,
    };
    watchdog_options::check(&options.watchdogs)?;
    if options.memory.bytes() < LEAST_MEMORY.bytes() {
        let needed = format!("at least {LEAST_MEMORY} are needed");
        return Err(BootError::TooLittleMemory { size: options.memory, needed });
    }
    let linux = match &options.kernel {
        Some(kernel) => {
            let BootOptions { initrd, cmdline, memory, .. } = options.clone();
            let wdat = watchdog_options::wdat(&options.watchdogs);
            Some(LinuxGuest::open(kernel.clone(), initrd, cmdline, memory, wdat)?)
        }
        None => {
            watchdog_options::check_built_in(options.built_in, &options.watchdogs)?;
            None
        }
    };
    let memory = memory::allocate(options.memory)?;
    let kvm = match &snapshot {
        Some(snapshot) if !snapshot.needs_kvm() => Err("it was saved so".to_owned()),
        _ => KvmMachine::open(&options.kvm_device, memory.clone()),
    };
    let (kvm, why_not) = match kvm {
        Ok(kvm) => (Some(kvm), None),
        Err(reason) if linux.is_some() => return Err(BootError::KvmUnusable { guest: "a kernel", reason }),
        Err(reason) if snapshot.as_ref().is_some_and(Snapshot::needs_kvm) => {
            return Err(BootError::KvmUnusable { guest: "the snapshot", reason });
        }
        Err(reason) => (None, Some(reason)),
    };
    let name = linux.as_ref().map_or("built-in".to_owned(), LinuxGuest::name);
    let built_in = options.built_in.steps();
    let mut guest = match (linux, &kvm) {
        (Some(linux), _) => Guest::Linux(linux),
        (None, Some(_)) => Guest::BuiltIn(assemble(&built_in, watchdogs::base_address(0))),
        (None, None) => Guest::Played,
    };
    let entry = guest.load(&memory)?;
    if let Some(snapshot) = &snapshot {
        snapshot.fill(&memory)?;
    }

    let clock = snapshot.as_ref().map_or_else(VmClock::monotonic, Snapshot::clock);
    let timeline = Arc::new(Timeline::new(clock.clone(), options.events, open_events(&options)?));
    install_logger(timeline.clone());
    timeline.record(Entry::Boot {
        guest: name,
        runs_on: if kvm.is_some() { "kvm" } else { "in-process" },
        because: why_not,
        memory_bytes: options.memory.bytes(),
        watchdogs: watchdog_options::summaries(&options.watchdogs),
    });
    let parts = Parts { options, guest, entry, kvm, memory, clock, snapshot };
    let outcome = run_machine(parts, &timeline);
    let (status, reason) = match &outcome {
        Ok(status) => (*status, status.to_string()),
        Err(error) => (error.exit_status(), error.to_string()),
    };
    timeline.record(Entry::Exit { status: status as u8, reason });
    outcome
}

/// The parts of a machine.
struct Parts {
    options: BootOptions,
    guest: Guest,
    /// The entry point; `None` for a guest that is played.
    entry: Option<EntryPoint>,
    kvm: Option<KvmMachine>,
    memory: GuestMemory,
    clock: VmClock,
    /// The saved VM to continue; `None` for a power-on.
    snapshot: Option<Snapshot>,
}

/// Builds the machine and runs it.
fn run_machine(parts: Parts, timeline: &Arc<Timeline>) -> Result<ExitStatus, BootError> {
    let Parts { options, guest, entry, kvm, memory, clock, snapshot } = parts;
    let (inbox, senders, inbox_subscriber) = inbox::open().map_err(BootError::host("create an eventfd"))?;
    let signals = OperatorSignals::new(senders.operator).map_err(BootError::host("catch signals"))?;
    let steps = options.built_in.steps();
    let test_ports = (!matches!(guest, Guest::Linux(_))).then(|| TestPorts {
        clock: clock.clone(),
        timeline: timeline.clone(),
        remarks: remarks(&steps),
    });
    let power = open_power(kvm.as_ref())?;
    let (console, second_serial) = open_serial_ports(options.second_serial.as_deref())?;
    let mut devices = Devices { pci: PciBus::default(), console, second_serial, power, wdat: None, test_ports };
    devices.pci.insert(0, Box::new(HostBridge));
    let run_delay = ThreadRunDelay::new();
    let watchdogs = Watchdogs {
        clock: &clock,
        timeline,
        kvm: kvm.as_ref(),
        actions: &senders.watchdogs,
        run_delay: &run_delay,
        snapshot: snapshot.as_ref(),
    };
    let watchdogs = watchdogs.build(&options.watchdogs, &mut devices)?;

    let mut processor: Box<dyn Processor> = match (entry, kvm) {
        (Some(entry), Some(kvm)) => {
            kvm.connect_edge(devices.console.interrupt(), serial::CONSOLE_GSI)?;
            if let Some(port) = &devices.second_serial {
                kvm.connect_edge(port.interrupt(), serial::SECOND_GSI)?;
            }
            Box::new(kvm.processor(entry)?)
        }
        _ => Box::new(Player::new(steps, watchdogs::base_address(0))),
    };
    if let Some(snapshot) = &snapshot {
        processor.restore(snapshot.processor()).map_err(|error| snapshot.invalid("processor", &error))?;
        devices.pci.set_address(snapshot.pci_address());
        timeline.record(Entry::Restored { path: snapshot.name() });
    }
    let vcpu = VcpuThread::spawn(Vcpu { processor, devices, running: false, paused: false }, senders.vcpu)?;
    if options.watchdogs.iter().any(|watchdog| watchdog.steal_limit().is_some()) {
        let registered = vcpu.call(move |_| run_delay.register_current_thread())?;
        registered.map_err(BootError::host("read the run delay of the vCPU"))?;
    }

    let mut events: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()?;
    events.add_subscriber(Box::new(inbox_subscriber));
    events.add_subscriber(Box::new(signals));
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
        snapshot: options.snapshot.map(|path| SnapshotWriter {
            path,
            guest: options.built_in,
            memory_size: options.memory,
            configs: options.watchdogs,
        }),
    };
    machine.clock.resume();
    machine.start()?;
    loop {
        events.run()?;
        if let Some(status) = machine.serve()? {
            return Ok(status);
        }
    }
}

/// The power management registers, with their interrupt where there is one.
fn open_power(kvm: Option<&KvmMachine>) -> Result<PowerManagement, BootError> {
    let Some(kvm) = kvm else {
        return Ok(PowerManagement::default());
    };
    kvm.set_level_triggered(power::INTERRUPT)?;
    let line = kvm.interrupt_line(power::INTERRUPT.into());
    Ok(PowerManagement::new(Some(Box::new(line))))
}

/// The console, and the second serial port if there is a file for it.
fn open_serial_ports(file: Option<&Path>) -> Result<(SerialPort, Option<SerialPort>), BootError> {
    let open = |output| SerialPort::new(output).map_err(BootError::host("create an eventfd"));
    let console = open(Box::new(|| Box::new(std::io::stdout())))?;
    let Some(path) = file else {
        return Ok((console, None));
    };
    let file = File::create(path).map_err(|source| BootError::SerialFile { path: path.to_owned(), source })?;
    let file = Arc::new(file);
    Ok((console, Some(open(Box::new(move || Box::new(file.clone())))?)))
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

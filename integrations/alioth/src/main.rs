//! A VMM made of alioth and vm-watchdog: one vCPU, a console that the guest only writes, and the watchdog.
//!
//! `vm-watchdog-alioth VMLINUX INITRAMFS CMDLINE` prints what the guest's kernel prints. A guest that prints
//! `pause me SECONDS` is paused. The exit status is 0 if the guest powered off, and 3 if the watchdog did it.

mod watchdog;

use std::error::Error;
use std::ffi::CString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use alioth::arch::layout::PORT_COM1;
use alioth::board::{Board, BoardConfig, CpuConfig};
use alioth::device::{MmioDev, Pause};
use alioth::hv::{Hypervisor, Kvm, KvmConfig, Vm};
use alioth::loader::{Executable, Payload};
use alioth::mem::emulated::{Action, Mmio};
use alioth::mem::{self, MemConfig};
use alioth::pci::Pci;
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Event, Policy, VmClock, Watchdog};

use crate::watchdog::PciWatchdog;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the main thread waits for.
#[derive(Debug)]
enum Happened {
    Printed(String),
    Fired(Event),
    GuestEnded,
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, cmdline] = &arguments[..] else {
        return Err("usage: vm-watchdog-alioth VMLINUX INITRAMFS CMDLINE".into());
    };
    let (sender, happened) = channel();
    let clock = VmClock::monotonic();
    let to_main = sender.clone();
    let watchdog = Watchdog::builder("watchdog0", I6300esb::new(I6300esbConfig::default()))
        .clock(clock.clone())
        .policy(Policy::new(vm_watchdog::Action::Poweroff))
        .build(move |event: &Event| Ok(to_main.send(Happened::Fired(event.clone()))?))?;
    let _thread = watchdog.spawn()?;

    let payload = Payload {
        executable: Some(Executable::Pvh(Path::new(kernel).into())),
        initramfs: Some(Path::new(initramfs).into()),
        cmdline: Some(CString::new(cmdline.as_str())?),
        firmware: None,
    };
    let board = machine(&Kvm::new(KvmConfig::default())?, &sender)?;
    add_pci_device(&board, Arc::new(PciWatchdog::new(watchdog.clone())));
    *board.payload.write() = Some(payload);
    board.boot()?;
    run(&board, &clock, &watchdog, &happened)
}

/// Executes what the guest asks for, until it ends or its watchdog fires.
fn run(
    board: &Board<<Kvm as Hypervisor>::Vm>,
    clock: &VmClock,
    watchdog: &Watchdog<I6300esb>,
    happened: &Receiver<Happened>,
) -> Result<ExitCode> {
    loop {
        match happened.recv()? {
            Happened::Printed(line) => {
                println!("{line}");
                if let Some((_, seconds)) = line.split_once("pause me ") {
                    pause_for(Duration::from_secs(seconds.trim().parse()?), board, clock, happened)?;
                    println!("vmm: resumed after {seconds} s");
                }
            }
            Happened::Fired(event) => {
                board.pause()?;
                let Event { stage, action, .. } = event;
                let waited = event.last_heartbeat.map(|heartbeat| event.observed.saturating_duration_since(heartbeat));
                let heartbeats = watchdog.stats().heartbeats;
                println!("vmm: {stage}, {action}, {waited:?} after the last of {heartbeats} heartbeats");
                return Ok(ExitCode::from(3));
            }
            Happened::GuestEnded => {
                println!("vmm: the guest powered off");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Pauses the guest, which must do nothing meanwhile, and its watchdog.
fn pause_for(
    time: Duration,
    board: &Board<<Kvm as Hypervisor>::Vm>,
    clock: &VmClock,
    happened: &Receiver<Happened>,
) -> Result<()> {
    clock.pause();
    board.pause()?;
    // alioth's signal is lost if it comes while the vCPU is not in the guest, as when the guest has just written.
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(100));
        board.vcpus.read().iter().try_for_each(|vcpu| board.vm.stop_vcpu(0, vcpu))?;
    }
    for before in happened.try_iter() {
        let Happened::Printed(line) = before else { return Err(format!("{before:?}, before the pause").into()) };
        println!("{line}");
    }
    if let Ok(meanwhile) = happened.recv_timeout(time) {
        return Err(format!("{meanwhile:?}, while the guest is paused").into());
    }
    board.resume()?;
    clock.resume();
    Ok(())
}

/// A machine with one vCPU and a console. `alioth::vm::Machine` has no pause, so this uses its board.
fn machine(hypervisor: &Kvm, sender: &Sender<Happened>) -> Result<Arc<Board<<Kvm as Hypervisor>::Vm>>> {
    let config = BoardConfig {
        mem: MemConfig { size: 256 << 20, ..Default::default() },
        cpu: CpuConfig { count: 1, ..Default::default() },
        coco: None,
    };
    let board = Arc::new(Board::new(hypervisor, config)?);
    let (states, state) = channel();
    let vcpu = thread::spawn({
        let board = board.clone();
        move || board.run_vcpu(0, states)
    });
    state.recv()?;
    board.vcpus.write().push(vcpu);
    board.arch_init()?;
    let console = Console { line: Mutex::default(), sender: sender.clone() };
    board.io_devs.write().push((PORT_COM1, Arc::new(console)));
    let sender = sender.clone();
    thread::spawn(move || {
        // The second message of the vCPU's thread, or its absence, is its end.
        let _ = state.recv();
        sender.send(Happened::GuestEnded)
    });
    Ok(board)
}

/// What `Machine::add_pci_dev` does.
fn add_pci_device(board: &Board<<Kvm as Hypervisor>::Vm>, device: Arc<dyn Pci>) {
    let address = board.pci_bus.reserve(None).expect("the bus has free slots");
    device.config().get_header().set_bdf(address);
    board.pci_bus.add(address, device);
}

/// The transmitter of a serial port, which is always ready.
#[derive(Debug)]
struct Console {
    line: Mutex<Vec<u8>>,
    sender: Sender<Happened>,
}

impl Mmio for Console {
    fn size(&self) -> u64 {
        8
    }

    fn read(&self, offset: u64, _size: u8) -> mem::Result<u64> {
        const LINE_STATUS: u64 = 5;
        const TRANSMITTER_EMPTY: u64 = 0x60;
        Ok(if offset == LINE_STATUS { TRANSMITTER_EMPTY } else { 0 })
    }

    fn write(&self, offset: u64, _size: u8, value: u64) -> mem::Result<Action> {
        let mut line = self.line.lock().unwrap();
        match (offset, value as u8) {
            (0, b'\n') => {
                let line = String::from_utf8_lossy(&std::mem::take(&mut *line)).trim_end().to_owned();
                // Only fails once the main thread has returned.
                let _ = self.sender.send(Happened::Printed(line));
            }
            (0, byte) if line.len() < 1024 => line.push(byte),
            _ => {}
        }
        Ok(Action::None)
    }
}

impl Pause for Console {}

impl MmioDev for Console {}

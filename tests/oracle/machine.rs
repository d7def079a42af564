//! A QEMU for long runs: it executes qtest commands in batches, and resets the watchdog alone.
//!
//! The watchdog is behind a PCI bridge, whose secondary bus reset resets it within the batch; configuration space is
//! mapped into memory, so that each access is one command. Without timers of other devices a wait of 1000 s is one step.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::qemu::Qemu as Package;

use crate::qtest::{accept, check_version, suffix};

/// Configuration space: the base of the machine, the bridge at 03.0, and the watchdog at 01.0 behind it.
const ECAM: u32 = 0xB000_0000;
const BRIDGE: u32 = ECAM + (3 << 15);
const FUNCTION: u32 = ECAM + (1 << 20) + (1 << 15);

/// Registers of the bridge.
const BUS_NUMBERS: u32 = BRIDGE + 0x18;
const MEMORY_WINDOW: u32 = BRIDGE + 0x20;
const BRIDGE_CONTROL: u32 = BRIDGE + 0x3E;

/// QEMU's last lines on standard error, for the message of a failure. Its device prints one at each end of stage 1.
const LAST_LINES: usize = 5;

/// The address of a register of the watchdog's configuration space.
pub const fn function(offset: u16) -> u32 {
    FUNCTION + offset as u32
}

pub struct Machine {
    process: Child,
    commands: Sender<String>,
    replies: BufReader<UnixStream>,
    errors: Arc<Mutex<VecDeque<String>>>,
    _folder: TempDir,
}

/// Commands for QEMU, with the expected replies.
#[derive(Default)]
pub struct Script {
    commands: String,
    replies: Vec<Expected>,
}

/// An expected reply.
struct Expected {
    /// The operation of the guest that the command belongs to.
    operation: usize,
    read: Option<Reading>,
}

#[derive(Clone, Copy)]
struct Reading {
    address: u32,
    width: usize,
    value: u32,
}

/// A reply that was not expected.
#[derive(Debug)]
pub struct Mismatch {
    pub operation: usize,
    pub what: String,
}

impl Script {
    /// The number of commands.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Reads from memory, and expects this value.
    pub fn read(&mut self, operation: usize, address: u32, width: usize, value: u32) {
        writeln!(self.commands, "read{} {address:#x}", suffix(width)).expect("a string grows");
        self.replies.push(Expected { operation, read: Some(Reading { address, width, value }) });
    }

    pub fn write(&mut self, operation: usize, address: u32, width: usize, value: u32) {
        self.command(operation, format_args!("write{} {address:#x} {value:#x}", suffix(width)));
    }

    pub fn step(&mut self, operation: usize, nanos: u64) {
        self.command(operation, format_args!("clock_step {nanos}"));
    }

    /// Resets the watchdog as the platform does.
    pub fn reset(&mut self, operation: usize) {
        const SECONDARY_BUS_RESET: u32 = 1 << 6;
        self.write(operation, BRIDGE_CONTROL, 2, SECONDARY_BUS_RESET);
        self.write(operation, BRIDGE_CONTROL, 2, 0);
    }

    fn command(&mut self, operation: usize, command: std::fmt::Arguments) {
        writeln!(self.commands, "{command}").expect("a string grows");
        self.replies.push(Expected { operation, read: None });
    }
}

impl Machine {
    pub fn start() -> Result<Self, Unavailable> {
        let package = Package::current()?;
        check_version(&package);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("qtest");
        let listener = UnixListener::bind(&socket).expect("a socket to listen on");
        let mut command = package.system("x86_64");
        command
            .args(["-machine", "q35,hpet=off,pit=off", "-accel", "qtest", "-display", "none", "-nodefaults"])
            .args(["-qtest", &format!("unix:{}", socket.display()), "-qtest-log", "none"])
            .args(["-device", "pci-bridge,id=bridge,bus=pcie.0,addr=03.0,chassis_nr=1"])
            .args(["-device", "i6300esb,bus=bridge,addr=01.0", "-action", "watchdog=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("QEMU starts");
        let errors = keep_last_lines(process.stderr.take().expect("piped"));
        let stream = accept(&listener).unwrap_or_else(|error| panic!("QEMU does not connect: {error}; {errors:?}"));
        let commands = writer(stream.try_clone().expect("a second handle"));
        let mut machine =
            Self { process, commands, replies: BufReader::with_capacity(1 << 16, stream), errors, _folder: folder };
        machine.map();
        Ok(machine)
    }

    /// Maps configuration space, and opens the bridge.
    fn map(&mut self) {
        let mut script = Script::default();
        // The PCI Express base of the host bridge, through the ports of PC.
        for (register, value) in [(0x60, ECAM | 1), (0x64, 0)] {
            script.command(0, format_args!("outl 0xcf8 {:#x}", 0x8000_0000_u32 | register));
            script.command(0, format_args!("outl 0xcfc {value:#x}"));
        }
        script.write(0, BUS_NUMBERS, 4, 0x0001_0100);
        script.write(0, MEMORY_WINDOW, 4, 0xFEB0_FEB0);
        script.write(0, BRIDGE + 0x04, 2, 0x0006);
        script.read(0, function(0x00), 4, 0x25AB_8086);
        if let Some(mismatch) = self.execute(script) {
            panic!("no watchdog behind the bridge: {}", mismatch.what);
        }
    }

    /// Executes the commands. Returns the first reply that was not expected.
    pub fn execute(&mut self, script: Script) -> Option<Mismatch> {
        self.commands.send(script.commands).expect("the writer runs");
        let mut first = None;
        let mut line = String::new();
        for Expected { operation, read } in script.replies {
            line.clear();
            let received = self.replies.read_line(&mut line);
            let answer = match received {
                Ok(1..) => line.trim_end().strip_prefix("OK"),
                _ => None,
            };
            let Some(answer) = answer else {
                panic!("QEMU's reply in operation {operation}: {received:?}, {line:?}; {:?}", self.errors);
            };
            if let Some(Reading { address, width, value }) = read {
                let hexadecimal = answer.trim_start().trim_start_matches("0x");
                let there = u64::from_str_radix(hexadecimal, 16).expect("a number");
                if there != value.into() && first.is_none() {
                    let at = place(address, width);
                    let what = format!("QEMU has {there:#x} in {at}; by the model and the rules it is {value:#x}");
                    first = Some(Mismatch { operation, what });
                }
            }
        }
        first
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The words for a read.
fn place(address: u32, width: usize) -> String {
    let bytes = if width == 1 { "1 byte".to_owned() } else { format!("{width} bytes") };
    match address.checked_sub(FUNCTION) {
        Some(offset @ 0..0x1000) => format!("{bytes} at {offset:#04x} of configuration space"),
        _ => format!("{bytes} at {:#04x} of BAR0", address % 0x10),
    }
}

/// Writes in a thread of its own: QEMU reads no more commands while its replies are not read.
fn writer(mut stream: UnixStream) -> Sender<String> {
    let (sender, scripts) = channel::<String>();
    thread::spawn(move || scripts.iter().try_for_each(|script| stream.write_all(script.as_bytes())));
    sender
}

fn keep_last_lines(stream: impl Read + Send + 'static) -> Arc<Mutex<VecDeque<String>>> {
    let kept = Arc::new(Mutex::new(VecDeque::new()));
    let lines = kept.clone();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut lines = lines.lock().unwrap();
            lines.push_back(line);
            if lines.len() > LAST_LINES {
                lines.pop_front();
            }
        }
    });
    kept
}

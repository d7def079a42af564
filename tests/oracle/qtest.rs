//! A QEMU under control of the test: qtest for accesses and time, QMP for the watchdog's events.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_watchdog_test_support::Unavailable;
use vm_watchdog_test_support::process::Process;
use vm_watchdog_test_support::qemu::Qemu as Package;

use crate::pair::Space;

/// Limit for every wait. Nothing takes this long, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The QEMU version that the contract was measured with. Before a change, check each difference that README names.
const MAJOR_VERSION: u32 = 11;

/// Address of the PCI function: device 4 on bus 0.
const FUNCTION: u32 = 0x8000_2000;
const BAR0: u32 = 0xFEBF_1000;

pub struct Qemu {
    qtest: BufReader<UnixStream>,
    qmp: BufReader<UnixStream>,
    timeouts: u32,
    resets: u32,
    _process: Process,
    _sockets: TempDir,
}

impl Qemu {
    /// Starts a machine with the watchdog, its BAR mapped, at virtual time zero.
    pub fn start() -> Result<Self, Unavailable> {
        let package = Package::current()?;
        check_version(&package);
        let sockets = tempfile::tempdir().expect("a temporary folder");
        let [qtest, qmp] = ["qtest", "qmp"].map(|name| sockets.path().join(name));
        let listeners = [&qtest, &qmp].map(|path| UnixListener::bind(path).expect("a socket to listen on"));
        let unix = |path: &Path| format!("unix:{}", path.display());

        let mut command = package.system("x86_64");
        command
            // Without timers of other devices a long wait is one step.
            .args(["-machine", "pc,hpet=off,pit=off", "-accel", "qtest", "-display", "none", "-nodefaults"])
            .args(["-qtest", &unix(&qtest), "-qtest-log", "none", "-qmp", &unix(&qmp)])
            .args(["-device", "i6300esb,addr=04.0", "-action", "watchdog=none"]);
        let mut process = Process::start(command).expect("QEMU starts");
        let [qtest, qmp] = listeners.map(|listener| accept(&listener).map(BufReader::new));
        let (Ok(qtest), Ok(qmp)) = (qtest, qmp) else {
            panic!("QEMU did not connect: {:?}", process.wait(Duration::ZERO));
        };
        let mut qemu = Self { qtest, qmp, timeouts: 0, resets: 0, _process: process, _sockets: sockets };
        line(&mut qemu.qmp);
        qemu.execute("qmp_capabilities");
        qemu.map();
        Ok(qemu)
    }

    fn map(&mut self) {
        self.write(Space::Config, 0x10, 4, BAR0);
        self.write(Space::Config, 0x04, 2, 0x0002);
    }

    pub fn read(&mut self, space: Space, offset: u16, width: usize) -> u32 {
        let answer = match space {
            Space::Config => {
                self.select(offset);
                self.qtest(&format!("in{} {:#x}", suffix(width), 0xCFC + (offset & 3)))
            }
            Space::Bar => self.qtest(&format!("read{} {:#x}", suffix(width), BAR0 + u32::from(offset))),
        };
        let value = answer.strip_prefix("0x").unwrap_or_else(|| panic!("not a number: {answer}"));
        u64::from_str_radix(value, 16).expect("a number") as u32
    }

    pub fn write(&mut self, space: Space, offset: u16, width: usize, value: u32) {
        match space {
            Space::Config => {
                self.select(offset);
                self.qtest(&format!("out{} {:#x} {value:#x}", suffix(width), 0xCFC + (offset & 3)));
            }
            Space::Bar => {
                self.qtest(&format!("write{} {:#x} {value:#x}", suffix(width), BAR0 + u32::from(offset)));
            }
        }
    }

    fn select(&mut self, offset: u16) {
        self.qtest(&format!("outl 0xcf8 {:#x}", FUNCTION | u32::from(offset & !3)));
    }

    /// Advances the virtual time. Returns the number of timeouts.
    ///
    /// QEMU reports at most one timeout per second of virtual time.
    pub fn step(&mut self, nanos: u64) -> u32 {
        if nanos > 0 {
            self.qtest(&format!("clock_step {nanos}"));
        }
        // QEMU sends the reply after all earlier events.
        self.execute("query-name");
        std::mem::take(&mut self.timeouts)
    }

    /// Resets the platform, and maps the BAR again.
    pub fn reset(&mut self) {
        let before = self.resets;
        self.execute("system_reset");
        while self.resets == before {
            self.receive();
        }
        self.map();
    }

    fn qtest(&mut self, command: &str) -> String {
        writeln!(self.qtest.get_mut(), "{command}").expect("QEMU reads");
        let answer = line(&mut self.qtest);
        let result = answer.strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {answer}"));
        result.trim().to_owned()
    }

    fn execute(&mut self, command: &str) {
        writeln!(self.qmp.get_mut(), r#"{{"execute": "{command}"}}"#).expect("QEMU reads");
        while !self.receive().starts_with(r#"{"return""#) {}
    }

    /// Receives one QMP message, and counts it if it is a timeout or a reset.
    fn receive(&mut self) -> String {
        let message = line(&mut self.qmp);
        assert!(!message.contains(r#""error""#), "{message}");
        self.timeouts += u32::from(message.contains(r#""event": "WATCHDOG""#));
        self.resets += u32::from(message.contains(r#""event": "RESET""#));
        message
    }
}

/// Checks QEMU's version. Prints it once for all tests, to standard error itself, because the harness captures what
/// passing tests print.
pub fn check_version(package: &Package) {
    static SAID: Once = Once::new();
    let output = package.system("x86_64").arg("--version").output().expect("QEMU starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(|line| line.strip_prefix("QEMU emulator version ")).unwrap_or(&text);
    SAID.call_once(|| drop(io::stderr().write_all(format!("comparing with QEMU {version}\n").as_bytes())));
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    assert_eq!(major, Some(MAJOR_VERSION), "README and these tests describe QEMU {MAJOR_VERSION}: {version}");
}

pub fn suffix(width: usize) -> char {
    match width {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => panic!("no access is {width} bytes wide"),
    }
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("QEMU answers");
    assert!(line.ends_with('\n'), "QEMU closed the connection");
    line
}

pub fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock || Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

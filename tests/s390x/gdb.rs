//! A client of the GDB remote protocol, with the commands that the tests need from QEMU's stub for s390x.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wait::connect;

/// A processor under a debugger. It is stopped from the connection until [`resume`](Self::resume).
pub struct Gdb {
    stream: UnixStream,
    received: Vec<u8>,
    /// Stop packets that arrived before the reply to a request.
    early_stops: VecDeque<Stop>,
}

/// Why the processor is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is at a breakpoint, or has completed a single step.
    Debug,
    /// Another client has paused the VM, and resumes it later.
    Paused,
}

/// The program status word and the general registers.
#[derive(Clone, Debug)]
pub struct Registers {
    pub psw_mask: u64,
    pub psw_address: u64,
    pub gprs: [u64; 16],
}

/// GDB's number of the PSW's mask; its address is the next one.
const PSW_MASK: usize = 0;
const PSW_ADDRESS: usize = 1;

impl Gdb {
    /// Connects to QEMU's `-gdb unix:...`, which stops the VM.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut gdb = Self { stream: connect(socket)?, received: Vec::new(), early_stops: VecDeque::new() };
        gdb.request("qSupported:swbreak+;hwbreak+")?;
        // The stub accepts writes of single registers only after the client has read the target description.
        gdb.request("qXfer:features:read:target.xml:0,ffb")?;
        gdb.early_stops.clear();
        Ok(gdb)
    }

    /// Waits until the processor stops.
    pub fn wait_for_stop(&mut self) -> io::Result<Stop> {
        match self.early_stops.pop_front() {
            Some(stop) => Ok(stop),
            None => loop {
                if let Some(stop) = stop_reason(&self.receive()?) {
                    return Ok(stop);
                }
            },
        }
    }

    /// Resumes the processor.
    pub fn resume(&mut self) -> io::Result<()> {
        self.send("vCont;c")
    }

    /// Steps the processor past the breakpoint at `address`, where it is stopped.
    pub fn step_over(&mut self, address: u64) -> io::Result<()> {
        self.remove_breakpoint(address)?;
        self.send("vCont;s")?;
        while self.wait_for_stop()? != Stop::Debug {}
        self.insert_breakpoint(address)
    }

    pub fn insert_breakpoint(&mut self, address: u64) -> io::Result<()> {
        self.command(&format!("Z0,{address:x},2"))
    }

    pub fn remove_breakpoint(&mut self, address: u64) -> io::Result<()> {
        self.command(&format!("z0,{address:x},2"))
    }

    pub fn registers(&mut self) -> io::Result<Registers> {
        let bytes = unhex(&self.request("g")?)?;
        let mut words = bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
        let mut next = || words.next().ok_or_else(|| invalid("too few registers for s390x"));
        let (psw_mask, psw_address) = (next()?, next()?);
        let mut gprs = [0; 16];
        for gpr in &mut gprs {
            *gpr = next()?;
        }
        Ok(Registers { psw_mask, psw_address, gprs })
    }

    pub fn set_psw(&mut self, mask: u64, address: u64) -> io::Result<()> {
        self.command(&format!("P{PSW_MASK:x}={mask:016x}"))?;
        self.jump_to(address)
    }

    pub fn jump_to(&mut self, address: u64) -> io::Result<()> {
        self.command(&format!("P{PSW_ADDRESS:x}={address:016x}"))
    }

    /// Reads memory at a virtual address of the processor. Fails if the address is not mapped.
    pub fn read_memory(&mut self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = unhex(&self.request(&format!("m{address:x},{length:x}"))?)?;
        if bytes.len() == length { Ok(bytes) } else { Err(invalid("short read of memory")) }
    }

    pub fn write_memory(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("M{address:x},{:x}:{hex}", bytes.len()))
    }

    /// Sends a request whose reply is `OK`.
    fn command(&mut self, text: &str) -> io::Result<()> {
        match self.request(text)?.as_str() {
            "OK" => Ok(()),
            reply => Err(invalid(&format!("{text:?}: unexpected reply {reply:?}"))),
        }
    }

    fn request(&mut self, text: &str) -> io::Result<String> {
        self.send(text)?;
        loop {
            let reply = self.receive()?;
            match stop_reason(&reply) {
                Some(stop) => self.early_stops.push_back(stop),
                None => return Ok(reply),
            }
        }
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        let sum = text.bytes().fold(0, u8::wrapping_add);
        self.stream.write_all(format!("${text}#{sum:02x}").as_bytes())
    }

    /// Receives the next packet. Skips the `+` acknowledgements between packets.
    fn receive(&mut self) -> io::Result<String> {
        loop {
            let start = self.received.iter().position(|&byte| byte == b'$');
            let end = self.received.iter().position(|&byte| byte == b'#');
            if let (Some(start), Some(end)) = (start, end) {
                if self.received.len() >= end + 3 {
                    let text = String::from_utf8_lossy(&self.received[start + 1..end]).into_owned();
                    self.received.drain(..end + 3);
                    self.stream.write_all(b"+")?;
                    return Ok(text);
                }
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.received.extend_from_slice(&chunk[..length]),
            }
        }
    }
}

/// The reason in a stop packet, which names a signal. Signal 5 (SIGTRAP) is a breakpoint or a step.
fn stop_reason(packet: &str) -> Option<Stop> {
    let signal = packet.strip_prefix('T')?;
    Some(if signal.starts_with("05") { Stop::Debug } else { Stop::Paused })
}

fn unhex(text: &str) -> io::Result<Vec<u8>> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
    bytes.ok_or_else(|| invalid(&format!("{text:?} is not hexadecimal")))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

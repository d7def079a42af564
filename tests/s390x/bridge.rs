//! The bridge: connects our watchdog to a machine without one, through a debugger.
//!
//! QEMU without its own device answers every DIAGNOSE X'288' with a specification exception. The bridge sets a
//! breakpoint at the guest's handler of that exception, reads the instruction and its registers there, and asks the
//! library. The guest then continues behind the instruction, as if it had been performed, or takes the exception. A VMM
//! on KVM does the same with an intercept.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use vm_watchdog::diag288::{Diagnose, ProgramInterruption};

use crate::gdb::{Gdb, Registers, Stop};

/// The guest's handler of program interruptions, where the bridge stops it.
pub trait Hook: Send + 'static {
    /// The address of its first instruction.
    fn address(&self) -> u64;

    /// The interrupted program; `None` if the stop is not such an interruption.
    fn interrupted(&self, cpu: &mut Gdb, here: &Registers) -> io::Result<Option<Interrupted>>;

    /// Continues the guest behind the instruction.
    fn complete(&self, cpu: &mut Gdb, here: &Registers, interrupted: &Interrupted) -> io::Result<()>;

    /// Injects this interruption into the guest, instead of QEMU's.
    fn inject(&self, cpu: &mut Gdb, interruption: ProgramInterruption) -> io::Result<()>;
}

/// State of an interrupted program. Its PSW already points behind the instruction.
#[derive(Clone, Debug)]
pub struct Interrupted {
    pub instruction: [u8; 4],
    pub psw_mask: u64,
    pub psw_address: u64,
    pub gprs: [u64; 16],
}

impl Interrupted {
    /// The watchdog call, if the instruction is one.
    pub fn call(&self) -> Option<Diagnose> {
        Diagnose::from_instruction(self.instruction, self.psw_mask, &self.gprs)
    }
}

/// The device's answer, which is all that a guest can observe.
pub type Answer = Result<(), ProgramInterruption>;

/// One call of the guest, and the device's answer.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// The time immediately before the device handles the call.
    pub at: Instant,
    /// The general registers, which have the function and what it is called with.
    pub gprs: [u64; 16],
    pub answer: Answer,
}

/// A machine with our device.
pub struct Bridge {
    /// Every call of the guest, and its answer.
    pub decisions: Receiver<Decision>,
    go_on: Sender<()>,
}

impl Bridge {
    /// Takes the calls that are new since the last time, all of which must have succeeded: the time of the last one.
    pub fn last_success(&self) -> Option<Instant> {
        let succeeded =
            |decision: &Decision| assert_eq!(decision.answer, Ok(()), "with the registers {:x?}", decision.gprs);
        self.decisions.try_iter().inspect(succeeded).last().map(|decision| decision.at)
    }

    /// Stops the guest at `hook` from now on, and asks `device` for its answer: `None` if the instruction is not a call
    /// of the device. The bridge ends with the machine.
    pub fn attach(
        cpu: Gdb,
        hook: impl Hook,
        device: impl FnMut(&Interrupted) -> Option<Answer> + Send + 'static,
    ) -> io::Result<Self> {
        let (report, decisions) = channel();
        let (go_on, gone_on) = channel();
        let mut span = Span { cpu, hook, device, report, gone_on };
        span.cpu.insert_breakpoint(span.hook.address())?;
        span.cpu.resume()?;
        thread::spawn(move || {
            let Err(error) = span.serve();
            let ended = [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(ended.contains(&error.kind()), "the bridge failed: {error}");
        });
        Ok(Self { decisions, go_on })
    }

    /// Resumes a paused machine. Only the debugger can do that: QEMU reports a stop to it only while it waits for one.
    pub fn resume(&self) {
        self.go_on.send(()).expect("the machine is there");
    }
}

/// State of the bridge's thread.
struct Span<H, D> {
    cpu: Gdb,
    hook: H,
    device: D,
    report: Sender<Decision>,
    gone_on: Receiver<()>,
}

impl<H: Hook, D: FnMut(&Interrupted) -> Option<Answer>> Span<H, D> {
    fn serve(&mut self) -> io::Result<Infallible> {
        loop {
            match self.cpu.wait_for_stop()? {
                Stop::Debug => self.decide()?,
                Stop::Paused => self.gone_on.recv().map_err(|_| ErrorKind::UnexpectedEof)?,
            }
            self.cpu.resume()?;
        }
    }

    fn decide(&mut self) -> io::Result<()> {
        let here = self.cpu.registers()?;
        assert_eq!(here.psw_address, self.hook.address(), "the only breakpoint");
        let interrupted = self.hook.interrupted(&mut self.cpu, &here)?;
        // Taken before the device sees the heartbeat, so that a timeout counted from here is never early.
        let at = Instant::now();
        let answer = interrupted.as_ref().and_then(&mut self.device);
        if let (Some(answer), Some(interrupted)) = (answer, interrupted) {
            // Ignore the error: a test may drop its receiver.
            let _ = self.report.send(Decision { at, gprs: interrupted.gprs, answer });
            match answer {
                Ok(()) => return self.hook.complete(&mut self.cpu, &here, &interrupted),
                Err(interruption) => self.hook.inject(&mut self.cpu, interruption)?,
            }
        }
        // The guest takes the exception, either from our device or from another cause.
        self.cpu.step_over(self.hook.address())
    }
}

//! The bridge: gives a machine that has no watchdog ours, from outside.
//!
//! QEMU without its own device answers every DIAGNOSE X'288' with a specification exception. The guest takes it at a
//! place we know, where we stop it: the instruction and its registers are at hand, the library decides, and the guest
//! goes on, behind the instruction as if it had been performed, or with the exception. That is what a VMM on KVM does
//! with an intercept, by the means of a debugger.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use vm_watchdog::diag288::{Diagnose, ProgramInterruption};

use crate::gdb::{Gdb, Registers, Stop};

/// A place where the guest takes program interruptions.
pub trait Hook: Send + 'static {
    /// The address of its first instruction.
    fn address(&self) -> u64;

    /// What the guest was doing; None if this is not what it looks like.
    fn interrupted(&self, cpu: &mut Gdb, here: &Registers) -> io::Result<Option<Interrupted>>;

    /// Makes the guest go on behind the instruction.
    fn complete(&self, cpu: &mut Gdb, here: &Registers, interrupted: &Interrupted) -> io::Result<()>;

    /// Makes the guest take this interruption, instead of the one that QEMU has given it.
    fn inject(&self, cpu: &mut Gdb, interruption: ProgramInterruption) -> io::Result<()>;
}

/// A guest's program as it was when it was interrupted, its PSW already behind the instruction.
#[derive(Clone, Debug)]
pub struct Interrupted {
    pub instruction: [u8; 4],
    pub psw_mask: u64,
    pub psw_address: u64,
    pub gprs: [u64; 16],
}

impl Interrupted {
    /// The call of the watchdog, if it was one.
    pub fn call(&self) -> Option<Diagnose> {
        Diagnose::from_instruction(self.instruction, self.psw_mask, &self.gprs)
    }
}

/// What the device answers: the whole of what a guest can see of it.
pub type Answer = Result<(), ProgramInterruption>;

/// One call of the guest, and what the device made of it.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// Right before the device was asked.
    pub at: Instant,
    pub answer: Answer,
}

/// A machine with our device.
pub struct Bridge {
    /// Every call of the guest, and its answer.
    pub decisions: Receiver<Decision>,
    go_on: Sender<()>,
}

impl Bridge {
    /// Stops the guest at `hook` from now on, and has `device` decide what it was doing: None, if that has nothing to do
    /// with the device. The bridge ends with the machine.
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
            assert!(ended.contains(&error.kind()), "the bridge has fallen: {error}");
        });
        Ok(Self { decisions, go_on })
    }

    /// Lets a machine go on that was paused. Only the debugger can: QEMU tells it of no stop that it does not await.
    pub fn resume(&self) {
        self.go_on.send(()).expect("the machine is there");
    }
}

/// What the bridge's thread works with.
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
        // Before the device takes it for a heartbeat: a timeout that is counted from here is not early.
        let at = Instant::now();
        let answer = interrupted.as_ref().and_then(&mut self.device);
        if let (Some(answer), Some(interrupted)) = (answer, interrupted) {
            // A test that has seen enough no longer listens.
            let _ = self.report.send(Decision { at, answer });
            match answer {
                Ok(()) => return self.hook.complete(&mut self.cpu, &here, &interrupted),
                Err(interruption) => self.hook.inject(&mut self.cpu, interruption)?,
            }
        }
        // The guest takes its exception, whether it is ours or has nothing to do with us.
        self.cpu.step_over(self.hook.address())
    }
}

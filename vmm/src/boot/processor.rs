//! What runs the guest: a processor on a thread of its own, together with the devices that it reaches.
//!
//! The devices belong to that thread. Whoever else needs them, or the processor, sends a closure to be run there while
//! the guest stands still ([`VcpuThread::call`]); so nothing here is locked while the guest runs, and nothing half done
//! is ever seen.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::signal::Killable;

use super::builtin::Position;
use super::devices::{Devices, GuestRequest};
use super::error::BootError;
use super::inbox::VcpuSender;
use super::kvm::{KvmState, kick};

/// How long a call waits for the guest to stand still. A vCPU is late only when its console is not read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that executes a guest.
pub trait Processor: Send {
    /// Runs the guest until it asks for something or the thread is [kicked](kick).
    fn run(&mut self, devices: &mut Devices) -> Result<Stop, BootError>;
    /// Puts the processor, and all that KVM emulates around it, back to where the guest's first instruction is next.
    fn reset(&mut self) -> Result<(), BootError>;
    /// Raises a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<(), BootError>;
    /// The registers, if there are any.
    fn registers(&mut self) -> Result<Option<Registers>, BootError>;
    /// The whole state, to go on from it in another process.
    fn save(&mut self) -> Result<ProcessorState, BootError>;
    /// Goes on from a saved state.
    fn restore(&mut self, state: &ProcessorState) -> Result<(), BootError>;
}

/// The state of a processor.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessorState {
    /// Where a guest stands that is played.
    Played(Position),
    /// What KVM keeps of a vCPU and the VM around it.
    Kvm(Box<KvmState>),
}

/// Why the processor came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody wants to talk to this thread.
    Kicked,
    /// The guest wants something of the VMM.
    Guest(GuestRequest),
}

/// The registers of a vCPU, for a core dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers as `user_regs_struct` of x86-64 Linux orders them.
    pub user: [u64; 27],
}

/// What lives on the vCPU's thread.
pub struct Vcpu {
    /// What executes the guest.
    pub processor: Box<dyn Processor>,
    /// What the guest can reach.
    pub devices: Devices,
    /// Whether the guest runs. It does not at first, nor after it has asked for something.
    pub running: bool,
    /// Whether it stands still all the same.
    pub paused: bool,
}

type Job = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// The handle of the vCPU's thread. The thread ends when the handle is dropped.
pub struct VcpuThread {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread; the guest does not run yet.
    pub fn spawn(vcpu: Vcpu, reports: VcpuSender) -> Result<Self, BootError> {
        kick::prepare()?;
        let (jobs, queue) = channel();
        let thread = Builder::new()
            .name("vcpu0".into())
            .spawn(move || vcpu.serve(&queue, &reports))
            .map_err(BootError::host("start the vCPU's thread"))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a closure on the vCPU's thread, between two instructions of the guest, and waits for its result.
    pub fn call<T: Send + 'static>(&self, job: impl FnOnce(&mut Vcpu) -> T + Send + 'static) -> Result<T, BootError> {
        let (answer, answers) = channel();
        // A caller that has given up does not want the answer any more.
        let job: Job = Box::new(move |vcpu| drop(answer.send(job(vcpu))));
        let gone = || BootError::Vcpu("its thread has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.kick();
        answers.recv_timeout(PATIENCE).map_err(|_| BootError::VcpuStuck(PATIENCE.as_secs()))
    }

    fn kick(&self) {
        if let Some(thread) = self.thread.as_ref().filter(|thread| !thread.is_finished()) {
            // A thread that has ended in between needs no kick.
            let _ = thread.kill(kick::signal());
        }
    }
}

impl Drop for VcpuThread {
    /// Lets the thread end, and waits for it unless it is stuck in the console.
    fn drop(&mut self) {
        self.jobs = None;
        self.kick();
    }
}

impl Vcpu {
    fn serve(mut self, jobs: &Receiver<Job>, reports: &VcpuSender) {
        loop {
            // A guest that stands still needs no processor until somebody asks.
            let job =
                if self.running && !self.paused { jobs.try_recv() } else { jobs.recv().map_err(TryRecvError::from) };
            match job {
                Ok(job) => job(&mut self),
                Err(TryRecvError::Empty) => self.run(reports),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    fn run(&mut self, reports: &VcpuSender) {
        let report = match self.processor.run(&mut self.devices) {
            Ok(Stop::Kicked) => return,
            Ok(Stop::Guest(request)) => Ok(request),
            Err(error) => Err(error),
        };
        self.running = false;
        reports.send(report);
    }
}

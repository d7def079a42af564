//! The vCPU's thread: it runs the guest, and owns the processor and the devices.
//!
//! Other threads send it closures, which run between two instructions of the guest ([`VcpuThread::call`]). So no lock is
//! held while the guest runs, and no other thread sees a device in the middle of an access.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::Killable;

use crate::devices::Devices;
use crate::error::BootError;
use crate::inbox::VcpuSender;
use crate::kvm::kick;
use crate::processor::{Processor, Stop};

/// How long a call waits for the guest to stop. A vCPU is late only when its console is not read.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What the vCPU's thread owns.
pub struct Vcpu {
    /// The processor.
    pub processor: Box<dyn Processor>,
    /// The devices that the guest can access.
    pub devices: Devices,
    /// Whether the guest runs. It does not at first, nor after a request.
    pub running: bool,
    /// Whether it is paused, although it would run.
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
        // A caller that has timed out no longer receives.
        let job: Job = Box::new(move |vcpu| drop(answer.send(job(vcpu))));
        let gone = || BootError::Vcpu("its thread has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.kick();
        answers.recv_timeout(CALL_TIMEOUT).map_err(|_| BootError::VcpuStuck(CALL_TIMEOUT.as_secs()))
    }

    fn kick(&self) {
        if let Some(thread) = self.thread.as_ref().filter(|thread| !thread.is_finished()) {
            // The thread may have ended in between.
            let _ = thread.kill(kick::signal());
        }
    }
}

impl Drop for VcpuThread {
    /// Makes the thread end.
    fn drop(&mut self) {
        self.jobs = None;
        self.kick();
    }
}

impl Vcpu {
    fn serve(mut self, jobs: &Receiver<Job>, reports: &VcpuSender) {
        loop {
            // While the guest does not run, the thread sleeps until the next job.
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

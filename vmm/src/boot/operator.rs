//! The operator's signals: SIGUSR1 pauses the VM, and saves it if there is a file to save it to; SIGUSR2 resumes it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::Sender;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Stand still, and be saved.
    Pause,
    /// Go on.
    Resume,
}

/// Takes the signals of a process in its main loop.
pub struct Signals {
    descriptor: SignalFd,
    wishes: Sender<Wish>,
}

impl Signals {
    /// From now on the signals wait for the main loop. Threads that this one starts inherit that.
    pub fn new(wishes: Sender<Wish>) -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGUSR1, Signal::SIGUSR2].into_iter().collect();
        signals.thread_block()?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { descriptor, wishes })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        while let Ok(Some(signal)) = self.descriptor.read_signal() {
            let pause = signal.ssi_signo == Signal::SIGUSR1 as u32;
            // The main loop, which has called this, holds the other end.
            let _ = self.wishes.send(if pause { Wish::Pause } else { Wish::Resume });
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.descriptor.as_raw_fd(), EventSet::IN)) {
            log::error!("the main loop does not hear its operator: {error}");
        }
    }
}

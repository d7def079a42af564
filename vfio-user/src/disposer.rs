//! Closes descriptors that no client should have sent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

/// How many descriptors wait to be closed. One message carries 253 at most.
const MOST_WAITING: usize = 256;
const STACK: usize = 64 << 10;

/// Closes descriptors on a thread of its own.
///
/// A client chooses how long a close takes: that of a TCP socket with SO_LINGER waits for its peer, that of a file in user
/// space for the process that has the file system. A thread that serves clients therefore closes nothing of theirs.
#[derive(Clone, Debug)]
pub struct Disposer {
    waiting: SyncSender<OwnedFd>,
}

impl Disposer {
    /// Starts the thread, which ends with the last clone of the value.
    ///
    /// # Errors
    ///
    /// The error of the host if it gives no thread.
    pub fn spawn() -> io::Result<Self> {
        let (waiting, descriptors) = sync_channel::<OwnedFd>(MOST_WAITING);
        let close_all = move || descriptors.into_iter().for_each(drop);
        thread::Builder::new().name("close".into()).stack_size(STACK).spawn(close_all)?;
        Ok(Self { waiting })
    }

    /// Closes descriptors, without waiting for that. Leaves those for which there is no room.
    pub fn dispose(&self, descriptors: &mut Vec<OwnedFd>) {
        while let Some(descriptor) = descriptors.pop() {
            if let Err(TrySendError::Full(descriptor) | TrySendError::Disconnected(descriptor)) =
                self.waiting.try_send(descriptor)
            {
                descriptors.push(descriptor);
                return;
            }
        }
    }
}

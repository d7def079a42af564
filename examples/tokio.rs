//! Serves a watchdog from a task of tokio: edge-triggered, so readiness is cleared before the watchdog is served.

use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vm_watchdog::i6300esb::{I6300esb, I6300esbConfig};
use vm_watchdog::{Action, AnyWatchdog, Event, Policy, Watchdog};

/// The task of one watchdog, which ends when it is aborted.
async fn serve(watchdog: AnyWatchdog) -> std::io::Result<()> {
    // SAFETY: the descriptor of a watchdog stays the same and open as long as there is a handle, and `timer` owns one.
    let timer = unsafe { AsyncFd::register_with_interest(watchdog, Interest::READABLE)? };
    loop {
        let mut readiness = timer.readable().await?;
        readiness.clear_ready();
        // The handler is called here: one that blocks belongs on a thread of its own, Watchdog::spawn.
        timer.get_ref().on_readable();
    }
}

/// The VMM, and a guest that recovers from each of a hundred timeouts.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (to_vmm, mut actions) = tokio::sync::mpsc::unbounded_channel();
    let watchdog = Watchdog::builder("watchdog0", I6300esb::new(I6300esbConfig::default()))
        .policy(Policy::new(Action::InjectNmi))
        .build(move |event: &Event| Ok(to_vmm.send(event.action)?))?;
    let task = tokio::spawn(serve(watchdog.clone().into()));

    // A guest that enables its watchdog with 2 ms, and feeds it only after each timeout.
    let unlock = || {
        for key in [0x80, 0x86] {
            watchdog.write_bar(0x0C, &[key, 0x00]);
        }
    };
    for preload in [0x00, 0x04] {
        unlock();
        watchdog.write_bar(preload, &[1, 0, 0, 0]);
    }
    watchdog.write_config(0x68, &[0x02]);
    for timeout in 1..=100 {
        let action = tokio::time::timeout(Duration::from_secs(30), actions.recv()).await?;
        println!("timeout {timeout}: {}", action.ok_or("the watchdog is gone")?);
        unlock();
        watchdog.write_bar(0x0C, &[0x00, 0x01]);
    }
    task.abort();
    Ok(())
}

//! A helper: the process that `vm-watchdog helper` is. It ends when the server does, because its socket does.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit;
use crate::serve::helper::commands::Commands;
use crate::serve::helper::frames;
use crate::serve::helper::messages::{Answer, LookUp, Request, Run, Setup};
use crate::serve::helper::names;

/// Answers the server, which is at the other end of standard input, until it has ended.
pub fn run() -> ExitCode {
    match try_run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report(&format!("a helper has ended: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn try_run() -> io::Result<()> {
    // They are for the server, although a terminal or service manager sends them to all of its processes. They are not
    // ignored, because the commands would inherit that.
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register(signal, Arc::default())?;
    }
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    match frames::read(&socket)? {
        None => Ok(()),
        Some(Setup::Commands { command, watchdogs }) => {
            name("watchdog-exec");
            let most = watchdogs.len();
            let commands = Arc::new(Commands::new(command, watchdogs));
            frames::write(&socket, &())?;
            let running = commands.clone();
            let ended = answer(&socket, most, move |Run { watchdog, expiry }| running.run(watchdog, expiry));
            commands.stop();
            ended
        }
        Some(Setup::Names { is_sandboxed }) => {
            name("watchdog-names");
            if is_sandboxed {
                names::restrict().map_err(io::Error::other)?;
            }
            frames::write(&socket, &())?;
            answer(&socket, names::MOST_LOOKUPS, |LookUp { name }| names::look_up(&name))
        }
    }
}

/// Names the process, which all started as "exe".
fn name(name: &str) {
    // It is for people alone.
    let _ = rustix::thread::set_name(&std::ffi::CString::new(name).unwrap_or_default());
}

/// Answers requests, each on a thread of its own and up to `most` at a time, until the server has ended.
fn answer<Q, A>(
    socket: &UnixStream,
    most: usize,
    perform: impl Fn(Q) -> Result<A, String> + Send + Sync + 'static,
) -> io::Result<()>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize,
{
    let perform = Arc::new(perform);
    let answers = Arc::new(Mutex::new(socket.try_clone()?));
    while let Some(Request { number, body }) = frames::read(socket)? {
        let (of_thread, perform) = (answers.clone(), perform.clone());
        let answer = move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| perform(body)));
            let outcome = outcome.unwrap_or_else(|_| Err("it has panicked".to_owned()));
            // The server may have ended meanwhile.
            let _ = send(&of_thread, &Answer { number, outcome });
        };
        // Each thread has one reference, and so have the two of this function.
        let refused = if Arc::strong_count(&answers) > most + 2 {
            Some("too many requests at a time".to_owned())
        } else {
            thread::Builder::new().spawn(answer).err().map(|error| error.to_string())
        };
        if let Some(reason) = refused {
            send(&answers, &Answer::<()> { number, outcome: Err(reason) })?;
        }
    }
    Ok(())
}

fn send<A: Serialize>(socket: &Mutex<UnixStream>, answer: &Answer<A>) -> io::Result<()> {
    frames::write(&*socket.lock().unwrap_or_else(PoisonError::into_inner), answer)
}

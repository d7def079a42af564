//! The end of a process that makes a forbidden system call: a message that names the call, and an exit status.
//!
//! The kernel sends SIGSYS to the thread, instead of the call. The handler runs wherever that thread was, so it allocates
//! nothing, takes no lock, and makes three calls: poll(2), write(2) and exit_group(2).

use std::fmt::{self, Write};
use std::io;
use std::mem::{size_of, zeroed};
use std::ptr::null_mut;

use syscalls::Sysno;

use crate::exit::FORBIDDEN_CALL;

/// SYS_SECCOMP of `<linux/signal.h>`: the signal is from a filter.
const SYS_SECCOMP: libc::c_int = 1;
/// How long a reader of standard error may take before the process ends without the message, in milliseconds.
const REPORT_TIMEOUT: libc::c_int = 200;

/// What the kernel says about a call, on a host of 64 bits: `siginfo_t` with `_sigsys` of `<asm-generic/siginfo.h>`.
#[repr(C)]
struct ForbiddenCall {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    architecture: libc::c_uint,
}

const _: () = assert!(size_of::<ForbiddenCall>() <= size_of::<libc::siginfo_t>());

/// Handles SIGSYS on every thread from now on.
///
/// # Errors
///
/// The error of the host.
pub fn install() -> io::Result<()> {
    // SAFETY: zeros are a valid sigaction: no flag, no signal blocked, the default handler.
    let mut action: libc::sigaction = unsafe { zeroed() };
    let handler: extern "C" fn(libc::c_int, *const ForbiddenCall, *const libc::c_void) = end;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, lives longer than the call, and its handler has the signature of SA_SIGINFO.
    let status = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, null_mut()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends the process.
extern "C" fn end(_signal: libc::c_int, call: *const ForbiddenCall, _context: *const libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is as long, and any bytes are a value of these types.
    let (code, number) = unsafe { ((*call).code, (*call).number) };
    let mut line = Line::default();
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    // A line that is too long is cut.
    let _ = match code {
        SYS_SECCOMP => writeln!(
            line,
            "vm-watchdog: the sandbox forbids the system call {name} (number {number}), or its arguments: please report \
             it; --sandbox=off permits it"
        ),
        _ => writeln!(line, "vm-watchdog: ended by the signal SIGSYS"),
    };
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointers are to one pollfd and to the bytes of the line. A pipe that is ready takes a whole line, so the
    // write does not block. All three may be called in a handler of signals.
    unsafe {
        if libc::poll(&raw mut stderr, 1, REPORT_TIMEOUT) > 0 {
            libc::write(stderr.fd, line.bytes.as_ptr().cast(), line.length);
        }
        libc::_exit(FORBIDDEN_CALL.into())
    }
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], length: 0 }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

//! Makes a thread leave KVM_RUN: a signal whose handler sets `immediate_exit`.
//!
//! A signal that arrives while the thread is in KVM_RUN interrupts it. One that arrives just before would be lost; the
//! flag in the shared `kvm_run` page makes that KVM_RUN return at once (KVM API, section 5, `immediate_exit`).

use std::cell::Cell;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::error::BootError;

thread_local! {
    /// Whether this thread was kicked since the last call of [`take`].
    static KICKED: AtomicBool = const { AtomicBool::new(false) };
    /// `immediate_exit` of the vCPU that this thread is running, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks.
pub fn signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler. A thread without it would be killed by a kick.
pub fn prepare() -> Result<(), BootError> {
    static INSTALL: Once = Once::new();
    let mut outcome = Ok(());
    INSTALL.call_once(|| outcome = register_signal_handler(signal(), on_signal));
    outcome.map_err(BootError::host("install a signal handler"))
}

/// Whether this thread was kicked since the last call of [`take`].
pub fn take() -> bool {
    KICKED.with(|kicked| kicked.swap(false, Ordering::Relaxed))
}

/// While this exists, a kick of this thread makes the vCPU leave KVM_RUN.
pub struct Kickable<'a> {
    /// The vCPU.
    pub vcpu: &'a mut VcpuFd,
}

impl<'a> Kickable<'a> {
    /// From here on kicks reach this vCPU. Call [`take`] afterwards for a kick that came before.
    pub fn new(vcpu: &'a mut VcpuFd) -> Self {
        vcpu.set_kvm_immediate_exit(0);
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { vcpu }
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

extern "C" fn on_signal(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    KICKED.with(|kicked| kicked.store(true, Ordering::Relaxed));
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: `Kickable` borrows the vCPU, in whose mapping the pointer lies, and clears the pointer when it
        // is dropped; this handler runs on the same thread. The kernel only reads the byte.
        unsafe { AtomicU8::from_ptr(immediate_exit) }.store(1, Ordering::Relaxed);
    }
}

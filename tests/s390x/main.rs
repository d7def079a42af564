//! The s390x watchdog, driven by real guests: Debian's kernel with its own driver, and a program of our own.
//!
//! The processor is QEMU's, the watchdog is ours: see `bridge`. Every story is also told by QEMU's own device, and has
//! to go the same way.

mod assembler;
mod bare_metal;
mod bridge;
mod gdb;
mod guest;
mod linux;
mod machine;
mod patience;
mod qmp;
mod rig;
mod zvm;

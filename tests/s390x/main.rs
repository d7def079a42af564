//! Tests of the s390x watchdog with guests: Debian's kernel with its driver, and a bare-metal program.
//!
//! QEMU emulates the processor, and `bridge` connects our watchdog to it. Each scenario also runs with QEMU's device,
//! and must have the same outcome.

mod assembler;
mod bare_metal;
mod batch;
mod bridge;
mod gdb;
mod guest;
mod image;
mod linux;
mod machine;
mod qmp;
mod random_calls;
mod rig;
mod wait;
mod zvm;

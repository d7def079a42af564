//! Tests of the contract of the Intel 6300ESB model, as a guest and a VMM see it.
//!
//! The tests restate register offsets and bits instead of importing them, so that a wrong number in the model fails.

mod bar0;
mod before_reset;
mod clients;
mod free_running;
mod guest;
mod identity;
mod interrupt;
mod msi;
mod own_header;
mod properties;
mod qemu_differences;
mod reference;
mod registers;
mod saved_state;
mod time;

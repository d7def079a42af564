//! The contract of the Intel 6300ESB model, as a guest and a VMM see it.
//!
//! No register name or bit comes from the crate under test: a number that is wrong there must not be wrong here too.

mod clients;
mod free_running;
mod guest;
mod identity;
mod interrupt;
mod properties;
mod qemu_differences;
mod reference;
mod registers;
mod saved_state;
mod time;

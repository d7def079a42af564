//! `vm-watchdog boot` as a program: its built-in guests, small kernels, pauses and snapshots, and its exit statuses.

mod bad_input;
mod built_in;
mod exit_status;
mod kernel;
mod pause;
mod support;

//! Compares the i6300esb model with QEMU's device: the same accesses at the same virtual nanoseconds.
//!
//! QEMU runs without a guest, controlled over its qtest protocol. Where the contract says that the two are the same,
//! the tests compare them. Where it says that they differ, the tests measure both, so that a change in QEMU fails a
//! test.
//!
//! - Scenarios: `alike`, `clients` and `different` drive a `pair` of QEMU (`qtest`) and the model, access by access.
//! - `random`: a million operations. The `generator` makes sequences of `operation`s; the `comparison` performs them on
//!   the model, and writes a script for the QEMU of `machine`, by the `rules` and its `book` of what QEMU does not show;
//!   `shrink` makes a failing sequence short.

mod alike;
mod book;
mod clients;
mod comparison;
mod different;
mod generator;
mod machine;
mod operation;
mod pair;
mod qtest;
mod random;
mod rules;
mod run;
mod shrink;
mod sides;
mod situations;
